"""The contest spec and the calendar of its rounds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from distributed_training.arena.contest.spec import (
    CalendarSpec,
    ContestSpec,
    Phase,
    RuleSpec,
    TrialSpec,
    load_contest,
    round_at,
    round_numbered,
    seeds_of,
)
from template.errors import ConfigurationError
from tests.arena.contest.material import RULES, contest

ROOT = Path(__file__).parents[3]
CALENDAR = CalendarSpec(start=100, length=50, commit=20, reveal=10, seed_delay=2)


@pytest.mark.parametrize("path", sorted((ROOT / "runs" / "contests").glob("*.toml")), ids=lambda path: path.stem)
def test_the_project_s_contests_are_valid(path: Path) -> None:
    """Each has an id and a plan; the file's name is the contest's."""
    spec = load_contest(path)
    assert spec.name == path.stem
    assert spec.trial.plan(1).steps == spec.trial.steps


def test_any_change_is_another_contest(tmp_path: Path) -> None:
    """Records of one do not count in another."""
    spec = contest(tmp_path)
    other = dataclasses.replace(spec, rules=dataclasses.replace(spec.rules, epsilon=0.002))
    assert spec.contest_id == contest(tmp_path).contest_id != other.contest_id


def test_rounds_follow_one_another() -> None:
    """Every block from the start on is in one round, and in one phase of it."""
    assert round_at(CALENDAR, 99) is None
    found = [round_at(CALENDAR, block) for block in range(100, 250)]
    assert [r.number for r in found if r] == [0] * 50 + [1] * 50 + [2] * 50
    phases = [r.phase(block) for block, r in zip(range(100, 250), found, strict=True) if r]
    assert phases == 3 * ([Phase.COMMIT] * 20 + [Phase.REVEAL] * 10 + [Phase.DECIDE] * 20)


def test_nobody_knows_the_seeds_while_commitments_are_taken() -> None:
    """Their block comes after the last one of those, and before sources are judged."""
    for number in range(3):
        turn = round_numbered(CALENDAR, number)
        assert turn.closes - 1 < turn.seed_block < turn.revealed < turn.ends
        assert turn.seed_block - (turn.closes - 1) == CALENDAR.seed_delay


def test_seeds_depend_on_everything() -> None:
    """Contest, round and hash; they differ from each other, and a seed is one that a plan takes."""
    found = seeds_of("nano-1", 4, "0xAB", 5)
    assert found == seeds_of("nano-1", 4, "0xab", 5)
    assert len({*found, *seeds_of("nano-2", 4, "0xab", 5), *seeds_of("nano-1", 5, "0xab", 5)}) == 15
    assert not set(found) & set(seeds_of("nano-1", 4, "0xac", 5))
    assert all(0 <= seed < 2**31 for seed in found)


@pytest.mark.parametrize(
    ("kind", "base", "change", "message"),
    [
        (CalendarSpec, CALENDAR, {"length": 29}, "room for commit and reveal"),
        (CalendarSpec, CALENDAR, {"seed_delay": 0}, "at least 1 block"),
        (CalendarSpec, CALENDAR, {"seed_delay": 11}, "must not exceed"),
        (CalendarSpec, CALENDAR, {"start": -1}, "must not be negative"),
        (RuleSpec, RULES, {"replicates": 2}, "at least 3"),
        (RuleSpec, RULES, {"confidence": 1.0}, "rules.confidence"),
        (RuleSpec, RULES, {"entries": 0}, "rules.entries"),
        (RuleSpec, RULES, {"epsilon": -0.1}, "rules.epsilon"),
    ],
)
def test_impossible_numbers(kind: type, base: Any, change: dict[str, Any], message: str) -> None:
    """Are refused with the name of the setting."""
    assert isinstance(base, kind)
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(base, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": 1}, "at least 2"),
        ({"model": "huge"}, "unknown model"),
        ({"budget": 0.0}, "trial.budget"),
        ({"bandwidths": ()}, "at least one link"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"text": ""}, "trial.text"),
    ],
)
def test_impossible_trials(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """At once, not when the first round is to be decided."""
    trial = contest(tmp_path).trial
    assert isinstance(trial, TrialSpec)
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(trial, **change)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({"ddp": 0.1, "apart": 0.1, "dilocco": 0.1}, "unknown strategy"),
        ({"ddp": 0.1}, "must have ddp and apart"),
        ({"ddp": 0.1, "apart": 0}, "learning rate"),
    ],
)
def test_impossible_references(references: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The gate needs both, and all are strategies of the catalogue."""
    spec = contest(tmp_path)
    assert isinstance(spec, ContestSpec)
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(spec, references=references)


def test_a_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    """Unknown keys, wrong types and missing files are told with the file's name."""
    text = (ROOT / "runs" / "contests" / "nano.toml").read_text()
    for wrong, message in ((text.replace("entries", "entry"), "entry"), (text + "x = = 1", "cannot|no contest"),
                           (text.replace("[100.0, 1000.0]", "100.0"), "must be a list")):  # fmt: skip
        path = tmp_path / "contest.toml"
        path.write_text(wrong)
        with pytest.raises(ConfigurationError, match=message):
            load_contest(path)
    with pytest.raises(ConfigurationError, match="no contest can be read"):
        load_contest(tmp_path / "none.toml")
