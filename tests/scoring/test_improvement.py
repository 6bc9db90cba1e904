"""What a contribution does to the loss: bounds that hold as often as they say, against tables and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from distributed_training.scoring.improvement import improvement, student


@pytest.mark.parametrize(
    ("confidence", "freedom", "exact"),
    [
        (0.99, 7, 2.998),
        (0.995, 9, 3.250),
        (0.999, 7, 4.785),
        (0.999, 15, 3.733),
        (0.999, 30, 3.385),
        (0.99, 100, 2.364),
    ],
)
def test_student_is_that_of_the_tables(confidence: float, freedom: int, exact: float) -> None:
    """Within one percent."""
    assert student(confidence, freedom) == pytest.approx(exact, rel=0.01)


def test_the_numbers_of_an_improvement() -> None:
    """Means, the gap, and bounds on the right side of each."""
    found = improvement([0.3, 0.1] * 4, [0.1, 0.0] * 4, 0.99)
    assert (found.own, found.fresh, found.gap) == (pytest.approx(0.2), pytest.approx(0.05), pytest.approx(0.15))
    error = np.std([0.3, 0.1] * 4, ddof=1) / np.sqrt(8)
    assert found.own_high == pytest.approx(0.2 + 2.998 * error, rel=0.01)
    assert found.gap_low < found.gap < found.gap_high
    assert not found.none


def test_nothing_at_all_and_harm_are_no_improvement() -> None:
    """Zeros to the last; losses that rise everywhere. Harm on one side only, or within the noise, says nothing."""
    zeros, harm, help_, noise = [0.0] * 8, [-0.2, -0.3] * 4, [0.2, 0.3] * 4, [-1.0, 0.9] * 4
    assert improvement(zeros, zeros, 0.999).none
    assert improvement(harm, harm, 0.999).none
    for own, fresh in ((harm, help_), (help_, harm), (noise, noise), (zeros, help_)):
        assert not improvement(own, fresh, 0.999).none


def test_one_that_does_nothing_but_noise_is_seldom_convicted() -> None:
    """Both bounds below zero by chance: far less often than one in a hundred at the lowest confidence allowed."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(3000, 2, 8))
    assert sum(improvement(list(own), list(fresh), 0.99).none for own, fresh in draws) <= 6


def test_one_value_is_refused() -> None:
    """It says nothing of how values scatter."""
    with pytest.raises(ValueError, match="scatter"):
        improvement([1.0], [1.0, 2.0], 0.99)
