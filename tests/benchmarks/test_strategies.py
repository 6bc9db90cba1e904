"""The table of strategies: what is run, what is left to run, and what is written of it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.strategies import CASES, SEEDS, STEPS, SWEEPS, TRIED, path_of, pending, report
from distributed_training.arena.contest.interval import Interval
from distributed_training.arena.leaderboard import Row
from distributed_training.arena.optimizer import InnerConfig
from distributed_training.strategies.catalogue import CATALOGUE, build

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


def test_every_strategy_is_in_the_table_and_every_case_can_be_built() -> None:
    """By name, with its own settings; what was tried was tried on a seed that the table has not."""
    assert {case.strategy for case in CASES} == set(CATALOGUE)
    for case in (*CASES, *(case for cases in SWEEPS.values() for case in cases)):
        build(case.strategy, InnerConfig(learning_rate=case.learning_rate).spec(STEPS), case.options)
    assert TRIED not in SEEDS


def test_what_has_a_record_is_not_run_again(tmp_path: Path) -> None:
    """Seed by seed."""
    path_of(CASES[0], SEEDS[0], tmp_path).write_text("{}")
    left = [(case, seed) for case, seed, _ in pending(CASES[:2], SEEDS, tmp_path)]
    assert left[0] == (CASES[1], SEEDS[0])
    assert len(left) == 2 * len(SEEDS) - 1


def test_the_page(tmp_path: Path) -> None:
    """A row with its interval, - for a loss that was not reached, and what was tried, best first."""
    first, second = SWEEPS["ddp"][:2]
    for case, loss in ((first, 2.5), (second, 2.25)):
        path_of(case, TRIED, tmp_path).write_text(json.dumps({"loss": loss}))
    text = report([ROW], tmp_path, {"torch": "2", "wall_seconds": 3})
    assert "| ddp, 0.008 | 2.000 ± 0.100 | 4.0000 | 1.00 | 40.0 | - |" in text
    assert "| ddp | at 0.004: 2.250; at 0.002: 2.500 |" in text
    assert "Run on: torch 2." in text
