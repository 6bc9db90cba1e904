"""Does what a miner put into the average agree with the records that it bound itself to? Pure.

Three questions, each of which an honest miner answers rightly whatever the machine, the codec or the model:

1. Weight: it must be the samples of its records. Exact.
2. Sum: at the coordinates that records show, the contribution is the samples-weighted mean of the records. Both are
   made of the same float32 numbers, so only roundings may lie between: of K additions, each at most 2^-24 of the sum of
   magnitudes, and of the codec, whose bound follows from what was decoded (codecs/errors.py). With error feedback the
   sender adds what it owed before, which nobody else knows: then nothing is concluded from the sum. Who widens the
   bound by large values that cancel has faked those records, which is what recomputing them finds.
3. Work: a miner that knows where records are looked at could send the right sums there and anything elsewhere. So the
   validator keeps values at coordinates of its own as well, drawn anew each round and told to nobody, and compares them
   with the gradient g of each record that it recomputes. The contribution c = w g + (1 - w) rest contains that record
   with its share of the samples w; the rest is other gradients of the same model, which do not point against it. So the
   signs of c and g agree more often than not: by 2/pi asin(sqrt(w)) even where gradients have nothing in common but
   noise, which is at least 0.64 sqrt(w), and by more where they do. Their surplus over chance, divided by sqrt(w), must
   be `alignment`. Where gradients have a few loud coordinates and many quiet ones, the rest may decide the signs of the
   quiet ones; so work is found as well where c and g point the same way, by that much of cosine over sqrt(w) and by
   more than chance can: CHANCE deviations of what random signs of the same magnitudes give. And |c| must not be more
   than `inflation` times a usual gradient of the miner. Signs, because they give each coordinate one voice, whatever
   its scale. Of numbers that have nothing to do with the work the surplus is 0 but for chance, 1 / sqrt(coordinates w);
   more is wanted where coordinates are so few that chance could reach the limit (`least_alignment`), nothing concluded
   where that is more than honest work has, nor from a record whose gradient is far smaller than the miner's others, as
   on a page that the model knows by heart: of that little is left in the sum. How large the others are, the records
   show. Both limits are measured on honest work (calibrate/), with the codec of the run. Late in training, when
   gradients are mostly noise, one honest record in some hundred points against all others for once; and where records
   show few coordinates, the sizes that they show are far off now and then. So one record alone convicts nobody: where
   it is not found, or is too small, twice as many are recomputed and looked for together, again and again up to all of
   them, of which the contribution is made and nothing else (`judge_together`).

What this cannot see: garbage in the shares that miners reduce, sent by one who is honest towards validators. It costs
the full work and is limited by the rule of the reduction. Where it touches the coordinates of the records it shows in
the average, which is not what all records add up to then (`unexplained`); by whom, the sender or the reducer, does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distributed_training.protocol import Record
from distributed_training.run import AuditSpec
from distributed_training.scoring.gradient import AuditResult, Finding, on_contribution

ROUNDING = 2.0**-24  # of a float32 operation
SMALLEST = 2.0**-126  # what is smaller may have been flushed to zero
LARGEST = 2.0**128  # no mean of float32 values is larger
USUAL = 0.3  # of the mean size; smaller gradients prove nothing
NOTHING = 0.25  # times what the record alone leaves in the sum
CHANCE = 4.0  # deviations of a surplus that is none; it must not reach the limit even then
HONEST = 0.64  # the surplus that gradients have where they share nothing but noise; a limit above it would find nothing
_SLACK = 4  # roundings of an addition with a factor, doubled

Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Put:
    """The records of one contributor, and the weight that it had in the average."""

    records: Sequence[Record]
    weight: float


def _length(values: Values) -> float:
    """In float64: squares of float32 values overflow."""
    return float(np.linalg.norm(values.astype(np.float64)))


@dataclass(frozen=True, eq=False)
class Gradients:
    """Recomputed records of one miner: samples and gradient [n] of each, at the validator's own coordinates."""

    each: Sequence[tuple[int, Values]]

    @property
    def samples(self) -> int:
        return sum(samples for samples, _ in self.each)

    @property
    def mean(self) -> Values:
        """By samples."""
        total = self.samples
        parts = (samples / total * gradient.astype(np.float64) for samples, gradient in self.each)
        return np.asarray(sum(parts), dtype=np.float32)

    @property
    def usual(self) -> float:
        """The mean of their lengths, by samples."""
        return math.fsum(samples * _length(gradient) for samples, gradient in self.each) / self.samples


