"""Student's interval against the printed table and plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distributed_training.arena.contest.interval import interval, quantile, within


@pytest.mark.parametrize(
    ("degrees", "confidence", "expected"),
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.30265),
        (2, 0.99, 9.92484),
        (3, 0.99, 5.84091),
        (4, 0.99, 4.60409),
        (5, 0.95, 2.57058),
        (9, 0.999, 4.78091),
        (30, 0.95, 2.04227),
    ],
)
def test_the_printed_table(degrees: int, confidence: float, expected: float) -> None:
    """As in every book of tables."""
    assert quantile(confidence, degrees) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("degrees", [1, 2, 3, 6, 11])
def test_the_integral_of_the_density(degrees: int) -> None:
    """The closed form is the integral of Student's density, taken by the trapezoidal rule."""
    t = np.linspace(-1.7, 1.7, 200_001)
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    density = scale * (1 + t * t / degrees) ** (-(degrees + 1) / 2)
    assert within(1.7, degrees) == pytest.approx(float(np.trapezoid(density, t)), rel=1e-8)


def test_an_interval_covers_as_often_as_it_says() -> None:
    """Of 4,000 intervals of 90 % over four draws, 90 % hold the mean."""
    draws = np.random.default_rng(1).normal(3.0, 2.0, (4000, 4))
    found = [interval(list(row), 0.9) for row in draws]
    covered = sum(i.low <= 3.0 <= i.high for i in found) / len(found)
    assert covered == pytest.approx(0.9, abs=0.02)
    assert found[0].mean == pytest.approx(draws[0].mean())


def test_equal_values_leave_no_doubt() -> None:
    """The interval of a constant is a point."""
    found = interval([0.25, 0.25, 0.25], 0.99)
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)
