"""Miners and validators of the simulation: the product's roles around stand-ins for threads, disks and the hub."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bittensor.keyfiles import Keypair

from distributed_training.averaging import memory as streams
from distributed_training.averaging.binding import sign_binding
from distributed_training.averaging.feedback import Attempt
from distributed_training.averaging.introduction import Introductions
from distributed_training.averaging.witness import Watch
from distributed_training.catch_up import CatchUp, CatchUpConfig
from distributed_training.data.loader import Loader, MicroBatch
from distributed_training.engine.audit import Auditor
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.miner.fallback import Fallback
from distributed_training.miner.miner import Miner
from distributed_training.model.layout import Vector
from distributed_training.model.state import State
from distributed_training.node import Node
from distributed_training.peers import Census, KnownPeers
from distributed_training.run import RunSpec
from distributed_training.schedule import View
from distributed_training.validator.audits import AuditDesk
from distributed_training.validator.lead import RoundLeader
from distributed_training.validator.memory import Memory, Remembered
from distributed_training.validator.paymaster import Paymaster
from distributed_training.validator.publisher import Publication
from distributed_training.validator.report_desk import ReportDesk
from distributed_training.validator.validator import Validator
from distributed_training.validator.watch import DRAWN
from template.telemetry import Event, Telemetry
from template.transport.policy import Caller
from tests.adversaries.behaviour import Behaviour
from tests.adversaries.subnet.chain import Chain
from tests.adversaries.subnet.hall import Hall, MemoryAverager
from tests.adversaries.subnet.virtual import VirtualClock
from tests.adversaries.subnet.wire import Axon, Dendrite, Wire

T = TypeVar("T")

FETCH_SECONDS = 0.5  # to take a state over from another neuron
REST_SECONDS = 0.2  # between two looks whether there is something to train
SHELVED = 4  # states


@functools.cache
def key_of(uid: int, generation: int = 0) -> Keypair:
    """The hotkey that holds a uid, in its `generation`."""
    return Keypair.create_from_uri(f"//simulated{uid}/{generation}")


class Shelf:
    """The last states that anybody computed. Computing one and the same for everybody would only take time."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, str], State] = {}
        self._next: dict[tuple[str, int], tuple[Vector, State]] = {}

    def next_state(self, engine: Engine, average: Vector) -> State:
        """What `Engine.next_state` gives; `average` is one object for all members of a round."""
        key = (engine.state_hash, id(average))
        if key not in self._next:
            state = engine.next_state(average)
            self._next[key] = (average, state)
            self.add(state)
            while len(self._next) > SHELVED:
                self._next.pop(next(iter(self._next)))
        return self._next[key][1]

    def add(self, state: State) -> None:
        self._states[state.epoch, state.hash] = state
        while len(self._states) > SHELVED:
            self._states.pop(next(iter(self._states)))

    def get(self, state: tuple[int, str]) -> State | None:
        return self._states.get(state)


class VirtualWorker:
    """In the place of `TrainingWorker`: a micro-batch takes `seconds` of simulated time."""

    def __init__(
        self, engine: Engine, next_batch: Callable[[int, int], MicroBatch | None], seconds: float, shelf: Shelf
    ) -> None:
        self._engine = engine
        self._next_batch = next_batch
        self._seconds = seconds
        self._shelf = shelf
        self._resumed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.busy_seconds = 0.0
        self.idle_seconds = 0.0

    async def resume(self) -> None:
        self._resumed.set()

    async def pause(self) -> None:
        """Return when the micro-batch in progress is done."""
        self._resumed.clear()
        await self._idle.wait()

    async def run(self, function: Callable[[Engine], T]) -> T:
        return function(self._engine)

    async def set_aside(self) -> Contribution:
        return self._engine.set_aside()

    async def apply(self, average: Vector, attempt: Attempt | None = None) -> None:
        self._engine.advance(self._shelf.next_state(self._engine, average), attempt)

    async def watch(self) -> None:
        """Train, until cancelled."""
        while True:
            await self._resumed.wait()
            work = self._engine.in_training
            batch = self._next_batch(work.epoch, work.next_number)
            if batch is None:
                await asyncio.sleep(REST_SECONDS)
                continue
            self._idle.clear()
            await asyncio.sleep(self._seconds)
            if self._engine.in_training.epoch == work.epoch:
                self._engine.train(batch)
                self.busy_seconds += self._seconds
            self._idle.set()


