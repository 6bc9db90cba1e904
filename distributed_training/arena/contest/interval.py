"""The mean of a few paired differences, and the interval that it lies in: Student's t, in plain arithmetic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """Mean, and the ends of its two-sided confidence interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], confidence: float) -> Interval:
    """Of at least two values, taken as independent draws of a normal distribution."""
    mean = statistics.fmean(values)
    half = quantile(confidence, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def quantile(confidence: float, degrees: int) -> float:
    """t such that a Student variable of `degrees` of freedom lies in [-t, t] with that probability.

    By bisection of the closed form for whole degrees (Abramowitz & Stegun 26.7.3 and 26.7.4).
    """
    low, high = 0.0, 1.0
    while within(high, degrees) < confidence:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def within(t: float, degrees: int) -> float:
    """The probability of [-t, t], t >= 0."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    term = 1.0 if degrees % 2 == 0 else math.cos(angle)
    total, k = 0.0, 0 if degrees % 2 == 0 else 1
    while k <= degrees - 2:
        total += term
        k += 2
        term *= square * (k - 1) / k
    return sine * total if degrees % 2 == 0 else (angle + sine * total) * 2 / math.pi
