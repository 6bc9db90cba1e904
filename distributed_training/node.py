"""What a miner and a validator have in common: they say where they stand, and they take part in rounds.

A round either completes, and then the average is applied and the epoch is one higher, or it does not, and then
nothing has changed: neither the state nor the work that was accumulated. Training is paused meanwhile, except in a run
with overlap: there it goes on, with the next epoch.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from distributed_training import __version__, schedule
from distributed_training.averaging.averager import Averager
from distributed_training.averaging.deadlines import states_of
from distributed_training.averaging.feedback import Attempt
from distributed_training.averaging.outcome import REFERENCE_BITS, RoundResult
from distributed_training.averaging.plan import RoundPlan, plan_from
from distributed_training.averaging.witness import Watch
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.engine.records import records_hash
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import RoundFinished, RoundRefused
from distributed_training.invitation import Reason, refuse, require_group, require_leader
from distributed_training.model.layout import Vector
from distributed_training.model.state import State
from distributed_training.peers import KnownPeers, validators_of
from distributed_training.protocol import AllReduce, AllReduceResponse, IsAlive, IsAliveResponse, PeerBinding
from distributed_training.run import RunSpec
from distributed_training.silence import Silence
from template.chain.metagraph import Metagraph
from template.clock import Clock
from template.errors import AveragingError, CorruptState, NotRegistered, Refused, StateError
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
class EndedRound:
    """A round this neuron took part in.

    `bases`: the parameters [P], by state hash, that an epoch that it ended may have been trained at, for audits; none
    at a miner. `state` is where this neuron stands after it.
    """

    request: AllReduce
    plan: RoundPlan
    bases: Mapping[str, Vector]
    result: RoundResult
    state: State

    @property
    def epoch(self) -> int:
        return self.request.epoch

    @property
    def completed(self) -> bool:
        return self.result.average is not None


OnEnded = Callable[[EndedRound], None]  # must return at once: the leader waits for our answer


class Node:
    """Answers `IsAlive` and `AllReduce` for one neuron.

    `turn` is held for as long as the state must be nobody else's to change: in a round, and while a state is adopted.
    `watch`: what to keep, in a round of that epoch, of the parts that pass through our share.
    """

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
        settled: Callable[[], bool],
        contributes: bool,
        telemetry: Telemetry,
        clock: Clock,
        turn: asyncio.Lock,
        watch: Callable[[int], Watch] | None = None,
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
        self._settled = settled
        self._contributes = contributes
        self._telemetry = telemetry
        self._clock = clock
        self._turn = turn
        self._watch = watch
        self._on_ended: OnEnded | None = None
        self.silence = Silence(chain, clock)  # of validators

    @property
    def in_round(self) -> bool:
        return self._turn.locked()

    def attach(self, axon: Axon, on_ended: OnEnded) -> None:
        """Serve both synapses. Anybody registered may ask where we stand; only a validator may start a round.

        `on_ended` is called after each round, completed or not.
        """
        self._on_ended = on_ended
        axon.attach(IsAlive, self._is_alive, validators_only=False)
        axon.attach(AllReduce, self._all_reduce, validators_only=True)

    def status(self) -> IsAliveResponse:
        """Where this neuron stands."""
        work = self._engine.work  # read once: the training thread may end the epoch between two reads
        return IsAliveResponse(
            epoch=work.epoch,
            state_hash=work.state_hash,
            samples=work.samples,
            corpus=self._corpus,
            settled=self._settled(),
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
            settled=now.settled,
        )

    def require_place(self, metagraph: Metagraph) -> None:
        """Raises NotRegistered if this neuron's hotkey does not hold its uid any more: it works for nobody then."""
        if metagraph.uid_of(self.binding.hotkey) != self.uid:
            raise NotRegistered(
                f"hotkey {self.binding.hotkey} lost uid {self.uid} of subnet {metagraph.netuid} before block "
                f"{metagraph.block}: register it again, then start this neuron again"
            )

    def hear(self, uid: int) -> None:
        """That neuron is alive; if it is a validator, miners do not go on without."""
        if uid in self._validators():
            self.silence.heard()

    async def _is_alive(self, request: IsAlive, caller: Caller) -> IsAliveResponse:
        self.hear(caller.uid)
        return self.status()

    async def _all_reduce(self, request: AllReduce, caller: Caller) -> AllReduceResponse:
        validators, turn = self._validators(), self._spec.epoch.turn_blocks
        self.hear(caller.uid)
        try:
            require_leader(request, caller.uid, validators, self._chain.block, turn)
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

    def _validators(self) -> frozenset[int]:
        return validators_of(self._chain.metagraph, self._spec.epoch.validator_stake)

    async def take_part(self, request: AllReduce) -> AllReduceResponse:
        """One attempt at a round, from the check of the group to the answer.

        Raises:
            Refused: with an `invitation.Reason`; nothing has changed then.
        """
        if self._turn.locked():
            raise refuse(Reason.BUSY, "a round is in progress, or this neuron is catching up")
        async with self._turn:
            self._require_state(request)
            await self._require_group(request)
            if self._spec.epoch.overlap:
                return await self._run_round(request)
            try:
                await self._worker.pause()
                return await self._run_round(request)
            finally:
                if self._contributes:
                    await self._worker.resume()

    def _require_state(self, request: AllReduce) -> None:
        work = self._engine.work
        if (request.epoch, request.state_hash) != (work.epoch, work.state_hash):
            raise refuse(Reason.OTHER_STATE, f"this neuron is at epoch {work.epoch}, state {work.state_hash[:12]}")

    async def _require_group(self, request: AllReduce) -> None:
        """In a thread: a large group has hundreds of signatures."""
        await asyncio.to_thread(
            require_group,
            request,
            uid=self.uid,
            binding=self.binding,
            metagraph=self._chain.metagraph,
            validators=self._validators(),
            spec=self._spec,
        )
        for member in request.group:
            self._known.add(member.peer.hotkey, member.peer.peer_id)

    async def _run_round(self, request: AllReduce) -> AllReduceResponse:
        started, busy = self._clock.monotonic(), self._worker.busy_seconds
        contribution = await self._contribution(request)
        samples = contribution.samples if contribution is not None else 0
        vector = contribution.vector if contribution is not None else None
        limits, size = self._spec.averaging, self._engine.layout.size
        try:
            plan = plan_from(
                request, size=size, quorum=limits.quorum, max_weight=limits.max_weight, reduction=limits.reduction
            )
            # who trained more than one may weigh is no liar: it weighs what it may
            attempt = None if vector is None else self._engine.attempt()
            result = await self._averager.run(
                plan,
                vector,
                min(float(samples), limits.max_weight),
                attempt,
                records=await _bound(contribution),
                watch=None if self._watch is None else self._watch(request.epoch),
            )
        except AveragingError as error:
            raise refuse(Reason.IMPOSSIBLE_ROUND, str(error)) from error
        bases = await self._commit(result, attempt)
        seconds = self._clock.monotonic() - started
        trained = self._worker.busy_seconds - busy
        answer = await self._answer(request, result, samples, seconds)
        self._telemetry.emit(_round_finished(self.uid, request, result, answer, trained))
        if self._on_ended is not None:
            self._on_ended(EndedRound(request, plan, bases, result, self._engine.state))
        return answer

    async def _contribution(self, request: AllReduce) -> Contribution | None:
        """What we put in; nothing as a validator, or if the leader saw nothing of ours yet and has us only reduce."""
        asked = any(member.uid == self.uid and member.contributes for member in request.group)
        if not (self._contributes and asked):
            return None
        try:
            return await self._worker.set_aside()
        except StateError as error:
            raise refuse(Reason.NOTHING_TO_GIVE, str(error)) from error

    async def _commit(self, result: RoundResult, attempt: Attempt | None) -> Mapping[str, Vector]:
        """Apply the average if there is one; at a validator, what the epoch that ended was trained at."""
        bases = self._engine.bases if not self._contributes else {}
        if result.average is None:
            return {}
        try:
            took_part = self.uid in result.outcome.participants  # else what we sent is in no average
            await self._worker.apply(result.average, attempt if took_part else None)
        except CorruptState as error:
            raise refuse(Reason.UNUSABLE_AVERAGE, str(error)) from error
        return bases

    async def _answer(self, request: AllReduce, result: RoundResult, samples: int, seconds: float) -> AllReduceResponse:
        work, ended = self._engine.work, self._engine.work_of(request.epoch)
        return AllReduceResponse(
            completed=result.average is not None,
            epoch=work.epoch,
            state_hash=work.state_hash,
            samples=samples,
            records_hash=await asyncio.to_thread(records_hash, ended.records, ended.marks),
            seconds=seconds,
            failures=result.outcome.failures,
            transfers=result.outcome.transfers,
            states=states_of(result.outcome),
        )


async def _bound(contribution: Contribution | None) -> str | None:
    """The hash by which a miner stands by its records, told to the whole group before anybody can read them."""
    return (
        None
        if contribution is None
        else await asyncio.to_thread(records_hash, contribution.records, contribution.marks)
    )


def _round_finished(
    uid: int, request: AllReduce, result: RoundResult, answer: AllReduceResponse, trained: float
) -> RoundFinished:
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
        trained=trained,
        bytes_sent=sum(t.bytes_sent for t in answer.transfers),
        bytes_received=sum(t.bytes_received for t in answer.transfers),
        phases={state.value: seconds for state, seconds in result.outcome.seconds.items()},
        work=dataclasses.asdict(result.outcome.work),
        first_byte=result.outcome.first_byte,
        planes={str(member): plane for member, plane in result.outcome.planes.items()},
        transfers=[transfer.model_dump() for transfer in result.outcome.transfers],
        restrained=[dataclasses.asdict(restraint) for restraint in result.outcome.restrained],
        bits_per_parameter=result.outcome.bits_per_parameter,
        reference_bits=REFERENCE_BITS,
    )
