"""Rounds without streams: members meet, parts go to the real reducers, and everybody gets the same average.

Follows `averaging/round.py` in what is decided and told: who does not come is named by those who did when CONNECT is
over; a part that is not finite or of the wrong size is named by its reducer at once, one that is missing when EXCHANGE
is over; a round with any of these is given up by all, and nothing has changed. Transfers take as long as the sender's
line needs. A value counts for `VALUE_BYTES` on the wire: the rounds of a model forty times as large.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from distributed_training.averaging.buffers import Buffers
from distributed_training.averaging.codec import Floats, all_within, pair_named
from distributed_training.averaging.exhibits import Wanted
from distributed_training.averaging.feedback import Attempt
from distributed_training.averaging.outcome import Restraint, RoundOutcome, RoundResult, RoundState, Work
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.reducer import Reducer
from distributed_training.averaging.robust import rule_named
from distributed_training.averaging.round import _require_fit
from distributed_training.averaging.traffic import Effort
from distributed_training.averaging.vote import failure
from distributed_training.averaging.witness import Sightings, Watch, Witness
from distributed_training.protocol import Failure, Transfer

VALUE_BYTES = 160
CONNECT_SECONDS = 0.1
COMMIT_SECONDS = 0.1
GIVING_UP_SECONDS = 0.5
NO_WORK = Work(encode=0.0, decode=0.0, reduce=0.0, hash=0.0, wait=0.0)


class Line:
    """An honest member's side of the streams, at `rate` bytes a second and stream. Cheats override what they do."""

    checks_itself = True  # an honest averager refuses to send what the others would have to refuse

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def comes(self, plan: RoundPlan) -> bool:
        """Whether it opens streams to anybody at all."""
        return True

    def part(self, plan: RoundPlan, reducer: int, part: Floats) -> Floats | None:
        """What it sends to a reducer in place of `part` of its contribution; None: nothing."""
        return part

    def rate_to(self, plan: RoundPlan, receiver: int) -> float:
        """Bytes a second on the stream to a member."""
        return self.rate

    def share(self, plan: RoundPlan, start: int, average: Floats) -> Floats:
        """What it gives everybody as the average of its share, which begins at `start`."""
        return average

    def shows(self, plan: RoundPlan, reducer: int, part: Floats) -> Floats | None:
        """What it shows after the round of what it sent to a reducer; None: nothing."""
        return part

    def accuses(self, plan: RoundPlan) -> tuple[Failure, ...]:
        """Whom it says to have seen fail, giving the round up; empty: nobody, it goes on."""
        return ()


@dataclass
class _Seat:
    """One member that came. `records`: the hash that it stands by; `watch`: what it keeps of the others' parts."""

    line: Line
    vector: Floats | None
    weight: float
    records: str | None = None
    watch: Watch | None = None


@dataclass(frozen=True)
class _Exchange:
    """What came of the exchange. `named`: reducer -> sender -> why; `accusers`: who gave the round up by itself."""

    seconds: float
    named: Mapping[int, Mapping[int, str]]
    accusers: Mapping[int, tuple[Failure, ...]]
    average: Floats | None
    received: Mapping[int, Mapping[int, Floats]]  # reducer -> sender -> part
    restraints: Mapping[int, tuple[Restraint, ...]]


@dataclass
class _Meeting:
    """One round."""

    plan: RoundPlan
    ranges: Mapping[int, tuple[int, int]]
    seats: dict[int, _Seat] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    exchange: _Exchange | None = None


