"""What a contribution does for the model: how much it lowers the loss, on the miner's own pages and on others. Pure.

Asked of a miner that has shown where its steps led to. The probe is θ - w (θ - end): the state with this contribution
alone, at the weight w that it has in the average. Its loss is compared with that at θ, micro-batch by micro-batch, on
some of the pages that the miner says it has trained, and on fresh ones: pages that this epoch gives to nobody, drawn
from the validator's own secret after the contribution was bound, the same for all miners. Both means come with a
one-sided bound by Student's t.

Where both bounds are at or below zero, the contribution does with confidence no good anywhere: nothing was trained, or
against the model. That fails. The gap between own and fresh pages is what training on exactly these pages leaves
behind; it is told with its bounds, and decides nothing: one look is too noisy for that (who copies another's work has a
gap of zero, an honest miner one somewhat above), and replays find the same with certainty.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """Mean losses at θ less those at the probe, in nats a token, and bounds that the true means lie below (or above)
    with the run's confidence."""

    own: float
    own_high: float
    fresh: float
    fresh_high: float
    gap: float
    gap_low: float
    gap_high: float

    @property
    def none(self) -> bool:
        """Whether it does, with confidence, no good anywhere."""
        return self.own_high <= 0 and self.fresh_high <= 0


def improvement(own: Sequence[float], fresh: Sequence[float], confidence: float) -> Improvement:
    """From the differences of the losses, one a micro-batch; at least two of each.

    Raises:
        ValueError: fewer.
    """
    mine, others = _error(own), _error(fresh)
    mean, other = statistics.fmean(own), statistics.fmean(fresh)
    both = math.hypot(mine, others)
    reach = student(confidence, min(len(own), len(fresh)) - 1) * both  # of the smaller sample: to the safe side
    return Improvement(
        own=mean,
        own_high=mean + student(confidence, len(own) - 1) * mine,
        fresh=other,
        fresh_high=other + student(confidence, len(fresh) - 1) * others,
        gap=mean - other,
        gap_low=mean - other - reach,
        gap_high=mean - other + reach,
    )


def student(confidence: float, freedom: int) -> float:
    """The quantile of Student's t by its expansion about the normal's (Abramowitz & Stegun 26.7.5).

    Within 1 % of the exact one for a confidence of at most 0.999 from 7 degrees of freedom on.
    """
    z = statistics.NormalDist().inv_cdf(confidence)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean."""
    if len(values) < 2:
        raise ValueError("one value says nothing of how they scatter")
    return statistics.stdev(values) / math.sqrt(len(values))
