"""The bandwidth score: how fast does a miner move data in real transfers with this validator?

Only transfers that the validator measured itself are used; what a miner says of its own speed, or of another's, is not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One transfer between this validator and a miner, in either direction: bytes moved in so many seconds."""

    bytes: int
    seconds: float


def measured_rate(transfers: Iterable[Measured]) -> float | None:
    """The median rate in bytes per second; None if nothing was measured, which is not the same as zero.

    The median, because one transfer on a busy line says little of the line. A transfer that took no time, or whose
    clock went back, measures nothing; one that moved no byte in some time is a rate of zero.
    """
    rates = [t.bytes / t.seconds for t in transfers if math.isfinite(t.seconds) and t.seconds > 0 and t.bytes >= 0]
    return statistics.median(rates) if rates else None


def bandwidth_score(transfers: Iterable[Measured], reference_rate: float) -> float | None:
    """b in [0, 1]: the measured rate over the run's reference rate in bytes per second; None if not measured."""
    rate = measured_rate(transfers)
    return None if rate is None else min(1.0, rate / reference_rate)