class InStep(CatchUp):
    """The product's decision when to catch up; the state itself comes off the shelf."""

    shelf: Shelf

    async def _fetch(self, mine: tuple[int, str], right: tuple[int, str], holders: list[View]) -> bool:
        state = self.shelf.get(right)
        await asyncio.sleep(FETCH_SECONDS)
        if state is None:
            return False
        async with self._turn:
            if self._state() != mine:
                return False
            await self._worker.run(lambda engine: engine.adopt(state))
        return True


class NoKeeper:
    """Keeps nothing: a simulated neuron is not started again."""

    async def keep(self) -> None:
        return


class NoFile:
    """Holds nothing of a validator's memory."""

    def load(self, run_id: str) -> Memory:
        return Memory(run_id)

    def save(self, memory: Memory) -> None:
        return


@dataclass
class Gauge:
    """In the place of the publisher: measures the held-out loss of every state that a round led to, for all."""

    auditor: Auditor
    held_out: list[MicroBatch]
    every: int
    losses: dict[int, float] = field(default_factory=dict)

    async def measure(self, state: State) -> None:
        if state.epoch % self.every == 0 and state.epoch not in self.losses:
            self.losses[state.epoch] = self.auditor.held_out_loss(state.params, self.held_out)

    def add(self, publication: Publication) -> None:
        state = publication.state
        if state.epoch % self.every == 0 and state.epoch not in self.losses:
            self.losses[state.epoch] = self.auditor.held_out_loss(state.params, self.held_out)

    async def run(self) -> None:
        await asyncio.Event().wait()


class Notes(Telemetry):
    """Keeps the events of some kinds, with the time, as they are."""

    def __init__(self, kinds: frozenset[type[Event]]) -> None:
        super().__init__()
        self._kinds = kinds
        self.events: list[tuple[float, Event]] = []

    def emit(self, event: Event) -> None:
        if type(event) in self._kinds:
            self.events.append((asyncio.get_running_loop().time(), event))


@dataclass
class World:
    """What all neurons of a simulation share."""

    spec: RunSpec
    loader: Loader
    chain: Chain
    wire: Wire
    hall: Hall
    streams: streams.MemoryNetwork
    shelf: Shelf
    gauge: Gauge
    clock: VirtualClock = field(default_factory=VirtualClock)


@dataclass
class Parts:
    """One neuron."""

    uid: int
    engine: Engine
    worker: VirtualWorker
    node: Node
    axon: Axon
    dendrite: Dendrite
    census: Census
    catch_up: InStep
    averager: MemoryAverager
    known: KnownPeers
    telemetry: Notes
    turn: asyncio.Lock


@asynccontextmanager
async def open_parts(
    world: World,
    uid: int,
    behaviour: Behaviour,
    *,
    contributes: bool,
    rate: float,
    seconds: float,
    seed: int,
    kinds: frozenset[type[Event]],
) -> AsyncIterator[Parts]:
    """The parts of a neuron whose micro-batches take `seconds` and whose streams carry `rate` bytes a second."""
    spec, loader, key, turn = world.spec, world.loader, key_of(uid), asyncio.Lock()
    telemetry, known = Notes(kinds), KnownPeers()
    engine = behaviour.engine(spec, loader, uid, "cpu")
    worker = VirtualWorker(engine, _batches(loader, uid), seconds * behaviour.pace, world.shelf)
    transport = world.streams.transport(f"peer{uid}")
    binding = sign_binding(key, spec.run_id, transport.peer_id, (f"/memory/{uid}",))
    averager = MemoryAverager(world.hall, uid, behaviour.line(rate))
    dendrite = Dendrite(world.wire, Caller(uid, key.ss58_address))
    census = Census(
        uid=uid,
        run_id=spec.run_id,
        corpus=loader.fingerprint,
        stake_floor=spec.epoch.validator_stake,
        binding=binding,
        transport=transport,
        dendrite=dendrite,  # type: ignore[arg-type]
        known=known,
        telemetry=telemetry,
    )
    catch_up = InStep(
        uid=uid,
        config=CatchUpConfig(),
        run_id=spec.run_id,
        engine=engine,
        worker=worker,  # type: ignore[arg-type]
        transport=transport,
        binding=binding,
        known=known,
        keeper=NoKeeper(),  # type: ignore[arg-type]
        hub=None,  # type: ignore[arg-type]
        folder=Path(),
        telemetry=telemetry,
        clock=world.clock,
        seed=uid,
        turn=turn,
    )
    catch_up.shelf = world.shelf
    node = Node(
        uid=uid,
        spec=spec,
        chain=world.chain,
        engine=engine,
        worker=worker,  # type: ignore[arg-type]
        averager=averager,  # type: ignore[arg-type]
        known=known,
        binding=binding,
        corpus=loader.fingerprint,
        settled=lambda: catch_up.settled,
        contributes=contributes,
        telemetry=telemetry,
        clock=world.clock,
        turn=turn,
        watch=None if contributes else _watching(spec, engine, seed),
    )
    axon = Axon(lambda asking: world.chain.metagraph.is_validator(asking, spec.epoch.validator_stake))
    world.wire.axons[uid] = axon
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Introductions(transport, binding))
        yield Parts(uid, engine, worker, node, axon, dendrite, census, catch_up, averager, known, telemetry, turn)


