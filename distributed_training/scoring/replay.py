"""Does a stretch of a miner's own steps come out again, and is it what the miner put into the average? Pure.

A miner that makes inner steps binds itself, before anybody can ask, to its records and to marks: hashes of where it
stood before its first step, after every `stretch` steps, and at the end. What follows is asked of each, at no cost:

1. Chain: the marks are where they must be, and the first one is the base state's parameters, with the inner state that
   the epoch before ended with, or an empty one.
2. Sum: what the last mark says it has moved at the coordinates of the records is what it put in (contribution.py).

Of some, drawn from the validator's own secret when records and marks are there, one stretch is looked at:

3. Replay: from the state at its beginning, which the miner shows and whose hash it committed to, the stretch is
   computed again with the assigned pages. The first record is a gradient at exactly known parameters, so it is held to
   the same tolerances as everywhere. After that two machines drift apart, since each step starts where the one before
   ended; what counts is how far the reported end lies from the replayed one, relative to how far the replay has moved:

       |reported - replayed| / |replayed - start|        the same for each vector of the inner state

   Who did not train is off by 1, who trained on other data or elsewhere by about 1 or more, and who scaled its steps by
   a by |a - 1|. Honest machines differ by rounding (benchmarks/replay.py).
4. End: base - end is what it has put in, exactly where the codec loses nothing, at coordinates that only the validator
   knows; with a lossy codec or error feedback its signs and size are (`judge_work` with all of the work). What a sparse
   codec has picked is of many epochs: of that only the size is looked at, and garbage is left to the reduction's rule.

Who fakes one stretch of S is found with a chance of share / S an epoch, and loses the pay of `penalty_epochs`.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from distributed_training.protocol import Mark, Record
from distributed_training.run import AuditSpec, ReplaySpec
from distributed_training.scoring.contribution import inflation, judge_work
from distributed_training.scoring.gradient import AuditResult, Finding, judge, on_contribution
from distributed_training.scoring.improvement import Improvement
from distributed_training.scoring.sampling import duplicates

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Origin:
    """What an epoch's first mark may be: the hash of the base's parameters, and of the inner states it may begin with.

    `before`: the inner state that the epoch before ended with, where that is known; `empty`: that of no steps.
    """

    params: str
    empty: str
    before: str | None


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A stretch computed again: its records, the assigned pages, and how far the reported end is off (`drift`)."""

    records: tuple[Record, ...]
    pages: tuple[tuple[int, ...], ...]
    drift: float


def judge_chain(
    uid: int, epoch: int, records: Sequence[Record], marks: Sequence[Mark], origin: Origin, stretch: int
) -> AuditResult:
    """The first question."""
    ends = [*range(0, len(records), stretch), len(records)]
    if [mark.after for mark in marks] != ends or any(m.steps != marks[0].steps + m.after for m in marks):
        return on_contribution(uid, epoch, Finding.NOT_COMMITTED)
    if marks[0].params != origin.params:
        return on_contribution(uid, epoch, Finding.OTHER_BASE)
    if origin.before is not None and marks[0].inner not in (origin.before, origin.empty):
        return on_contribution(uid, epoch, Finding.OTHER_INNER_STATE)
    return on_contribution(uid, epoch, Finding.AGREES)


def as_records(records: Sequence[Record], marks: Sequence[Mark]) -> tuple[Record, ...]:
    """One record that stands for all where a contribution is held against their sum: it shows what was moved."""
    if not records or not marks:
        return tuple(records)
    samples = sum(record.samples for record in records)
    return (Record(number=0, pages=(), samples=samples, loss=0.0, gradient=marks[-1].moved),)


def replay_rate(reported: Mapping[int, Sequence[Record]], audit: AuditSpec, replay: ReplaySpec) -> float:
    """The chance that a miner has a stretch replayed: as told, within what audits may cost for all of them together."""
    counts = [len(records) for records in reported.values() if records]
    if not counts:
        return replay.share
    return min(replay.share, audit.overhead * statistics.median(counts) / (replay.stretch * len(counts)))


