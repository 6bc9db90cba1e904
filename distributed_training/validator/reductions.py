"""Averaging again a few chunks of other reducers' shares, from what their contributors are bound to have sent.

At the end of a round one chunk is drawn of the share of each miner that reduces, from the validator's own randomness:
nobody can know it before, and by then everybody holds the average. Then, in two steps, so that nobody can keep its own
part back just when its reduction is looked at:

1. Each of these miners shows its own part of its own chunk, whether it is going to be looked at or not.
2. Of those that did, `audit.reducers` are chosen: half of them where the average is farthest from what all records add
   up to at the coordinates that everybody knows (if all records are here; a rule that restrains somebody leaves a
   distance as well, so that is no proof of anything), the others at random. Their chunks are asked of all contributors,
   averaged by the rule again, and compared (scoring/reduction.py, which says who is to blame and why nobody else is).

A contributor that shows nothing, or something else than it is bound to, goes unpaid for the epoch; the chunk stays
open. Where more than half are silent at once it is our own line. Nothing is asked once the next round has ended, as
nobody has to keep its part for longer.

Cost: with n contributors (n + reducers (n - 1)) chunks come in, of 2^18 values at most (averaging/plan.py); a miner
sends at most 1 + reducers of them to each validator.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codec import Floats, pair_named
from distributed_training.averaging.exhibits import Exhibits, Wanted
from distributed_training.averaging.outcome import RoundOutcome
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.robust import rule_named
from distributed_training.averaging.witness import Sightings
from distributed_training.events import ReductionChecked, ReductionsNotChecked
from distributed_training.protocol import Hash
from distributed_training.scoring.contribution import Put, distances
from distributed_training.scoring.gradient import AuditResult
from distributed_training.scoring.reduction import compare, lied
from template.telemetry import Telemetry

AT_ONCE = 16  # chunks that are asked for at a time: 16 MiB at most

TOO_LATE = "the next round had ended before its reducers were looked at"
UNSHOWN = "did not show what it put into the average"


@dataclass(frozen=True, eq=False)
class Drawn:
    """The chunk number `chunk` of a share, and its average [n] as everybody got it."""

    chunk: int
    average: Floats


@dataclass(frozen=True, eq=False)
class Reduction:
    """What a validator keeps of a round to look at its reducers: by uid what was drawn, `roots` what binds whom."""

    plan: RoundPlan
    drawn: Mapping[int, Drawn]
    roots: Mapping[int, Hash]
    weights: Mapping[int, float]


@dataclass(frozen=True)
class Findings:
    """What came of it: reducers that lied, and by uid what a contributor kept to itself."""

    lies: Mapping[int, AuditResult] = field(default_factory=dict)
    unshown: Mapping[int, str] = field(default_factory=dict)


def draw(plan: RoundPlan, outcome: RoundOutcome, average: Floats, rng: random.Random) -> Reduction:
    """One chunk of each miner's share; a copy of its average."""
    drawn = {}
    for uid, (start, stop) in sorted(plan.ranges().items()):
        if uid in plan.contributors and stop > start:
            pieces = chunks(stop - start, plan.chunk)
            number = rng.randrange(len(pieces))
            low, high = pieces[number]
            drawn[uid] = Drawn(number, average[start + low : start + high].copy())
    return Reduction(plan, drawn, dict(outcome.parts), dict(outcome.weights))


