"""What a validator of the contest remembers, and what it does with a file that is not its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_training.arena.contest.state import ContestState, Holder, StateFile
from template.chain.commitments import Commitment
from template.errors import CorruptState

STATE = ContestState(
    contest_id="nano-1",
    round=4,
    champion=Holder("5King", "ab" * 32),
    earlier=(Holder("5King", "ab" * 32), Holder("5Other", "cd" * 32)),
    committed={"5Late": Commitment(77, b"\x00\xff")},
    weights_block=80,
)


def opened(path: Path) -> StateFile:
    file = StateFile(path)
    file.open("nano-1", 2)
    return file


def test_all_of_it_survives(tmp_path: Path) -> None:
    """In a folder that was not there, and through a second save."""
    path = tmp_path / "deep" / "state.json"
    opened(path).save(STATE)
    assert opened(path).now == STATE
    empty = ContestState(contest_id="nano-1", round=5)
    opened(path).save(empty)
    assert opened(path).now == empty
    assert [file.name for file in path.parent.iterdir()] == ["state.json"]


def test_a_new_validator_begins_with_the_round_that_is_on(tmp_path: Path) -> None:
    """Without a champion."""
    assert opened(tmp_path / "state.json").now == ContestState(contest_id="nano-1", round=2)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 9}', "[" * 5000, '{"version": 1, "round": "x"}'])
def test_a_damaged_file_is_told(text: str, tmp_path: Path) -> None:
    """Not begun anew: a champion would lose its weight."""
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CorruptState, match=r"state\.json is damaged"):
        opened(tmp_path / "state.json")


def test_another_contest_s_file_is_told(tmp_path: Path) -> None:
    """Its champion has won something else."""
    opened(tmp_path / "state.json").save(ContestState(contest_id="nano-2", round=1))
    with pytest.raises(CorruptState, match="is of contest nano-2"):
        opened(tmp_path / "state.json")


def test_a_failed_save_changes_nothing(tmp_path: Path) -> None:
    """Neither the file nor what is gone on with."""
    file = opened(tmp_path / "state.json")
    file.save(STATE)
    (tmp_path / "state.json.partial").mkdir()
    with pytest.raises(OSError, match="partial"):
        file.save(ContestState(contest_id="nano-1", round=9))
    assert file.now == STATE == opened(tmp_path / "state.json").now
