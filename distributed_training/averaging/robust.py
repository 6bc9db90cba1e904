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
import numpy.typing as npt

from distributed_training.averaging.codec import BLOCK, Floats
from distributed_training.averaging.rule_names import MEAN, parse_rule

Doubles = npt.NDArray[np.float64]


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


class TrimmedMean:
    """At each coordinate the `share` largest and the `share` smallest values are left out; the rest is averaged.

    Yin et al. (2018), "Byzantine-robust distributed learning: towards optimal statistical rates". Of n parts
    ceil(share * n) go at each end, but never all. Those that stay are weighted as in the mean. It bounds each single
    coordinate, which clipping does not, and costs more: what only few have seen (the row of a rare word) is left out
    at both ends and lost, and where batches differ the average is of the middle, not of all.
    """

    def __init__(self, share: float, name: str) -> None:
        self.name = name
        self._share = share

    def reduce(self, parts: Sequence[Floats], weights: Sequence[float], out: Floats) -> tuple[float, ...]:
        """See Rule; what is returned is the part of its coordinates that counted."""
        n = len(parts)
        ends = min(math.ceil(self._share * n), (n - 1) // 2)
        kept = np.zeros(n, dtype=np.int64)
        by = np.array(_normalised(weights))[:, None]
        for block in _blocks(out.size):
            values = np.stack([part[block] for part in parts]).astype(np.float64)
            order = np.argsort(values, axis=0, kind="stable")  # of equal values the lowest uid first
            counted = np.zeros(values.shape, dtype=bool)
            np.put_along_axis(counted, order[ends : n - ends], True, axis=0)
            kept += counted.sum(axis=1)
            scales = np.where(counted, by, 0.0)
            out[block] = (values * scales).sum(axis=0) / scales.sum(axis=0)
        return tuple(float(count / out.size) for count in kept)


class CenteredClip:
    """Parts are pulled to their middle where they are farther from it than `limit` times the median distance.

    Karimireddy, He, Jaggi (2021), "Learning from history for Byzantine robust optimization", without the history: the
    middle is at first the median of each coordinate, then what the step before made of it. Clip bounds how long a part
    is, this how far it is from the others: a part of usual length that points elsewhere is held as well. Parts that lie
    at the middle have no voice in the median distance, as zeros have none in Clip.
    """

    STEPS = 3

    def __init__(self, limit: float, name: str) -> None:
        self.name = name
        self._limit = limit

    def reduce(self, parts: Sequence[Floats], weights: Sequence[float], out: Floats) -> tuple[float, ...]:
        """See Rule; what is returned is how much of its distance from the middle each part kept in the last step."""
        shares = _normalised(weights)
        middle = _median(parts)
        kept: tuple[float, ...] = ()
        for _ in range(self.STEPS):
            distances = [_distance(part, middle) for part in parts]
            voices = [distance for distance in distances if distance > 0]
            longest = self._limit * statistics.median_low(voices) if voices else 0.0
            kept = tuple(longest / distance if distance > longest else 1.0 for distance in distances)
            _pull(middle, parts, [share * keep for share, keep in zip(shares, kept, strict=True)])
        out[:] = middle
        return kept


def rule_named(name: str) -> Rule:
    """The rule of that name, for one round.

    Raises:
        AveragingError: there is none; the message lists the known ones.
    """
    kind, number = parse_rule(name)
    if kind == "clip":
        return Clip(number, name)
    if kind == "trim":
        return TrimmedMean(number, name)
    if kind == "centered":
        return CenteredClip(number, name)
    return Mean()


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


def _blocks(size: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]


def _median(parts: Sequence[Floats]) -> Doubles:
    """The median of each coordinate [n], in float64, where differences of finite float32 stay finite."""
    middle = np.empty(parts[0].size, dtype=np.float64)
    for block in _blocks(middle.size):
        np.median(np.stack([part[block] for part in parts]).astype(np.float64), axis=0, out=middle[block])
    return middle


def _distance(part: Floats, middle: Doubles) -> float:
    """The L2 distance of two points [n]."""
    total = 0.0
    for block in _blocks(part.size):
        difference = part[block] - middle[block]
        total += float(np.dot(difference, difference))
    return math.sqrt(total)


def _pull(middle: Doubles, parts: Sequence[Floats], scales: Sequence[float]) -> None:
    """middle += sum(scale_i (x_i - middle)), in place."""
    for block in _blocks(middle.size):
        here = middle[block].copy()
        for part, scale in zip(parts, scales, strict=True):
            middle[block] += scale * (part[block] - here)
