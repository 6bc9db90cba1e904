"""Leading a round: one attempt after another, each without the peers that the attempt before it named or lost.

Two groups must never both end an epoch, as when two validators lead at once and each gets some of the miners. So an
attempt is never repeated with fewer contributors than the quorum of those that the leader began with.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from distributed_training.averaging import deadlines, leader
from distributed_training.events import RoundLed
from distributed_training.invitation import Reason
from distributed_training.node import EndedRound, Node
from distributed_training.peers import targets
from distributed_training.protocol import AllReduce, AllReduceResponse, Deadlines, Member
from distributed_training.run import RunSpec
from distributed_training.validator.experience import Experience
from template.chain.metagraph import Metagraph
from template.clock import Clock
from template.errors import Refused
from template.telemetry import Telemetry
from template.transport.dendrite import DEADLINE, NOT_SENT, Dendrite, Outcome

CONNECTING = ("PREPARE", "CONNECT")
EXCUSES = (Reason.NOT_THE_LEADER, Reason.BUSY, Reason.OTHER_STATE, Reason.NOTHING_TO_GIVE, NOT_SENT)
GRACE_SECONDS = 1.0  # for those whom we saw fail ourselves to answer nevertheless, when all others have


@dataclass(frozen=True)
class Attempt:
    """One attempt as the leader counts it, by uid. `survivors` are the members of the next one.

    `excused`: who refused for a reason that is no fault of its own, as when it is in another round. `gave_way`: this
    neuron itself did so.
    """

    group: tuple[Member, ...]
    answers: Mapping[int, AllReduceResponse]
    confirmed: frozenset[int]
    survivors: tuple[Member, ...]
    completed: bool
    excused: frozenset[int] = frozenset()
    gave_way: bool = False

    @property
    def reports(self) -> leader.Attempt:
        """What was reported of others. Who hung up before the data moved, while somebody else did not come at all, may
        only have given up because of that: such reports are left out."""
        reports = {uid: answer.failures for uid, answer in self.answers.items()}
        if self.silent:
            reports = {uid: tuple(f for f in seen if f.state not in CONNECTING) for uid, seen in reports.items()}
        return leader.Attempt(members=self.group, reports=reports)

    @property
    def silent(self) -> frozenset[int]:
        return frozenset(member.uid for member in self.group) - self.answers.keys()

    @property
    def spoilers(self) -> frozenset[int]:
        """The contributors that the attempt failed by: convicted by the majority, or asked and silent."""
        if self.completed:
            return frozenset()
        contributing = {member.uid for member in self.group if member.contributes}
        return frozenset(contributing - {member.uid for member in self.survivors} - self.excused)


def count(
    before: Sequence[Attempt], group: tuple[Member, ...], answers: Mapping[int, AllReduceResponse], quorum: float
) -> Attempt:
    """What the answers say: completed if contributors holding the quorum of their number hold one new state."""
    contributors = [member.uid for member in group if member.contributes]
    by_hash: dict[str, set[int]] = {}
    for uid, answer in answers.items():
        if answer.completed:
            by_hash.setdefault(answer.state_hash, set()).add(uid)
    confirmed = max(by_hash.values(), key=len, default=set())
    delivered = [uid for uid in contributors if uid in confirmed]
    completed = bool(contributors) and len(delivered) >= quorum * len(contributors)
    attempt = Attempt(group, answers, frozenset(confirmed), group, completed)
    if completed:
        return attempt
    reports = [earlier.reports for earlier in (*before, attempt)]
    trust = {member.uid: 1.0 for earlier in reports for member in earlier.members}
    return replace(attempt, survivors=leader.surviving_group(reports, trust))


def contributors(group: Sequence[Member]) -> int:
    """How many of the group put something in."""
    return sum(member.contributes for member in group)


class RoundLeader:
    """Starts rounds on behalf of one validator, which takes part in them itself."""

    def __init__(self, *, spec: RunSpec, node: Node, dendrite: Dendrite, telemetry: Telemetry, clock: Clock) -> None:
        self._spec = spec
        self._node = node
        self._dendrite = dendrite
        self._telemetry = telemetry
        self._clock = clock
        self._experience = Experience(spec.averaging)
        self._leading = ""  # the id of the last round that we led

    async def lead(
        self, metagraph: Metagraph, state: tuple[int, str], group: tuple[Member, ...], made: int = 0
    ) -> Sequence[Attempt]:
        """Average the epoch of `state` among `group`; ends with the first attempt that completes.

        `made` attempts of this turn were made before; the run spec says how many there may be.

        Returns:
            All attempts, in order. The last one has not completed if everything was tried.
        """
        attempts: list[Attempt] = []
        needed = self._spec.averaging.quorum * contributors(group)
        for number in range(made, self._spec.epoch.attempts):
            if not contributors(group) or contributors(group) < needed:
                break
            if not any(member.uid == self._node.uid for member in group):
                break  # the others cannot work with us: whoever leads next may be luckier
            attempt = await self._attempt(metagraph, self._request(state, group, number), attempts)
            attempts.append(attempt)
            if attempt.completed or attempt.gave_way:
                break
            group = attempt.survivors
        return attempts

    def observe(self, done: EndedRound) -> None:
        """Learn from a round that this validator took part in; from those that it leads it learns with the answers."""
        if done.request.round_id != self._leading:
            self._experience.seen(done.request, self._node.uid, done.result.outcome)

    def fair_exchange_seconds(self) -> float:
        """See Experience."""
        return self._experience.fair_exchange_seconds()

    async def _attempt(self, metagraph: Metagraph, request: AllReduce, before: Sequence[Attempt]) -> Attempt:
        started = self._clock.monotonic()
        group = request.group
        self._leading = request.round_id
        own, outcomes, late = await self._run(metagraph, request)
        answers = {u: o.response for u, o in outcomes.items() if isinstance(o.response, AllReduceResponse)}
        refusals = late | {u: str(o.error) for u, o in outcomes.items() if o.error}
        if isinstance(own, AllReduceResponse):
            answers[self._node.uid] = own
        else:
            refusals[self._node.uid] = str(own)
        attempt = count(before, group, answers, self._spec.averaging.quorum)
        excused = frozenset(uid for uid, outcome in outcomes.items() if outcome.reason in EXCUSES)
        attempt = replace(attempt, excused=excused, gave_way=isinstance(own, Refused))
        never_came = any(o.error and o.reason != DEADLINE for o in outcomes.values())
        self._experience.led(request, self._node.uid, answers, absent=never_came or isinstance(own, Refused))
        self._telemetry.emit(
            RoundLed(
                uid=self._node.uid,
                epoch=request.epoch,
                attempt=request.attempt,
                round_id=request.round_id,
                completed=attempt.completed,
                group=[member.uid for member in group],
                confirmed=sorted(attempt.confirmed),
                named=sorted(attempt.spoilers),
                silent=sorted(attempt.silent),
                refusals={str(uid): refusal for uid, refusal in refusals.items()},
                seconds=self._clock.monotonic() - started,
                shares={str(member.uid): member.share for member in group},
                deadlines=request.deadlines.model_dump(),
            )
        )
        return attempt

    async def _run(
        self, metagraph: Metagraph, request: AllReduce
    ) -> tuple[AllReduceResponse | Refused, Mapping[int, Outcome], dict[int, str]]:
        """Our own answer, those of the others that came in time, and of whom we did not wait for any longer."""
        others = targets(metagraph, (member.uid for member in request.group if member.uid != self._node.uid))
        limit = _longest(request.deadlines) + self._spec.averaging.answer_seconds
        started = self._clock.monotonic()
        calls = {t.uid: asyncio.create_task(self._dendrite.call(t, request, limit)) for t in others}
        try:
            own = await self._take_part(request)
            elapsed = self._clock.monotonic() - started
            await _wait_for(calls, own, request.deadlines, elapsed, self._spec.averaging.answer_seconds)
        finally:
            unfinished = [call for call in calls.values() if not call.done()]
            for call in unfinished:
                call.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)
        waited = self._clock.monotonic() - started
        late = {u: f"no answer in {waited:.1f} s" for u, call in calls.items() if call.cancelled()}
        return own, {u: call.result() for u, call in calls.items() if not call.cancelled()}, late

    def _request(self, state: tuple[int, str], group: tuple[Member, ...], number: int) -> AllReduce:
        return AllReduce(
            run_id=self._spec.run_id,
            epoch=state[0],
            state_hash=state[1],
            attempt=number,
            round_id=secrets.token_hex(16),
            group=self._experience.shared(group),
            codec=self._spec.averaging.codec,
            deadlines=Deadlines(**dataclasses.asdict(self._experience.deadlines())),
        )

    async def _take_part(self, request: AllReduce) -> AllReduceResponse | Refused:
        """Our own answer. If we refuse, as when the state has moved on, we count as silent in our own round."""
        try:
            return await self._node.take_part(request)
        except Refused as refusal:
            return refusal


async def _wait_for(
    calls: Mapping[int, asyncio.Task[Outcome]],
    own: AllReduceResponse | Refused,
    given: Deadlines,
    elapsed: float,
    answer_seconds: float,
) -> None:
    """Wait for the answers after our own part has ended, `elapsed` seconds after the round began.

    Whoever heard nothing of its end may go on until the deadline of the state in which it ended for us, and has then
    `answer_seconds` to answer, or little if we saw it fail ourselves: so a round is repeated at once without a member
    that hangs. If we took no part, nothing is known, and each call's own limit holds.
    """
    if isinstance(own, Refused):
        await _done(calls.values(), None)
        return
    running = given.commit if own.completed else max(0.0, _end_of(own, given) - elapsed)
    failed = {failure.uid for failure in own.failures}
    loop = asyncio.get_running_loop()
    ended = loop.time()
    await _done([call for uid, call in calls.items() if uid not in failed], running + answer_seconds)
    spent = loop.time() - ended
    grace = GRACE_SECONDS if own.completed else running + GRACE_SECONDS
    await _done(calls.values(), max(0.0, min(grace, running + answer_seconds) - spent))


async def _done(calls: Iterable[asyncio.Task[Outcome]], seconds: float | None) -> None:
    waiting = [call for call in calls if not call.done()]
    if waiting:
        await asyncio.wait(waiting, timeout=seconds)


def _end_of(own: AllReduceResponse, given: Deadlines) -> float:
    """Seconds from the start of a round to the end of the time of the state in which it ended for us."""
    entered = deadlines.entered(own.states)
    return sum(getattr(given, state) for state in entered) if entered else _longest(given)


def _longest(given: Deadlines) -> float:
    return given.connect + given.exchange + given.commit