class Hall:
    """All rounds of a subnet."""

    def __init__(self) -> None:
        self._meetings: dict[str, _Meeting] = {}
        self.samples: Counter[int] = Counter()  # by uid, the weight that went into averages
        self._kept: _Meeting | None = None

    def join(self, plan: RoundPlan, uid: int, seat: _Seat) -> _Meeting:
        """Come to a round."""
        meeting = self._meetings.get(plan.round_id)
        if meeting is None:
            meeting = self._meetings[plan.round_id] = _Meeting(plan, plan.ranges())
        meeting.seats[uid] = seat
        if len(meeting.seats) == len(plan.members):
            meeting.complete.set()
        return meeting

    def forget(self, plan: RoundPlan) -> None:
        """The round has ended for one member; its memory goes with the first that says so and is not needed again."""
        self._meetings.pop(plan.round_id, None)

    def keep(self, meeting: _Meeting) -> None:
        """The members keep what they sent in this round, and no longer what they sent in the one before."""
        self._kept = meeting

    async def show(self, wanted: Wanted) -> Floats | None:
        """See Exhibits. What does not fit the hash that binds a contributor is as good as nothing."""
        meeting = self._kept
        if meeting is None or meeting.plan.round_id != wanted.plan.round_id or meeting.exchange is None:
            return None
        start, stop = meeting.ranges[wanted.reducer]
        low, high = chunks(stop - start, meeting.plan.chunk)[wanted.chunk]
        sent = meeting.exchange.received[wanted.reducer][wanted.uid]
        shown = meeting.seats[wanted.uid].line.shows(meeting.plan, wanted.reducer, sent)
        if shown is None or not np.array_equal(shown, sent):
            return None
        return np.ascontiguousarray(sent[low:high], dtype=np.float32)


class MemoryAverager:
    """In the place of `averaging.averager.Averager` for one member."""

    def __init__(self, hall: Hall, uid: int, line: Line) -> None:
        self._hall = hall
        self._uid = uid
        self.line = line

    async def run(
        self,
        plan: RoundPlan,
        contribution: Floats | None,
        weight: float,
        attempt: Attempt | None = None,
        *,
        records: str | None = None,
        watch: Watch | None = None,
    ) -> RoundResult:
        """As the real one's."""
        if contribution is not None and self.line.checks_itself:
            _require_fit(contribution, plan.size, pair_named(plan.codec).largest, None)
        if not self.line.comes(plan):
            return await self._stay_away(plan)
        meeting = self._hall.join(plan, self._uid, _Seat(self.line, contribution, weight, records, watch))
        try:
            async with asyncio.timeout(plan.deadlines.connect):
                await meeting.complete.wait()
        except TimeoutError:
            self._hall.forget(plan)
            return _not_connected(meeting, self._uid)
        await asyncio.sleep(CONNECT_SECONDS)
        if meeting.exchange is None:
            meeting.exchange = _exchanged(meeting)
            if meeting.exchange.average is not None:
                self._hall.samples.update({u: int(seat.weight) for u, seat in meeting.seats.items()})
                self._hall.keep(meeting)
        await asyncio.sleep(meeting.exchange.seconds)
        self._hall.forget(plan)
        if meeting.exchange.average is None:
            await asyncio.sleep(GIVING_UP_SECONDS)
            return _given_up(meeting, meeting.exchange, self._uid)
        await asyncio.sleep(COMMIT_SECONDS)
        return _done(meeting, meeting.exchange, self._uid)

    async def _stay_away(self, plan: RoundPlan) -> RoundResult:
        await asyncio.sleep(plan.deadlines.connect)
        return RoundResult(
            outcome=_outcome(plan, RoundState.ABORTED, {RoundState.CONNECT: plan.deadlines.connect}), average=None
        )


