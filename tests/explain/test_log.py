"""Reading a validator's log: what is used, and what is said of a file that is not one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distributed_training.explain.log import read_log
from template.errors import ConfigurationError, CorruptState

REAL = Path(__file__).parents[1] / "fixtures" / "validator_log.jsonl"


def lines() -> list[str]:
    return REAL.read_text().splitlines()


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines()]


def written(path: Path, content: list[dict[str, Any]] | list[str], end: str = "\n") -> Path:
    path.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in content) + end)
    return path


def test_a_real_log() -> None:
    """A validator's file says whose it is, of which run, and holds each epoch it scored."""
    log = read_log(REAL)
    assert log.run_id is not None
    assert log.run_id.startswith("tiny-")
    assert (log.validator, log.torn) == (1, False)
    assert [event.epoch for event in log.scored] == list(range(len(log.scored)))


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    """Whoever looks while the validator writes sees everything but that line."""
    torn = written(tmp_path / "log.jsonl", [*lines(), lines()[-1][:30]], end="")
    log = read_log(torn)
    assert log.torn
    assert log.events == read_log(REAL).events


def test_a_rotated_log_is_of_the_run_it_names_later(tmp_path: Path) -> None:
    """What stands before the first start belongs to the same run; without any start the run has no name."""
    start = records()[0]
    assert start["kind"] == "NeuronStarted"
    late = read_log(written(tmp_path / "late.jsonl", [*records()[1:20], start, *records()[20:]]))
    assert len(late.scored) == len(read_log(REAL).scored)
    assert read_log(written(tmp_path / "none.jsonl", records()[1:])).run_id is None


def test_several_runs_are_told_apart(tmp_path: Path) -> None:
    """One folder that was used for two runs: the one that is asked for, or a question back."""
    start = {**records()[0], "run_id": "other-1"}
    both = written(tmp_path / "log.jsonl", [start, *records()])
    with pytest.raises(ConfigurationError, match=r"several runs: choose one with --run_id, of other-1, tiny-"):
        read_log(both)
    wanted = str(records()[0]["run_id"])
    assert read_log(both, wanted).scored == read_log(REAL).scored
    with pytest.raises(ConfigurationError, match=r"another run than nano-2: it holds other-1, tiny-"):
        read_log(both, "nano-2")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ([{"kind": "Other", "time": 1.0}], ConfigurationError, "holds no scored epoch: give the file"),
        (["{"], CorruptState, "line 1 is no event"),
        (["[]"], CorruptState, "line 1 is no event"),
        ([{"kind": "WeightsSet", "time": 1.0, "uid": 1}], CorruptState, r"WeightsSet\.block: Field required"),
        ([{"kind": "EpochScored", "time": 1.0}], CorruptState, "not a score of an epoch in the log: epoch"),
    ],
)
def test_what_is_no_log(tmp_path: Path, content: list[Any], error: type[Exception], message: str) -> None:
    """One line that names the place."""
    with pytest.raises(error, match=message):
        read_log(written(tmp_path / "log.jsonl", content))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Named, with what to give instead."""
    with pytest.raises(ConfigurationError, match=r"give a validator's events\.jsonl"):
        read_log(tmp_path / "none.jsonl")


def test_a_miner_s_log_is_known_by_its_start(tmp_path: Path) -> None:
    """Its owner is told of --mine."""
    miner = written(tmp_path / "log.jsonl", [{**records()[0], "role": "miner"}])
    with pytest.raises(ConfigurationError, match="the log of a miner: give a validator's, or use --mine"):
        read_log(miner)
