"""The learning rate against the C library's cosine and hand-computed values."""

from __future__ import annotations

import dataclasses
import math

import pytest

from distributed_training.run import OptimizerSpec
from distributed_training.strategies.schedule import cosine_of_pi_times, learning_rate

SPEC = OptimizerSpec(
    learning_rate=0.4,
    minimum_learning_rate=0.04,
    warmup_epochs=3,
    decay_epochs=103,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.1,
    clip_norm=1.0,
)


def test_cosine_agrees_with_the_c_library() -> None:
    """Within two units in the last place of 1."""
    for numerator in range(998):
        assert cosine_of_pi_times(numerator, 997) == pytest.approx(math.cos(math.pi * numerator / 997), abs=4.5e-16)


def test_cosine_at_known_points() -> None:
    """Exact where the value is a short binary fraction."""
    assert [cosine_of_pi_times(k, 6) for k in (0, 2, 4, 6)] == [1.0, 0.5, -0.5, -1.0]
    assert abs(cosine_of_pi_times(1, 2)) < 1e-40
    assert cosine_of_pi_times(1, 4) == math.sqrt(0.5)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4), (53, 0.22), (103, 0.04), (10**6, 0.04)],
)
def test_known_rates(epoch: int, rate: float) -> None:
    """Warm-up from a quarter, the peak, the middle, the end and after it."""
    assert learning_rate(SPEC, epoch) == pytest.approx(rate, rel=1e-14)


def test_decay_follows_the_cosine() -> None:
    """Every epoch after the warm-up, against the formula written out."""
    for epoch in range(3, 103):
        expected = 0.04 + 0.36 * (1 + math.cos(math.pi * (epoch - 3) / 100)) / 2
        assert learning_rate(SPEC, epoch) == pytest.approx(expected, rel=1e-14)


def test_no_warmup_starts_at_the_peak() -> None:
    """Zero warm-up epochs are allowed."""
    assert learning_rate(dataclasses.replace(SPEC, warmup_epochs=0), 0) == pytest.approx(0.4, rel=1e-15)
