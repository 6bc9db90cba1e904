"""Is what a reducer gave everybody what it had to make of the parts that it was sent? Pure.

The validator has the parts of one chunk as each contributor bound itself to them (averaging/packing.py), and the
chunk's average as everybody holds it. The rule of the reduction is applied again. Between two honest machines lie only
roundings: a rule that takes norms sums them in another order, so that a factor differs by 2^-24 of itself at most, and
each addition rounds once; `ROUNDING` times the sum of magnitudes is a hundred times that. A codec that rounds to steps
may round the other way where a value lies between two: few values differ then, each by a step, and the whole by far
less than `STEPS` of its length. A reducer that stays within these limits changes nothing that matters.

Who is to blame. A chunk that does not agree is the reducer's doing alone: it either computed something else, or took
bytes that are not the ones that their sender is bound to, which it had to refuse. It cannot be put on it by a sender,
who can show nothing but what it was bound to before, and whose bytes the reducer itself has held against that. A sender
that shows nothing leaves the question open, for this chunk and for the reducer; it is not paid for the epoch, as one
that shows no records is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distributed_training.averaging.codec import Codec, Floats, all_within
from distributed_training.averaging.robust import Rule
from distributed_training.scoring.gradient import AuditResult, Finding, on_contribution

ROUNDING = 1e-5  # of the sum of magnitudes
STEPS = 0.01  # of the length, where a codec rounds to steps
SMALLEST = 2.0**-120  # what is smaller may have been flushed to zero


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Whether an average is that of the parts, and the relative L2 difference; infinite if that does not fit a
    float."""

    agrees: bool
    difference: float


def compare(average: Floats, parts: Sequence[Floats], weights: Sequence[float], rule: Rule, codec: Codec) -> Agreement:
    """Hold the average [n] of a chunk, as everybody decoded it, against the parts (of each [n], in order of uid)."""
    expected = np.empty(average.size, dtype=np.float32)
    rule.reduce(parts, weights, expected)
    if not all_within(expected, codec.largest):
        np.clip(expected, -codec.largest, codec.largest, out=expected)
    lossless = codec.name == "none"
    if not lossless:
        codec.decode(codec.encode(expected), expected.size, expected)
    apart = np.abs(average.astype(np.float64) - expected)
    length = float(np.linalg.norm(expected.astype(np.float64)))
    difference = float(np.linalg.norm(apart)) / max(length, SMALLEST)
    if not lossless:
        return Agreement(agrees=difference <= STEPS, difference=difference)
    total = math.fsum(weights)
    magnitude = sum(
        weight / total * np.abs(part.astype(np.float64)) for part, weight in zip(parts, weights, strict=True)
    )
    return Agreement(agrees=bool((apart <= ROUNDING * magnitude + SMALLEST).all()), difference=difference)


def lied(reducer: int, epoch: int, difference: float) -> AuditResult:
    """The finding that a reducer's average is not that of what it was sent."""
    return on_contribution(reducer, epoch, Finding.NOT_REDUCED, difference=difference)