class ReductionDesk:
    """Looks at reducers for one validator. `in_time(epoch)`: whether the contributors still keep what they sent."""

    def __init__(
        self,
        *,
        uid: int,
        reducers: int,
        exhibits: Exhibits,
        in_time: Callable[[int], bool],
        telemetry: Telemetry,
        rng: random.Random,
    ) -> None:
        self._uid = uid
        self._reducers = reducers
        self._exhibits = exhibits
        self._in_time = in_time
        self._telemetry = telemetry
        self._rng = rng

    async def examine(self, epoch: int, seen: Reduction, sample: Collection[int], suspects: Sequence[int]) -> Findings:
        """Look at some reducers of the `sample`; `suspects` are all that may be, the likeliest liar first."""
        candidates = {uid: drawn for uid, drawn in seen.drawn.items() if uid in sample and uid in seen.roots}
        if not self._reducers or not candidates:
            return Findings()
        if not self._in_time(epoch):
            return self._open(epoch, TOO_LATE)
        shown = await self._shown(seen, [(uid, uid) for uid in candidates])
        mute = _silent(shown)
        checked = self._chosen([uid for uid in candidates if uid not in mute], suspects)
        others = [(uid, reducer) for reducer in checked for uid in seen.plan.contributors if uid != reducer]
        shown |= dict.fromkeys(others)
        shown |= await self._shown(seen, [pair for pair in others if pair[0] not in mute])  # they are silent still
        silent, asked = _silent(shown), {uid for uid, _ in shown}
        if not self._in_time(epoch):
            return self._open(epoch, TOO_LATE)
        if len(silent) >= 2 and 2 * len(silent) > len(asked):
            return self._open(
                epoch, f"{len(silent)} of {len(asked)} contributors show nothing, as if our line were broken"
            )
        lies = [await self._judged(epoch, seen, reducer, shown) for reducer in checked]
        return Findings(
            lies={result.uid: result for result in lies if result is not None},
            unshown={uid: UNSHOWN for uid in sorted(silent)},
        )

    def _open(self, epoch: int, why: str) -> Findings:
        self._telemetry.emit(ReductionsNotChecked(uid=self._uid, epoch=epoch, reason=why))
        return Findings()

    def _chosen(self, candidates: Sequence[int], suspects: Sequence[int]) -> list[int]:
        """Half of them the likeliest, the rest at random."""
        likely = [uid for uid in suspects if uid in candidates][: self._reducers // 2]
        rest = [uid for uid in candidates if uid not in likely]
        count = min(len(rest), self._reducers - len(likely))
        return [*likely, *self._rng.sample(rest, count)]

    async def _shown(self, seen: Reduction, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Floats | None]:
        """What each uid shows of its part for a reducer, by (uid, reducer)."""
        room = asyncio.Semaphore(AT_ONCE)

        async def show(uid: int, reducer: int) -> Floats | None:
            if uid not in seen.roots:  # it was bound to nothing; a real round has no such contributor
                return None
            chunk, root = seen.drawn[reducer].chunk, seen.roots[uid]
            async with room:
                return await self._exhibits.show(
                    Wanted(plan=seen.plan, uid=uid, root=root, reducer=reducer, chunk=chunk)
                )

        parts = await asyncio.gather(*(show(uid, reducer) for uid, reducer in wanted))
        return dict(zip(wanted, parts, strict=True))

    async def _judged(
        self, epoch: int, seen: Reduction, reducer: int, shown: Mapping[tuple[int, int], Floats | None]
    ) -> AuditResult | None:
        """The finding, if the reducer lied."""
        plan, drawn = seen.plan, seen.drawn[reducer]
        parts = [shown[uid, reducer] for uid in plan.contributors]
        whole = [part for part in parts if part is not None]
        missing = [uid for uid, part in zip(plan.contributors, parts, strict=True) if part is None]
        found = None
        if not missing:
            weights = [seen.weights[uid] for uid in plan.contributors]
            rule, codec = rule_named(plan.reduction), pair_named(plan.codec).average
            found = await asyncio.to_thread(compare, drawn.average, whole, weights, rule, codec)
        self._telemetry.emit(
            ReductionChecked(
                uid=self._uid,
                miner=reducer,
                epoch=epoch,
                chunk=drawn.chunk,
                values=drawn.average.size,
                contributors=len(parts),
                unshown=missing,
                passed=None if found is None else found.agrees,
                difference=None if found is None or not np.isfinite(found.difference) else found.difference,
            )
        )
        return None if found is None or found.agrees else lied(reducer, epoch, found.difference)


def _silent(shown: Mapping[tuple[int, int], Floats | None]) -> set[int]:
    """Who did not show all that it was asked for."""
    return {uid for (uid, _), part in shown.items() if part is None}


def likeliest(sightings: Sightings, put: Sequence[Put]) -> list[int]:
    """All reducers, first whose average is farthest from what the records add up to at the known coordinates."""
    away: NDArray[np.float64] = distances(sightings.average, put)
    farthest = {int(uid): float(away[sightings.reducers == uid].max()) for uid in np.unique(sightings.reducers)}
    return sorted(farthest, key=lambda uid: -farthest[uid])
