"""What a miner and a validator have in common: they say where they stand, and they take part in rounds.

A round either completes, and then the average is applied and the epoch is one higher, or it does not, and then
nothing has changed: neither the state nor the work that was accumulated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from distributed_training import __version__, schedule
from distributed_training.averaging.averager import Averager
from distributed_training.averaging.binding import binding_is_valid
from distributed_training.averaging.feedback import Attempt
from distributed_training.averaging.outcome import RoundResult
from distributed_training.averaging.plan import plan_from
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.engine.records import records_hash
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import RoundFinished, RoundRefused
from distributed_training.model.layout import Vector
from distributed_training.peers import KnownPeers, validators_of
from distributed_training.protocol import AllReduce, AllReduceResponse, IsAlive, IsAliveResponse, Member, PeerBinding
from distributed_training.run import RunSpec
from template.chain.metagraph import Metagraph
from template.clock import Clock
from template.errors import AveragingError, Refused, StateError
from template.telemetry import Telemetry
from template.transport.axon import Axon
from template.transport.policy import Caller


class ChainView(Protocol):
    """The chain as of the last block that was seen."""

    @property
    def metagraph(self) -> Metagraph: ...

    @property
    def block(self) -> int: ...


@dataclass(frozen=True)
class CompletedRound:
    """A round that this neuron committed: the epoch that ended, and the parameters [P] it was trained at."""

    request: AllReduce
    base: Vector | None
    result: RoundResult

    @property
    def epoch(self) -> int:
        return self.request.epoch


class Node:
    """Answers `IsAlive` and `AllReduce` for one neuron. `keep_base` keeps θₑ of a completed round for audits."""

    def __init__(
        self,
        *,
        uid: int,
        spec: RunSpec,
        chain: ChainView,
        engine: Engine,
        worker: TrainingWorker,
        averager: Averager,
        known: KnownPeers,
        binding: PeerBinding,
        corpus: str,
        contributes: bool,
        telemetry: Telemetry,
        clock: Clock,
        on_completed: Callable[[CompletedRound], Awaitable[None]],
    ) -> None:
        self.uid = uid
        self.binding = binding
        self._spec = spec
        self._chain = chain
        self._engine = engine
        self._worker = worker
        self._averager = averager
        self._known = known
        self._corpus = corpus
        self._contributes = contributes
        self._telemetry = telemetry
        self._clock = clock
        self._on_completed = on_completed
        self._round = asyncio.Lock()

    @property
    def in_round(self) -> bool:
        return self._round.locked()

    def attach(self, axon: Axon) -> None:
        """Serve both synapses. Anybody registered may ask where we stand; only a validator may start a round."""
        axon.attach(IsAlive, self._is_alive, validators_only=False)
        axon.attach(AllReduce, self._all_reduce, validators_only=True)

    def status(self) -> IsAliveResponse:
        """Where this neuron stands."""
        engine = self._engine
        return IsAliveResponse(
            epoch=engine.epoch,
            state_hash=engine.state_hash,
            samples=engine.samples,
            corpus=self._corpus,
            peer=self.binding,
            version=__version__,
        )

    def view(self) -> schedule.View:
        """The same, as the schedule sees it."""
        now = self.status()
        return schedule.View(
            uid=self.uid,
            is_validator=not self._contributes,
            epoch=now.epoch,
            state_hash=now.state_hash,
            samples=now.samples,
            peer=now.peer,
        )

    async def _is_alive(self, request: IsAlive, caller: Caller) -> IsAliveResponse:
        return self.status()

    async def _all_reduce(self, request: AllReduce, caller: Caller) -> AllReduceResponse:
        try:
            self._check_leader(request, caller.uid)
            return await self.take_part(request)
        except Refused as refusal:
            self._telemetry.emit(
                RoundRefused(
                    uid=self.uid,
                    leader=caller.uid,
                    epoch=request.epoch,
                    reason=refusal.reason,
                    detail=str(refusal),
                )
            )
            raise

    def _check_leader(self, request: AllReduce, caller: int) -> None:
        validators = validators_of(self._chain.metagraph, self._spec.epoch.validator_stake)
        turn = self._spec.epoch.turn_blocks
        if not schedule.may_lead(caller, validators, request.epoch, self._chain.block, turn):
            raise Refused(
                f"uid {caller} does not lead epoch {request.epoch} at block {self._chain.block}",
                status=403,
                reason="not-the-leader",
            )

    def check_group(self, request: AllReduce) -> None:
        """Refuse a group that is not what the run spec and the chain say it must be.

        Raises:
            Refused: with the reason in one word.
        """
        metagraph = self._chain.metagraph
        validators = validators_of(metagraph, self._spec.epoch.validator_stake)
        uids = [member.uid for member in request.group]
        mine = [member for member in request.group if member.uid == self.uid]
        if len(set(uids)) != len(uids) or uids != sorted(uids):
            raise Refused("the group must list each uid once, ascending", status=400, reason="bad-group")
        if not mine or mine[0].peer != self.binding:
            raise Refused(
                "this neuron, as it last described itself, is not in the group", status=400, reason="bad-group"
            )
        if abs(sum(member.share for member in request.group) - 1) > 1e-6:
            raise Refused("the shares must sum to 1", status=400, reason="bad-group")
        limits, asked = self._spec.averaging, request.deadlines
        longest = (limits.connect_seconds, limits.exchange_seconds, limits.commit_seconds)
        if any(s > most for s, most in zip((asked.connect, asked.exchange, asked.commit), longest, strict=True)):
            raise Refused("the deadlines are longer than the run's", status=400, reason="bad-deadlines")
        if request.codec != self._spec.averaging.codec:
            raise Refused(f"the run's codec is {self._spec.averaging.codec}", status=409, reason="other-codec")
        for member in request.group:
            _check_member(member, metagraph, request.run_id, validators)
            self._known.add(member.uid, member.peer.peer_id)

    async def take_part(self, request: AllReduce) -> AllReduceResponse:
        """One attempt at a round, from the check of the group to the answer.

        Raises:
            Refused: busy with another round, at another state, a wrong group, or nothing to contribute.
        """
        if self._round.locked():
            raise Refused("a round is in progress", status=409, reason="busy")
        async with self._round:
            engine = self._engine
            if (request.epoch, request.state_hash) != (engine.epoch, engine.state_hash):
                raise Refused(
                    f"this neuron is at epoch {engine.epoch}, state {engine.state_hash[:12]}",
                    status=409,
                    reason="other-state",
                )
            self.check_group(request)
            await self._worker.pause()
            try:
                return await self._run_round(request)
            finally:
                if self._contributes:
                    await self._worker.resume()

    async def _run_round(self, request: AllReduce) -> AllReduceResponse:
        started = self._clock.monotonic()
        contribution = await self._contribution()
        samples = contribution.samples if contribution is not None else 0
        vector = contribution.vector if contribution is not None else None
        try:
            limits = self._spec.averaging
            size = self._engine.layout.size
            plan = plan_from(request, size=size, quorum=limits.quorum, max_weight=limits.max_weight)
            attempt = self._engine.attempt() if self._contributes else None
            result = await self._averager.run(plan, vector, float(samples), attempt)
        except AveragingError as error:
            raise Refused(str(error), status=400, reason="impossible-round") from error
        if result.average is not None:
            await self._commit(request, result, attempt)
        answer = self._answer(request, result, samples, self._clock.monotonic() - started)
        self._telemetry.emit(_round_ended(self.uid, request, result, answer))
        return answer

    async def _contribution(self) -> Contribution | None:
        if not self._contributes:
            return None
        try:
            return await self._worker.contribution()
        except StateError as error:
            raise Refused(str(error), status=409, reason="nothing-to-give") from error

    async def _commit(self, request: AllReduce, result: RoundResult, attempt: Attempt | None) -> None:
        assert result.average is not None
        base = None if self._contributes else self._engine.state.params
        took_part = self.uid in result.outcome.participants
        await self._worker.apply(result.average, attempt if took_part else None)
        await self._on_completed(CompletedRound(request, base, result))

    def _answer(self, request: AllReduce, result: RoundResult, samples: int, seconds: float) -> AllReduceResponse:
        engine = self._engine
        return AllReduceResponse(
            completed=result.average is not None,
            epoch=engine.epoch,
            state_hash=engine.state_hash,
            samples=samples,
            records_hash=records_hash(engine.records_of(request.epoch)),
            seconds=seconds,
            failures=result.outcome.failures,
            transfers=result.outcome.transfers,
        )


def _check_member(member: Member, metagraph: Metagraph, run_id: str, validators: Collection[int]) -> None:
    known = member.uid < len(metagraph.hotkeys)
    if not known or not binding_is_valid(member.peer, run_id, metagraph.hotkeys[member.uid]):
        raise Refused(
            f"the peer id of uid {member.uid} is not bound by its hotkey's signature",
            status=400,
            reason="unbound-peer",
        )
    if not member.contributes and member.uid not in validators:
        raise Refused(f"uid {member.uid} reduces without a permit", status=400, reason="bad-group")


def _round_ended(uid: int, request: AllReduce, result: RoundResult, answer: AllReduceResponse) -> RoundFinished:
    return RoundFinished(
        uid=uid,
        epoch=request.epoch,
        attempt=request.attempt,
        round_id=request.round_id,
        completed=answer.completed,
        state_hash=answer.state_hash,
        participants=list(result.outcome.participants),
        failures=[failure.model_dump() for failure in answer.failures],
        samples=answer.samples,
        seconds=answer.seconds,
        bytes_sent=sum(t.bytes_sent for t in answer.transfers),
        bytes_received=sum(t.bytes_received for t in answer.transfers),
    )
