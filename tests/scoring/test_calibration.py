"""From few measurements to limits that honest work stays within: against exact values and a simulation."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from distributed_training.run import load_run
from distributed_training.scoring.calibration import (
    Limits,
    document,
    limits,
    lower,
    passing,
    tolerance_factor,
    updated,
    upper,
)
from template.errors import ConfigurationError, StateError

RUNS = Path(__file__).parents[2] / "runs"
FOUND = Limits(loss_tolerance=2e-5, gradient_tolerance=3e-5, alignment=0.25, inflation=3.5)


@pytest.mark.parametrize("n", [10, 20, 100, 1000])
def test_the_factor_is_that_of_a_one_sided_tolerance_interval(n: int) -> None:
    """The exact one follows from the noncentral t distribution."""
    exact = stats.nct.ppf(0.95, n - 1, stats.norm.ppf(1 - 1e-3) * math.sqrt(n)) / math.sqrt(n)
    assert tolerance_factor(n) == pytest.approx(exact, rel=0.015)


def test_a_limit_holds_as_often_as_it_promises() -> None:
    """Log-normal numbers: the true rate beyond the limit is at most 1e-3, nineteen times of twenty."""
    random = np.random.default_rng(0)
    beyond = []
    for _ in range(400):
        tail = upper(np.exp(random.normal(-9, 0.7, 40)).tolist())
        beyond.append(1 - stats.norm.cdf((math.log(tail.limit) + 9) / 0.7))
    assert np.mean(np.array(beyond) <= 1e-3) >= 0.93
    assert np.mean(beyond) < 1e-3


def test_what_was_seen_is_always_allowed() -> None:
    """However far it lies from the rest; and both sides are one rule."""
    values = [1e-6] * 30 + [1e-2]
    assert upper(values).limit >= 1e-2
    assert lower([1.0] * 30 + [1e-3]).limit <= 1e-3
    some = [1e-6, 2e-6, 4e-6] * 5
    assert lower([1 / value for value in some]).limit == pytest.approx(1 / upper(some).limit)


def test_equal_bits_are_no_certainty() -> None:
    """Differences of zero count as one rounding."""
    assert upper([0.0] * 20).limit == pytest.approx(2.0**-24)


def test_too_few_measurements_conclude_nothing() -> None:
    """Nothing is invented."""
    with pytest.raises(StateError, match="at least 10"):
        upper([1e-6] * 9)


def test_the_worst_variation_and_the_margins_count() -> None:
    """Rounded to two digits, to the side that hurts no honest miner."""
    few, many = upper([1e-7] * 20), upper([3.14159e-7] * 20)
    one, whole, size = [0.777] * 20, lower([0.9] * 20), [upper([1.5] * 20)]
    found = limits([few, many], [many], one, whole, size, least=0.05, margin=10, contribution_margin=1.5)
    assert found == Limits(loss_tolerance=3.2e-6, gradient_tolerance=3.2e-6, alignment=0.5, inflation=2.3)


def test_the_limit_of_alignment_costs_few_second_looks_and_convicts_nobody() -> None:
    """One record in fifty may miss it; all together keep the margin from it, and what is next to chance is refused."""

    def found(one: list[float], whole: float) -> float:
        tail = [upper([1e-6] * 20)]
        return limits(
            tail, tail, one, lower([whole] * 20), tail, least=0.05, margin=10, contribution_margin=1.5
        ).alignment

    ones = [number / 1000 for number in range(1000)]
    assert found(ones, 1.0) == 0.05
    assert found([0.2 + each for each in ones], 1.0) == pytest.approx(0.21, abs=0.011)
    assert found([0.2 + each for each in ones], 0.21) == 0.14
    with pytest.raises(StateError, match="do not stand out"):
        found(ones, 0.05)


def test_what_would_pass_is_counted_as_an_audit_does() -> None:
    """Both differences within the tolerance over the threshold."""
    pairs = [(0.0, 0.0), (2.1e-5, 3.2e-5), (3e-5, 0.0), (0.0, 1.0)]
    assert passing(pairs, FOUND, 0.9) == 0.5


def test_a_run_spec_takes_the_limits_over(tmp_path: Path) -> None:
    """Values and hash, comments and all other lines stay; doing it again changes nothing more."""
    text = (RUNS / "nano.toml").read_text()
    file = document({"run": "nano"}, FOUND)
    changed = updated(text, FOUND, file)
    before, after = tomllib.loads(text), tomllib.loads(changed)
    values = {"loss_tolerance": 2e-5, "gradient_tolerance": 3e-5, "alignment": 0.25, "inflation": 3.5}
    assert after["audit"] == {**before["audit"], **values, "calibration": hashlib.sha256(file).hexdigest()}
    assert {**after, "audit": None} == {**before, "audit": None}
    assert changed.count("#") == text.count("#")
    assert updated(changed, FOUND, file) == changed
    path = tmp_path / "nano.toml"
    path.write_text(changed)
    assert load_run(path).audit.alignment == 0.25


@pytest.mark.parametrize("text", ["name = 1\n", "\n[audit]\nloss_tolerance = 1\n"])
def test_a_file_without_a_place_for_them_is_refused(text: str) -> None:
    """Rather than guessed at."""
    with pytest.raises(ConfigurationError, match=r"\[audit\]"):
        updated(text, FOUND, b"")


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.stem)
def test_what_a_run_names_as_its_calibration_is_there(path: Path) -> None:
    """The file beside it, unchanged, with these very limits; and the cheats that were tried would not pass."""
    run = load_run(path)
    if not run.audit.calibration:
        pytest.skip("nobody calibrated it: it needs the GPUs that it is meant for")
    file = path.with_suffix(".calibration.json").read_bytes()
    assert hashlib.sha256(file).hexdigest() == run.audit.calibration
    measured = json.loads(file)
    assert {name: getattr(run.audit, name) for name in measured["limits"]} == measured["limits"]
    assert set(measured["passing"].values()) == {0.0}
