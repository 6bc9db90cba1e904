"""Leading a round: one attempt after another, each without the peers that the attempt before it named or lost.

Two groups must never both end an epoch, as when two validators lead at once and each gets some of the miners. So an
attempt is never repeated with fewer contributors than the quorum of those that the leader began with.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from distributed_training.averaging import leader
from distributed_training.events import RoundLed
from distributed_training.invitation import Reason
from distributed_training.node import Node
from distributed_training.peers import targets
from distributed_training.protocol import AllReduce, AllReduceResponse, Deadlines, Member
from distributed_training.run import RunSpec
from template.chain.metagraph import Metagraph
from template.clock import Clock
from template.errors import Refused
from template.telemetry import Telemetry
from template.transport.dendrite import NOT_SENT, Dendrite

CONNECTING = ("PREPARE", "CONNECT")
EXCUSES = (Reason.NOT_THE_LEADER, Reason.BUSY, Reason.OTHER_STATE, Reason.NOTHING_TO_GIVE, NOT_SENT)
ANSWER_MARGIN_SECONDS = 5.0  # on top of the states' deadlines: applying the update and the way back


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

    async def _attempt(self, metagraph: Metagraph, request: AllReduce, before: Sequence[Attempt]) -> Attempt:
        started = self._clock.monotonic()
        group = request.group
        others = targets(metagraph, (member.uid for member in group if member.uid != self._node.uid))
        deadline = sum((request.deadlines.connect, request.deadlines.exchange, request.deadlines.commit))
        own, outcomes = await asyncio.gather(
            self._take_part(request), self._dendrite.broadcast(others, request, deadline + ANSWER_MARGIN_SECONDS)
        )
        answers = {u: o.response for u, o in outcomes.items() if isinstance(o.response, AllReduceResponse)}
        refusals = {u: str(o.error) for u, o in outcomes.items() if o.error}
        if isinstance(own, AllReduceResponse):
            answers[self._node.uid] = own
        else:
            refusals[self._node.uid] = str(own)
        attempt = count(before, group, answers, self._spec.averaging.quorum)
        excused = frozenset(uid for uid, outcome in outcomes.items() if outcome.reason in EXCUSES)
        attempt = replace(attempt, excused=excused, gave_way=isinstance(own, Refused))
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
            )
        )
        return attempt

    def _request(self, state: tuple[int, str], group: tuple[Member, ...], number: int) -> AllReduce:
        limits = self._spec.averaging
        return AllReduce(
            run_id=self._spec.run_id,
            epoch=state[0],
            state_hash=state[1],
            attempt=number,
            round_id=secrets.token_hex(16),
            group=group,
            codec=limits.codec,
            deadlines=Deadlines(
                connect=limits.connect_seconds, exchange=limits.exchange_seconds, commit=limits.commit_seconds
            ),
        )

    async def _take_part(self, request: AllReduce) -> AllReduceResponse | Refused:
        """Our own answer. If we refuse, as when the state has moved on, we count as silent in our own round."""
        try:
            return await self._node.take_part(request)
        except Refused as refusal:
            return refusal