def _exchanged(meeting: _Meeting) -> _Exchange:
    """Send all parts, and reduce them if nobody has a reason to give up."""
    plan, ranges = meeting.plan, meeting.ranges
    reducers = [uid for uid, (start, stop) in ranges.items() if stop > start]
    received: dict[int, dict[int, Floats]] = {reducer: {} for reducer in reducers}
    named: dict[int, dict[int, str]] = {reducer: {} for reducer in reducers}
    accusers = {uid: seat.line.accuses(plan) for uid, seat in meeting.seats.items()}
    accusers = {uid: accused for uid, accused in accusers.items() if accused}
    waits = False
    for reducer in reducers:
        for sender in plan.contributors:
            part, why = _sent(meeting, sender, reducer, ranges[reducer])
            if part is not None:
                received[reducer][sender] = part
                continue
            waits = waits or why == _MISSING
            named[reducer][sender] = why
    if accusers or any(named.values()):
        for accuser in accusers:  # who gave up is not waited for any longer
            for by in named.values():
                by.pop(accuser, None)
        silent = [uid for uid in accusers if ranges[uid][0] == ranges[uid][1]]
        for reducer in reducers:  # without a share of its own, its leaving only means that its part does not come
            named[reducer] |= {uid: _MISSING for uid in silent if uid != reducer}
        seconds = plan.deadlines.exchange if waits or silent else GIVING_UP_SECONDS
        return _Exchange(seconds, named, accusers, None, received, {})
    average = np.empty(plan.size, dtype=np.float32)
    restraints = {}
    for reducer in reducers:
        start, stop = ranges[reducer]
        share, restraints[reducer] = _reduced(plan, meeting, received[reducer], stop - start)
        average[start:stop] = meeting.seats[reducer].line.share(plan, start, share)
    average.flags.writeable = False
    return _Exchange(_slowest(meeting), named, {}, average, received, restraints)


_MISSING = "no complete part in time"


def _sent(meeting: _Meeting, sender: int, reducer: int, bounds: tuple[int, int]) -> tuple[Floats | None, str]:
    """The part as it arrived in time, or why it is none."""
    plan, seat = meeting.plan, meeting.seats[sender]
    assert seat.vector is not None, "contributors have a contribution"
    part = seat.vector[bounds[0] : bounds[1]]
    if sender == reducer:
        return part, ""
    part = seat.line.part(plan, reducer, part)  # type: ignore[assignment]
    late = part is not None and VALUE_BYTES * part.size / seat.line.rate_to(plan, reducer) > plan.deadlines.exchange
    if part is None or late:
        return None, _MISSING
    if part.size != bounds[1] - bounds[0]:
        return None, f"a chunk of {4 * part.size} bytes where {4 * (bounds[1] - bounds[0])} are due"
    if not all_within(part, pair_named(plan.codec).largest):
        return None, "values that are not finite"
    return part, ""


def _reduced(
    plan: RoundPlan, meeting: _Meeting, parts: Mapping[int, Floats], size: int
) -> tuple[Floats, tuple[Restraint, ...]]:
    """The average of one share, by the product's reducer."""
    weights = {uid: meeting.seats[uid].weight for uid in plan.contributors}
    out = np.empty(size, dtype=np.float32)
    codec, rule = pair_named(plan.codec).average, rule_named(plan.reduction)
    reducer = Reducer(out, plan.chunk, weights, codec, rule, Buffers(), Effort())
    for uid, part in parts.items():
        for index, (low, high) in enumerate(reducer.chunks):
            reducer.add(uid, index, np.ascontiguousarray(part[low:high], dtype=np.float32))
    return out, reducer.restraints()


def _slowest(meeting: _Meeting) -> float:
    """Seconds until the last part and the last average have arrived; nobody waits longer than the deadline."""
    plan, ranges = meeting.plan, meeting.ranges
    longest = 0.0
    for uid, seat in meeting.seats.items():
        own = ranges[uid][1] - ranges[uid][0]
        for other, (start, stop) in ranges.items():
            values = own + (stop - start if seat.vector is not None else 0)
            if other != uid:
                longest = max(longest, VALUE_BYTES * values / seat.line.rate_to(plan, other))
    return min(longest, plan.deadlines.exchange)


def _transfers(meeting: _Meeting, uid: int) -> tuple[Transfer, ...]:
    """What member `uid` measured of everybody else."""
    plan, ranges = meeting.plan, meeting.ranges
    mine, seat = ranges[uid][1] - ranges[uid][0], meeting.seats[uid]
    transfers = []
    for other, (start, stop) in sorted(ranges.items()):
        if other == uid:
            continue
        peer = meeting.seats[other]
        received = VALUE_BYTES * (stop - start + (mine if peer.vector is not None else 0))
        sent = VALUE_BYTES * (mine + (stop - start if seat.vector is not None else 0))
        transfers.append(
            Transfer(
                uid=other,
                bytes_sent=sent,
                bytes_received=received,
                seconds_sending=sent / seat.line.rate_to(plan, other),
                seconds_receiving=received / peer.line.rate_to(plan, uid),
            )
        )
    return tuple(transfers)


