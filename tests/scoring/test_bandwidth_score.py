"""Bandwidth from measured transfers only."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.scoring.bandwidth import Measured, bandwidth_score, measured_rate


def moved(amount: int, seconds: float = 1.0) -> Measured:
    return Measured(bytes=amount, seconds=seconds)


def test_rate_over_reference() -> None:
    """Half of the reference rate is a half."""
    assert bandwidth_score([moved(3_000_000, 6.0)], 1e6) == 0.5


def test_no_transfer_is_no_measurement() -> None:
    """What was not measured is None, never zero."""
    assert bandwidth_score([], 1e6) is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_transfer_without_a_duration_measures_nothing(seconds: float) -> None:
    """A clock that stood still or went back says nothing of the line."""
    assert measured_rate([moved(1000, seconds)]) is None
    assert measured_rate([moved(1000, seconds), moved(500)]) == 500


def test_nothing_moved_in_some_time_is_a_rate_of_zero() -> None:
    """A stalled transfer was measured."""
    assert bandwidth_score([moved(0, 10.0)], 1e6) == 0.0


def test_one_outlier_does_not_decide() -> None:
    """The median of several transfers stands against one stall and one burst."""
    assert measured_rate([moved(0), moved(100), moved(110), moved(120), moved(10**12)]) == 110


@given(st.lists(st.builds(moved, st.integers(0, 10**12), st.floats(1e-6, 1e6)), min_size=1))
def test_score_lies_in_unit_range_between_slowest_and_fastest(transfers: list[Measured]) -> None:
    """b is in [0, 1] and no rate is invented outside of what was measured."""
    rate = measured_rate(transfers)
    rates = [t.bytes / t.seconds for t in transfers]
    assert rate is not None
    assert min(rates) <= rate <= max(rates)
    assert 0.0 <= (bandwidth_score(transfers, 1e6) or 0.0) <= 1.0