def unexplained(average: Values, put: Sequence[Put]) -> NDArray[np.int64]:
    """Where an average without codec or clipping is not what all contributors' records add up to.

    Args:
        average: [C], at the coordinates that records show.
        put: all contributors.

    Returns:
        The positions, beyond all rounding; all of them, if some records show another number of coordinates.
    """
    records = [record for each in put for record in each.records]
    if any(len(record.gradient) != average.size for record in records):
        return np.arange(average.size)
    expected, magnitude = _expected(average.size, put)
    bound = (_SLACK * (len(records) + len(put)) + 8) * ROUNDING * magnitude + SMALLEST
    return np.flatnonzero(~(np.abs(average - expected) <= bound))


def distances(average: Values, put: Sequence[Put]) -> NDArray[np.float64]:
    """How far an average [C] is from what all records add up to, in their magnitudes; zeros if one shows other places.

    Arguments as of `unexplained`. A rule that restrains somebody leaves a distance as well.
    """
    if any(len(record.gradient) != average.size for each in put for record in each.records):
        return np.zeros(average.size)
    expected, magnitude = _expected(average.size, put)
    with np.errstate(over="ignore", invalid="ignore"):
        away = np.abs(average - expected) / (magnitude + SMALLEST)
    return np.nan_to_num(away, nan=0.0)