def _watching(spec: RunSpec, engine: Engine, seed: int) -> Callable[[int], Watch]:
    """As `validator.watch.watching`, with a secret that follows from the simulation's seed."""

    def watch(epoch: int) -> Watch:
        known = coordinates(spec.run_id, epoch, engine.layout, spec.audit.coordinates)
        return Watch(known, DRAWN, 1_000_003 * seed + epoch)

    return watch


def _batches(loader: Loader, uid: int) -> Callable[[int, int], MicroBatch | None]:
    def next_batch(epoch: int, number: int) -> MicroBatch | None:
        if number >= loader.micro_batches_per_epoch:
            return None
        return loader.micro_batch(epoch, uid, number)

    return next_batch


def miner_of(world: World, parts: Parts) -> Miner:
    """A whole miner, attached to its axon."""
    fallback = Fallback(
        spec=world.spec,
        chain=world.chain,
        node=parts.node,
        matchmaker=None,  # type: ignore[arg-type]  # the run spec has no fallback
        telemetry=parts.telemetry,
        clock=world.clock,
    )
    miner = Miner(
        spec=world.spec,
        chain=world.chain,
        node=parts.node,
        engine=parts.engine,
        worker=parts.worker,  # type: ignore[arg-type]
        keeper=NoKeeper(),  # type: ignore[arg-type]
        census=parts.census,
        catch_up=parts.catch_up,
        fallback=fallback,
        telemetry=parts.telemetry,
        clock=world.clock,
    )
    miner.attach(parts.axon)  # type: ignore[arg-type]
    return miner


def validator_of(world: World, parts: Parts, seed: int, until_epoch: int) -> Validator:
    """A whole validator, attached to its axon."""
    spec, telemetry = world.spec, parts.telemetry
    memory = Remembered(NoFile(), spec.run_id, telemetry)  # type: ignore[arg-type]
    validator = Validator(
        spec=spec,
        chain=world.chain,
        node=parts.node,
        engine=parts.engine,
        worker=parts.worker,  # type: ignore[arg-type]
        keeper=NoKeeper(),  # type: ignore[arg-type]
        census=parts.census,
        catch_up=parts.catch_up,
        leader=RoundLeader(
            spec=spec,
            node=parts.node,
            dendrite=parts.dendrite,  # type: ignore[arg-type]
            telemetry=telemetry,
            clock=world.clock,
        ),
        desk=AuditDesk(
            uid=parts.uid,
            spec=spec,
            loader=world.loader,
            auditor=Auditor(spec, world.loader.tokenizer.vocab_size),
            worker=parts.worker,  # type: ignore[arg-type]
            dendrite=parts.dendrite,  # type: ignore[arg-type]
            telemetry=telemetry,
            rng=random.Random(seed),
            exhibits=world.hall,
            in_time=lambda epoch: parts.engine.epoch <= epoch + 1,
            clock=world.clock,
        ),
        publisher=world.gauge,  # type: ignore[arg-type]
        paymaster=Paymaster(
            uid=parts.uid,
            spec=spec.scoring,
            netuid=1,
            chain=world.chain,
            client=world.chain,  # type: ignore[arg-type]  # what the simulation puts in set_weights' place takes it
            wallet=parts.uid,  # type: ignore[arg-type]
            memory=memory,
            telemetry=telemetry,
            clock=world.clock,
        ),
        memory=memory,
        reports=ReportDesk(parts.uid, None, telemetry),
        until_epoch=until_epoch,
        telemetry=telemetry,
        clock=world.clock,
    )
    validator.attach(parts.axon)  # type: ignore[arg-type]
    return validator