def drawn_stretches(
    reported: Mapping[int, Sequence[Record]],
    marks: Mapping[int, Sequence[Mark]],
    audit: AuditSpec,
    replay: ReplaySpec,
    rng: random.Random,
) -> dict[int, int]:
    """By uid the stretch to replay, between that mark and the next; `rng` must be unpredictable to miners.

    Records whose gradients are equal to the bit cannot all be work: their stretches are replayed for certain.
    """
    rate, suspect = replay_rate(reported, audit, replay), duplicates(reported, rng)
    chosen = {}
    for uid, own in marks.items():
        if len(own) < 2:
            continue
        if uid in suspect:
            position = min(suspect[uid])
            chosen[uid] = max(i for i, mark in enumerate(own[:-1]) if i == 0 or mark.after <= position)
        elif rng.random() < rate:
            chosen[uid] = rng.randrange(len(own) - 1)
    return chosen


def drift(start: Floats, replayed: Floats, reported: Floats) -> float:
    """|reported - replayed| / |replayed - start|; a stretch that moves nothing is matched by the same bits only."""
    off = float(np.linalg.norm(np.subtract(reported, replayed, dtype=np.float64)))
    moved = float(np.linalg.norm(np.subtract(replayed, start, dtype=np.float64)))
    if moved == 0:
        return 0.0 if off == 0 else math.inf
    return off / moved


def judge_replay(
    uid: int, epoch: int, reported: Sequence[Record], replayed: Replayed, audit: AuditSpec, replay: ReplaySpec
) -> AuditResult:
    """The third question, of a stretch's records in their order.

    Raises:
        StateError: the validator's own numbers are not finite.
    """
    lenient = replace(audit, loss_tolerance=math.inf, gradient_tolerance=math.inf)
    worst: AuditResult | None = None
    for index, (own, again, pages) in enumerate(zip(reported, replayed.records, replayed.pages, strict=True)):
        found = judge(uid, epoch, own, again, pages, audit if index == 0 else lenient)
        if worst is None or (worst.passed and not found.passed):
            worst = found
    assert worst is not None, "a stretch has a record"
    shown = replayed.drift if math.isfinite(replayed.drift) else None
    if not worst.passed:
        return replace(worst, drift=shown)
    agreement = 1.0 if replayed.drift <= replay.tolerance else replay.tolerance / replayed.drift
    passed = agreement >= audit.threshold
    finding = Finding.AGREES if passed else Finding.STEPS_DIFFER
    return replace(worst, drift=shown, agreement=min(worst.agreement, agreement), passed=passed, finding=finding)


class Fidelity(StrEnum):
    """How what was sent lies to what was moved."""

    EXACT = "nothing is lost or added"
    LOSSY = "a codec has rounded it, and what was owed before may be in it"
    SPARSE = "most of it is sent later, and what is sent is of many epochs"


def judge_end(
    uid: int, epoch: int, sent: Floats, moved: Floats, audit: AuditSpec, fidelity: Fidelity, *, zeros: bool
) -> AuditResult | None:
    """The fourth question; None if it stays open.

    Of what was sent sparsely only too large a size says something: whose work of this epoch it holds cannot be seen.

    Args:
        sent, moved: float32 [n], what came and base - end, at the validator's own coordinates.
        zeros: whether the codec makes zeros of small values.
    """
    if fidelity is Fidelity.EXACT:
        same = bool(np.array_equal(sent, moved))
        return on_contribution(uid, epoch, Finding.AGREES if same else Finding.NOT_ITS_STEPS)
    if fidelity is Fidelity.LOSSY:
        found = judge_work(uid, epoch, sent, moved, 1.0, 1.0, audit, zeros=zeros)
        doubted = found is not None and found.finding is Finding.NOT_ITS_WORK  # of all that it did, there is no doubt
        return replace(found, finding=Finding.NOT_ITS_STEPS) if found is not None and doubted else found
    size = inflation(sent, moved, 1.0)
    return on_contribution(uid, epoch, Finding.INFLATED, size=size) if size > audit.inflation else None


def judge_improvement(uid: int, epoch: int, found: Improvement) -> AuditResult:
    """Of what a contribution does to the loss."""
    finding = Finding.NO_IMPROVEMENT if found.none else Finding.AGREES
    return replace(on_contribution(uid, epoch, finding), improvement=found)


def not_shown(uid: int, epoch: int) -> AuditResult:
    """Of a miner that owes states that it has committed to, and does not show them when it takes part again."""
    return on_contribution(uid, epoch, Finding.NOT_SHOWN)


def other_moved(uid: int, epoch: int) -> AuditResult:
    """Of a last mark that says it has moved otherwise than its state has."""
    return on_contribution(uid, epoch, Finding.NOT_ITS_WORK)
