"""The table of strategies: what is run, what is left to run, and what is written of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.strategies import (
    CASES,
    PUBLISHED,
    ROOT,
    SEEDS,
    STEPS,
    SWEEPS,
    TRIED,
    Case,
    made_rows,
    path_of,
    pending,
    plan_of,
    read,
    report,
    subject_of,
)
from distributed_training.arena.contest.interval import Interval
from distributed_training.arena.leaderboard import Row
from distributed_training.arena.optimizer import InnerConfig
from distributed_training.arena.record import VERSION
from distributed_training.strategies.catalogue import CATALOGUE, build
from template.errors import RecordMismatch

ROW = Row(
    name="ddp, 0.008",
    loss=Interval(2.0, 1.9, 2.1),
    mean=2.0,
    seeds=3,
    sent=1e6,
    rate=4.0,
    seconds={"100 Mbit/s": 40.0},
    until={"100 Mbit/s": None},
    metric=None,
)


def write_record(case: Case, seed: int, folder: Path, loss: float = 2.0) -> Path:
    """What of a record says whose it is."""
    made = {"plan": dataclasses.asdict(plan_of(seed)), "subject": dataclasses.asdict(subject_of(case))}
    path = path_of(case, seed, folder)
    path.write_text(json.dumps({"version": VERSION, **made, "loss": loss}))
    return path


def test_every_strategy_is_in_the_table_and_every_case_can_be_built() -> None:
    """By name, with its own settings; what was tried was tried on a seed that the table has not."""
    assert {case.strategy for case in CASES} == set(CATALOGUE)
    for case in (*CASES, *(case for cases in SWEEPS.values() for case in cases)):
        build(case.strategy, InnerConfig(learning_rate=case.learning_rate).spec(STEPS), case.options)
    assert TRIED not in SEEDS


def test_what_has_a_record_is_not_run_again(tmp_path: Path) -> None:
    """Seed by seed."""
    write_record(CASES[0], SEEDS[0], tmp_path)
    left = [(case, seed) for case, seed, _ in pending(CASES[:2], SEEDS, tmp_path)]
    assert left[0] == (CASES[1], SEEDS[0])
    assert len(left) == 2 * len(SEEDS) - 1


def test_a_record_of_something_else_is_refused(tmp_path: Path) -> None:
    """Of another seed, strategy or setting, whatever its name says; nothing by hand gets into the table."""
    path = write_record(CASES[0], SEEDS[0], tmp_path)
    assert read(path, CASES[0], SEEDS[0])["loss"] == 2.0
    faster = dataclasses.replace(CASES[0], learning_rate=2 * CASES[0].learning_rate)
    for case, seed in ((CASES[0], SEEDS[1]), (CASES[1], SEEDS[0]), (faster, SEEDS[0])):
        with pytest.raises(RecordMismatch, match="move it away"):
            read(path, case, seed)
    path.rename(path_of(CASES[1], SEEDS[0], tmp_path))
    with pytest.raises(RecordMismatch, match="move it away"):
        list(pending(CASES[:2], SEEDS, tmp_path))


def test_the_page(tmp_path: Path) -> None:
    """A row with its interval, - for a loss that was not reached, and what was tried, best first."""
    first, second = SWEEPS["ddp"][:2]
    for case, loss in ((first, 2.5), (second, 2.25)):
        write_record(case, TRIED, tmp_path, loss)
    text = report([ROW], tmp_path, {"torch": "2", "wall_seconds": 3})
    assert "| ddp, 0.008 | 2.000 ± 0.100 | 4.0000 | 1.00 | 40.0 | - |" in text
    assert "| ddp | at 0.004: 2.250; at 0.002: 2.500 |" in text
    assert "Run on: torch 2." in text


def test_the_published_table_is_of_the_published_records() -> None:
    """Each row of docs/strategies.md follows from them; none was written by hand."""
    made, machine = made_rows(PUBLISHED)
    again = report(made, PUBLISHED, machine).splitlines()
    shown = (ROOT / "docs" / "strategies.md").read_text().splitlines()
    rows = [line for line in again[: again.index("## What was tried")] if line.startswith("| ")]
    assert len(rows) == 1 + len(CATALOGUE)
    assert [line for line in shown[: shown.index("## What was tried")] if line.startswith("| ")] == rows
