"""What a reducer makes of the parts of a chunk: rules, by the names that the run spec has (rule_names.py). Pure.

A rule sees one chunk at a time, because parts arrive as streams of chunks: a rule over whole shares would have to hold
all of everybody's parts before the first byte of the average could leave. Every reducer applies the rule to its own
share and everybody takes the bytes that it sends, so all hold the same average even where arithmetic differs between
machines.

What a part's values may be at all (finite, as many as are due, within the codec's range) is checked on arrival.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from distributed_training.averaging.codec import BLOCK, Floats
from distributed_training.averaging.rule_names import MEAN, parse_rule


class Rule(Protocol):
    """How the parts of a chunk become one. One object serves a round, from several threads at once."""

    @property
    def name(self) -> str:
        """As the run spec has it."""
        ...

    def reduce(self, parts: Sequence[Floats], weights: Sequence[float], out: Floats) -> tuple[float, ...]:
        """The average of `parts` (n of float32 [chunk], finite, in ascending order of uid) into `out` [chunk].

        Args:
            weights: [n], positive; their sum need not be 1.

        Returns:
            [n], each in [0, 1]: how much of each part counted, 1 for all of it.
        """
        ...


class Mean:
    """sum(w_i x_i) / sum(w_i), to the bit (see `weighted_mean`)."""

    name = MEAN

    def reduce(self, parts: Sequence[Floats], weights: Sequence[float], out: Floats) -> tuple[float, ...]:
        """See Rule."""
        weighted_mean(parts, weights, out)
        return (1.0,) * len(parts)


class Clip:
    """The weighted mean of parts whose L2 norm is at most `limit` times the median norm of all; longer ones are scaled.

    One voice each in the median, whatever the weights: a weight is only claimed. Of an even number of norms the lower
    of the middle two counts, so one of two cannot raise the limit for itself. Parts that are zero have no voice: a
    chunk of rarely used rows is zero at most members, and what the others learned must not be clipped to nothing. A
    chunk that is zero at all but one is therefore taken as it is: what one alone sends cannot be told from what one
    alone has seen.

    Norms are taken chunk by chunk. That is stricter than one norm for a whole share: nobody can be loud in one chunk at
    the price of silence in the others. The whole stays bounded as well: as long as more than half of the senders of
    each chunk are honest, no chunk of a part counts with more than `limit` times what some honest member sent there.
    Norms of 2^18 gradient values differ little between members with batches of one size; where noise prevails they grow
    as one over the root of the batch, so a member that trained a tenth of the others' samples is clipped a little. The
    norm of a few values says little, so shares are cut into chunks without a short rest (partition.py), and only shares
    that are tiny as a whole are clipped more than they should be.
    """

    def __init__(self, limit: float, name: str) -> None:
        self.name = name
        self._limit = limit

    def reduce(self, parts: Sequence[Floats], weights: Sequence[float], out: Floats) -> tuple[float, ...]:
        """See Rule. The bits are those of Mean where no part is too long."""
        norms = [norm(part) for part in parts]
        voices = [length for length in norms if length > 0]
        longest = self._limit * statistics.median_low(voices) if voices else 0.0
        kept = tuple(longest / length if length > longest else 1.0 for length in norms)
        _weighted_sum(parts, [scale * k for scale, k in zip(_normalised(weights), kept, strict=True)], out)
        return kept


def rule_named(name: str) -> Rule:
    """The rule of that name, for one round.

    Raises:
        AveragingError: there is none; the message lists the known ones.
    """
    limit = parse_rule(name)
    return Mean() if limit is None else Clip(limit, name)


def weighted_mean(parts: Sequence[Floats], weights: Sequence[float], out: Floats) -> None:
    """sum(w_i x_i) / sum(w_i) of equally long parts [n] into `out` [n], summed in float32 in the given order.

    Weights are normalised first, so no sum of finite parts overflows. Multiplications and additions are rounded one by
    one as IEEE says, so anybody can recompute the bits; the error is below (parts + 1) 2^-24 sum(w_i |x_i|) / sum(w_i).
    """
    _weighted_sum(parts, _normalised(weights), out)


def norm(part: Floats) -> float:
    """The L2 norm of float32 values [n], in float64: no finite part overflows or vanishes."""
    total = 0.0
    for start in range(0, part.size, BLOCK):
        block = part[start : start + BLOCK].astype(np.float64)
        total += float(np.dot(block, block))
    return math.sqrt(total)


def _normalised(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _weighted_sum(parts: Sequence[Floats], scales: Sequence[float], out: Floats) -> None:
    """sum(scale_i x_i), the scales rounded to float32 first."""
    factors = [np.float32(scale) for scale in scales]
    product = np.empty(min(BLOCK, out.size), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # looked for afterwards
        for start in range(0, out.size, BLOCK):
            block = out[start : start + BLOCK]
            scaled = product[: block.size]
            np.multiply(parts[0][start : start + BLOCK], factors[0], out=block)
            for part, factor in zip(parts[1:], factors[1:], strict=True):
                np.multiply(part[start : start + BLOCK], factor, out=scaled)
                np.add(block, scaled, out=block)