def _not_connected(meeting: _Meeting, uid: int) -> RoundResult:
    missing = [m.uid for m in meeting.plan.members if m.uid not in meeting.seats]
    seconds = meeting.plan.deadlines.connect
    failures = tuple(failure(other, "CONNECT", "voter", f"not connected in {seconds:g} s") for other in missing)
    return RoundResult(
        outcome=_outcome(meeting.plan, RoundState.ABORTED, {RoundState.CONNECT: seconds}, failures), average=None
    )


def _given_up(meeting: _Meeting, exchange: _Exchange, uid: int) -> RoundResult:
    seen = exchange.named.get(uid, {})
    failures = exchange.accusers.get(uid) or tuple(
        failure(other, "EXCHANGE", "sender", why) for other, why in sorted(seen.items())
    )
    seconds = {RoundState.CONNECT: CONNECT_SECONDS, RoundState.EXCHANGE: exchange.seconds}
    return RoundResult(outcome=_outcome(meeting.plan, RoundState.ABORTED, seconds, failures), average=None)


def _done(meeting: _Meeting, exchange: _Exchange, uid: int) -> RoundResult:
    assert exchange.average is not None
    seconds = {
        RoundState.CONNECT: CONNECT_SECONDS,
        RoundState.EXCHANGE: exchange.seconds,
        RoundState.COMMIT: COMMIT_SECONDS,
    }
    outcome = _outcome(
        meeting.plan,
        RoundState.DONE,
        seconds,
        transfers=_transfers(meeting, uid),
        average_hash=hashlib.sha256(exchange.average.tobytes()).hexdigest(),
        weight=math.fsum(seat.weight for seat in meeting.seats.values()),
        restrained=exchange.restraints.get(uid, ()),
    )
    outcome = dataclasses.replace(
        outcome,
        weights={u: meeting.seats[u].weight for u in meeting.plan.contributors},
        records={u: seat.records for u, seat in meeting.seats.items() if seat.records is not None},
        parts={u: bound_to(u) for u in meeting.plan.contributors},
        sightings=_sightings(meeting, exchange, uid),
    )
    return RoundResult(outcome=outcome, average=exchange.average)


def bound_to(uid: int) -> str:
    """In the place of the hash of what a contributor sends: the hall knows what that was."""
    return f"{uid:064x}"


def _sightings(meeting: _Meeting, exchange: _Exchange, uid: int) -> Sightings | None:
    """What a member that watches kept of the parts in its share."""
    watch, (start, stop) = meeting.seats[uid].watch, meeting.ranges[uid]
    if watch is None or stop == start:
        return None
    witness = Witness(watch, start, stop, pair_named(meeting.plan.codec).parts.name)
    others = {sender: part for sender, part in exchange.received[uid].items() if sender != uid}
    for sender, part in others.items():
        witness.see(sender, 0, np.ascontiguousarray(part, dtype=np.float32))
    assert exchange.average is not None, "only a round that is done is told of"
    return witness.sightings(exchange.average, meeting.ranges)


def _outcome(
    plan: RoundPlan,
    state: RoundState,
    seconds: Mapping[RoundState, float],
    failures: tuple[Failure, ...] = (),
    *,
    transfers: tuple[Transfer, ...] = (),
    average_hash: str | None = None,
    weight: float | None = None,
    restrained: tuple[Restraint, ...] = (),
) -> RoundOutcome:
    done = state is RoundState.DONE
    return RoundOutcome(
        round_id=plan.round_id,
        state=state,
        participants=plan.contributors if done else (),
        agreed=tuple(sorted(member.uid for member in plan.members)) if done else (),
        failures=failures,
        accusations={},
        transfers=transfers,
        average_hash=average_hash,
        total_weight=weight,
        seconds=seconds,
        work=NO_WORK,
        first_byte=None,
        planes={},
        restrained=restrained,
    )