def _expected(size: int, put: Sequence[Put]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The weighted mean of all records' values [C], and that of their magnitudes."""
    total = math.fsum(each.weight for each in put)
    expected, magnitude = np.zeros(size), np.zeros(size)
    for each in put:
        samples = np.array([float(record.samples) for record in each.records])
        shown = np.array([record.gradient for record in each.records], dtype=np.float64)
        share = samples / samples.sum() * (each.weight / total)
        expected += share @ shown
        magnitude += share @ np.abs(shown)
    return expected, magnitude


@dataclass(frozen=True, eq=False)
class Sent:
    """What one miner sent in this validator's share, at those coordinates of its records that lie in it.

    `columns` [n]: which of a record's gradient values these are. `errors` [n]: how far the codec may be off; infinite
    where nothing is known.
    """

    columns: NDArray[np.int64]
    values: Values
    errors: Values


def check_weight(records: Sequence[Record], weight: float, max_weight: float) -> bool:
    """Whether the stated weight is that of the records, or all that one may weigh."""
    return weight == min(float(sum(record.samples for record in records)), max_weight)


def excess(records: Sequence[Record], sent: Sent) -> tuple[float, float]:
    """How many times the possible rounding lies between what was sent and the sum of the records, at the worst place.

    Returns:
        The excess, at most 1 for honest work, infinite where the records show too few values; 0 where nothing can be
        compared. And the relative L2 difference over the places that were.
    """
    use = np.isfinite(sent.errors)
    columns, values = sent.columns[use], sent.values[use].astype(np.float64)
    if not columns.size:
        return 0.0, 0.0
    if any(len(record.gradient) <= columns.max() for record in records):
        return math.inf, math.inf
    samples = np.array([float(record.samples) for record in records])
    shown = np.array([[record.gradient[column] for column in columns.tolist()] for record in records])  # [K, n]
    with np.errstate(over="ignore", invalid="ignore"):
        share = samples / samples.sum()
        expected, magnitude = share @ shown, share @ np.abs(shown)
        bound = (_SLACK * len(records) + 8) * ROUNDING * magnitude + sent.errors[use] + SMALLEST
        worst = float((np.abs(values - expected) / bound).max())
        relative = float(np.linalg.norm(values - expected)) / max(float(np.linalg.norm(expected)), SMALLEST)
    return (worst, relative) if math.isfinite(worst) and magnitude.max() <= LARGEST else (math.inf, math.inf)


def judge_sum(
    uid: int, epoch: int, records: Sequence[Record], weight: float, max_weight: float, sent: Sent | None
) -> AuditResult:
    """The first two questions; without `sent`, as in a run with error feedback, only the first."""
    if not check_weight(records, weight, max_weight):
        return on_contribution(uid, epoch, Finding.WRONG_WEIGHT)
    worst, relative = (0.0, None) if sent is None else excess(records, sent)
    finding = Finding.AGREES if worst <= 1 else Finding.NOT_THE_SUM
    return on_contribution(uid, epoch, finding, difference=relative)


def alignment(sent: Values, gradient: Values, share: float, *, zeros: bool) -> tuple[float, int]:
    """The surplus of equal over different signs, divided by the root of the record's share of the samples.

    Args:
        sent, gradient: [n], what was sent and what was recomputed at the same coordinates.
        zeros: whether the codec makes zeros of small values; then zeros say nothing, and do not count.

    Returns:
        The surplus, 0 where nothing counts, and how many coordinates count.
    """
    counts = gradient != 0
    if zeros:
        counts &= sent != 0
    n = int(np.count_nonzero(counts))
    if not n:
        return 0.0, 0
    surplus = float(np.sum(np.sign(sent[counts]) * np.sign(gradient[counts]))) / n
    return surplus / math.sqrt(share), n


def points_along(sent: Values, gradient: Values, share: float, limit: float) -> bool:
    """Whether the cosine of the two [n] is at least `limit` times the root of the share, and no chance."""
    a, b = sent.astype(np.float64), gradient.astype(np.float64)
    product = a * b
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    needed = max(limit * math.sqrt(share) * lengths, CHANCE * float(np.linalg.norm(product)))
    return lengths > 0 and float(product.sum()) >= needed


def least_alignment(coordinates: int, share: float) -> float:
    """What chance does not reach, with so many coordinates and that share of the samples."""
    return CHANCE / math.sqrt(coordinates * share) if coordinates else math.inf


def relative_size(record: Record, records: Sequence[Record]) -> float:
    """How large the gradient of a record is, as it shows it, against the mean over all `records`; 0 if all are zero."""
    sizes = [math.hypot(*each.gradient) * each.samples for each in records]
    mean = math.fsum(sizes) / max(1, sum(each.samples for each in records))
    return math.hypot(*record.gradient) / mean if mean else 0.0


def inflation(sent: Values, gradient: Values, relative: float) -> float:
    """How large a contribution is against a usual gradient, which is `gradient` over its relative size; [n] both."""
    length = _length(gradient)
    return _length(sent) / length * relative if length else math.inf


def judge_work(
    uid: int,
    epoch: int,
    sent: Values,
    gradient: Values,
    share: float,
    relative: float,
    audit: AuditSpec,
    *,
    zeros: bool,
) -> AuditResult | None:
    """The third question, for one recomputed record; None if it stays open.

    Args:
        sent, gradient: float32 [n], at the validator's own coordinates.
        share: of the miner's samples.
        relative: the record's `relative_size`.
        zeros: see `alignment`.
    """
    if relative < USUAL:
        return None
    size = inflation(sent, gradient, relative)
    return _judged(uid, epoch, sent, gradient, share, size, audit, zeros=zeros)


def judge_together(
    uid: int, epoch: int, sent: Values, gradients: Gradients, share: float, audit: AuditSpec, *, zeros: bool
) -> AuditResult | None:
    """The third question for several recomputed records, with their `share` of the samples; None if it stays open.

    How large a usual gradient is, they say themselves: of all of them no mean is larger.
    """
    usual = gradients.usual
    size = _length(sent) / usual if usual else math.inf
    return _judged(uid, epoch, sent, gradients.mean, share, size, audit, zeros=zeros)


def _judged(
    uid: int,
    epoch: int,
    sent: Values,
    gradient: Values,
    share: float,
    size: float,
    audit: AuditSpec,
    *,
    zeros: bool,
) -> AuditResult | None:
    if not gradient.any():
        return None
    if size > audit.inflation:
        return on_contribution(uid, epoch, Finding.INFLATED, size=size)
    surplus, n = alignment(sent, gradient, share, zeros=zeros)
    if _length(sent) < NOTHING * share * _length(gradient):  # of these records alone more is left
        holds_it = False
    elif (needed := max(audit.alignment, least_alignment(n, share))) > HONEST:
        return None
    else:
        holds_it = surplus >= needed or points_along(sent, gradient, share, audit.alignment)
    return on_contribution(uid, epoch, Finding.AGREES if holds_it else Finding.NOT_ITS_WORK, surplus=surplus, size=size)
