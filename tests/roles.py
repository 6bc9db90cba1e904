"""A subnet inside one process for the tests of the roles: real engines, axons and rounds, in-memory wires, no chain.

Validators have the first uids, then come the miners; everybody knows everybody, and nobody trains unless told to.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bittensor.keyfiles import Keypair

from distributed_training.averaging import memory as streams
from distributed_training.averaging.averager import Averager
from distributed_training.averaging.binding import sign_binding
from distributed_training.averaging.introduction import Introductions
from distributed_training.averaging.matchmaking import Matchmaker, MatchmakingLimits
from distributed_training.averaging.noticeboard import MemoryNotices
from distributed_training.averaging.state_transfer import StateServer
from distributed_training.catch_up import CatchUp, CatchUpConfig
from distributed_training.composition import EngineFactory, honest_engine
from distributed_training.data.build import build_loader
from distributed_training.data.loader import Loader, MicroBatch
from distributed_training.data.remote import CorpusConfig
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker
from distributed_training.hub.hub import Hub
from distributed_training.hub.memory import MemoryHub
from distributed_training.keeper import Keeper
from distributed_training.miner.fallback import Fallback
from distributed_training.miner.miner import Miner
from distributed_training.node import EndedRound, Node
from distributed_training.peers import Census, KnownPeers
from distributed_training.protocol import AllReduce, Deadlines
from distributed_training.run import AuditSpec, AveragingSpec, DataSpec, EpochSpec, RunSpec
from distributed_training.schedule import View, group
from distributed_training.silence import Silence
from distributed_training.validator.watch import watching
from template.chain.metagraph import AxonInfo, Metagraph
from template.clock import Clock, SystemClock
from template.telemetry import MemorySink, Telemetry
from template.transport.axon import Axon, AxonConfig
from template.transport.dendrite import Dendrite
from template.transport.memory import HOST, MemoryNetwork
from tests.data.corpora import write_text
from tests.engine import tiny

EPOCH = EpochSpec(
    target_samples=4,
    max_blocks=5,
    min_miners=1,
    turn_blocks=5,
    attempts=3,
    validator_stake=10.0,
    fallback_blocks=10,
)
AVERAGING = AveragingSpec(
    codec="none",
    error_feedback=False,
    connect_seconds=10,
    exchange_seconds=10,
    commit_seconds=10,
    answer_seconds=5,
    least_seconds=0.2,
    deadline_spread=4,
    reduction="mean",
    validator_share=1.0,
    quorum=0.67,
    max_weight=1000,
)
AUDIT = AuditSpec(
    coordinates=16,
    miners_per_epoch=8,
    loss_tolerance=1e-4,
    gradient_tolerance=1e-2,
    threshold=0.9,
    alignment=0.2,
    inflation=4.0,
    share=1.0,
    overhead=1000.0,
)


def run_spec(folder: Path, **changes: Any) -> RunSpec:
    """A run over a small text corpus in `folder`: a page is 32 bytes, a micro-batch one page of two samples.

    No page is shorter: 12 texts of 400 bytes with their ends. Which pages a miner gets depends on the folder's name.
    """
    corpus = folder / "texts"
    if not corpus.exists():
        random = np.random.default_rng(0)
        letters = np.frombuffer(b"abcdefghij klmnop", np.uint8)
        write_text(corpus, [random.choice(letters, 399).tobytes().decode() for _ in range(12)])
    data = DataSpec(
        source="text",
        path=str(corpus),
        tokenizer="bytes",
        sequence_length=tiny.LENGTH,
        page_size=32,
        pages_per_micro_batch=1,
        pages_per_epoch=8,
        max_uids=8,
        held_out_pages=4,
    )
    return tiny.spec(**{"data": data, "epoch": EPOCH, "averaging": AVERAGING, "audit": AUDIT, **changes})


def key_of(uid: int) -> Keypair:
    return Keypair.create_from_uri(f"//neuron{uid}")


def metagraph_of(size: int, validators: Iterable[int] = (0,), **changes: Any) -> Metagraph:
    """A subnet whose uid u has the hotkey of `key_of(u)` and the address of the u-th axon in memory."""
    chosen, hotkeys = set(validators), tuple(key_of(uid).ss58_address for uid in range(size))
    uids = range(size)
    graph = Metagraph(
        netuid=1,
        mechid=0,
        block=1,
        tempo=20,
        hotkeys=hotkeys,
        coldkeys=hotkeys,
        stake=tuple(100.0 if uid in chosen else 0.0 for uid in uids),
        validator_permit=tuple(uid in chosen for uid in uids),
        axons=tuple(AxonInfo(HOST, uid + 1) for uid in uids),
        last_update=(1,) * size,
        registered_at=(1,) * size,
        incentive=(0.0,) * size,
        dividends=(0.0,) * size,
        emission=(0.0,) * size,
        weights_version=0,
        weights_rate_limit=5,
        min_allowed_weights=1,
        max_weights_limit=65535,
        max_uids=64,
        owner_hotkey=hotkeys[0],
    )
    return dataclasses.replace(graph, **changes)


@dataclass
class Chain:
    """A ChainView, and the directory of the axons, moved by hand."""

    metagraph: Metagraph
    block: int = 1

    def uid_of(self, hotkey: str) -> int | None:
        return self.metagraph.uid_of(hotkey)

    def is_validator(self, uid: int) -> bool:
        return self.metagraph.is_validator(uid, EPOCH.validator_stake)

    async def look_again(self) -> bool:
        return False  # what was set by hand is the latest


@dataclass
class Neuron:
    """One neuron's parts, and what it told."""

    uid: int
    engine: Engine
    worker: TrainingWorker
    keeper: Keeper
    averager: Averager
    known: KnownPeers
    node: Node
    axon: Axon
    dendrite: Dendrite
    sink: MemorySink
    telemetry: Telemetry
    transport: streams.MemoryTransport
    turn: asyncio.Lock
    ended: list[EndedRound] = field(default_factory=list)

    def told(self, kind: str) -> list[Any]:
        """The events of a kind, oldest first."""
        return [record for record in self.sink.records if record["kind"] == kind]

    @property
    def state(self) -> tuple[int, str]:
        return self.engine.epoch, self.engine.state_hash


@dataclass
class Subnet:
    """All neurons by uid."""

    spec: RunSpec
    chain: Chain
    loader: Loader
    folder: Path
    wire: MemoryNetwork
    streams: streams.MemoryNetwork
    neurons: dict[int, Neuron]
    notices: MemoryNotices = field(default_factory=MemoryNotices)
    at_will: bool = False  # whether miners train by themselves once they are resumed

    def next_batch(self, uid: int) -> Callable[[int, int], MicroBatch | None]:
        def next_batch(epoch: int, number: int) -> MicroBatch | None:
            if not self.at_will or number >= self.loader.micro_batches_per_epoch:
                return None
            return self.loader.micro_batch(epoch, uid, number)

        return next_batch

    async def train(self, uid: int, count: int = 2, first: int = 0) -> None:
        """Train micro-batches of the miner's assignment in its worker's thread."""
        neuron = self.neurons[uid]
        for number in range(first, first + count):
            batch = self.loader.micro_batch(neuron.engine.in_training.epoch, uid, number)
            await neuron.worker.run(lambda engine, batch=batch: engine.train(batch))  # type: ignore[misc]

    def views(self) -> list[View]:
        return [
            dataclasses.replace(n.node.view(), is_validator=self.chain.is_validator(u)) for u, n in self.neurons.items()
        ]

    def census(self, uid: int, corpus: str | None = None) -> Census:
        """The census of one neuron; `corpus`: another fingerprint than all have."""
        neuron = self.neurons[uid]
        return Census(
            uid=uid,
            run_id=self.spec.run_id,
            corpus=corpus or self.loader.fingerprint,
            stake_floor=self.spec.epoch.validator_stake,
            binding=neuron.node.binding,
            transport=neuron.transport,
            dendrite=neuron.dendrite,
            known=neuron.known,
            telemetry=neuron.telemetry,
        )

    def catch_up(self, uid: int, hub: Hub, clock: Clock, config: CatchUpConfig | None = None) -> CatchUp:
        """What gets a neuron back in step."""
        neuron, folder = self.neurons[uid], self.folder / f"neuron{uid}"
        folder.mkdir()
        return CatchUp(
            uid=uid,
            config=config or CatchUpConfig(),
            run_id=self.spec.run_id,
            engine=neuron.engine,
            worker=neuron.worker,
            transport=neuron.transport,
            binding=neuron.node.binding,
            known=neuron.known,
            keeper=neuron.keeper,
            hub=hub,
            folder=folder,
            telemetry=neuron.telemetry,
            clock=clock,
            seed=0,
            turn=neuron.turn,
        )

    def fallback(self, uid: int, clock: Clock | None = None, search_seconds: float = 5.0) -> Fallback:
        """How a miner goes on without validators; `clock` measures the silence, too."""
        neuron, clock = self.neurons[uid], clock or SystemClock()
        neuron.node.silence = Silence(self.chain, clock)
        board = self.notices.board(neuron.transport.peer_id)
        limits = MatchmakingLimits(request=0.5, wait=1.5, search=search_seconds, poll=0.02)
        matchmaker = Matchmaker(
            neuron.transport, board, allow=neuron.known.__contains__, telemetry=neuron.telemetry, limits=limits
        )
        return Fallback(
            spec=self.spec,
            chain=self.chain,
            node=neuron.node,
            matchmaker=matchmaker,
            telemetry=neuron.telemetry,
            clock=clock,
        )

    def miner(self, uid: int, clock: Clock | None = None) -> Miner:
        """A whole miner around a neuron that is not attached yet."""
        neuron, clock = self.neurons[uid], clock or SystemClock()
        miner = Miner(
            spec=self.spec,
            chain=self.chain,
            node=neuron.node,
            engine=neuron.engine,
            worker=neuron.worker,
            keeper=neuron.keeper,
            census=self.census(uid),
            catch_up=self.catch_up(uid, MemoryHub(telemetry=neuron.telemetry, clock=clock), clock),
            fallback=self.fallback(uid, clock),
            telemetry=neuron.telemetry,
            clock=clock,
        )
        miner.attach(neuron.axon)
        return miner

    def request(self, **changes: Any) -> AllReduce:
        """A round of everybody who has something to give, and the validators."""
        state = self.neurons[0].state
        limits = self.spec.averaging
        fields = {
            "run_id": self.spec.run_id,
            "epoch": state[0],
            "state_hash": state[1],
            "attempt": 0,
            "round_id": np.random.default_rng().bytes(16).hex(),
            "group": group(self.views(), state),
            "codec": limits.codec,
            "deadlines": Deadlines(
                connect=limits.connect_seconds, exchange=limits.exchange_seconds, commit=limits.commit_seconds
            ),
        }
        return AllReduce(**{**fields, **changes})


@asynccontextmanager
async def subnet(
    folder: Path,
    miners: int = 2,
    validators: int = 1,
    *,
    attached: bool = True,
    engines: Mapping[int, EngineFactory] | None = None,
    corpus: CorpusConfig | None = None,
    **changes: Any,
) -> AsyncIterator[Subnet]:
    """Neurons that serve IsAlive and AllReduce, if `attached`. `engines` by uid; honest ones else.

    `changes` to the run spec; `corpus`: how it is read.
    """
    spec = run_spec(folder, **changes)
    chain = Chain(metagraph_of(validators + miners, range(validators)))
    loader = build_loader(spec, config=corpus)
    net = Subnet(spec, chain, loader, folder, MemoryNetwork(), streams.MemoryNetwork(), {})
    async with AsyncExitStack() as stack:
        for uid in range(validators + miners):
            make = (engines or {}).get(uid, honest_engine)
            net.neurons[uid] = await _neuron(stack, net, uid, make, contributes=uid >= validators)
        for one in net.neurons.values():
            for other in net.neurons.values():
                one.known.add(other.node.binding.hotkey, other.node.binding.peer_id)
            if attached:
                one.node.attach(one.axon, one.ended.append)
        yield net


async def _neuron(stack: AsyncExitStack, net: Subnet, uid: int, make: EngineFactory, *, contributes: bool) -> Neuron:
    sink, key, known, turn = MemorySink(), key_of(uid), KnownPeers(), asyncio.Lock()
    telemetry, clock = Telemetry([sink]), SystemClock()
    engine = make(net.spec, net.loader, uid, "cpu")
    worker = await stack.enter_async_context(TrainingWorker(engine, net.next_batch(uid), telemetry=telemetry))
    transport = net.streams.transport(f"peer{uid}")
    averager = await stack.enter_async_context(
        Averager(transport, uid=uid, run_id=net.spec.run_id, allow=known.__contains__, telemetry=telemetry)
    )
    binding = sign_binding(key, net.spec.run_id, transport.peer_id, ("/memory",))
    await stack.enter_async_context(Introductions(transport, binding))
    node = Node(
        uid=uid,
        spec=net.spec,
        chain=net.chain,
        engine=engine,
        worker=worker,
        averager=averager,
        known=known,
        binding=binding,
        corpus=net.loader.fingerprint,
        settled=lambda: True,
        contributes=contributes,
        telemetry=telemetry,
        clock=clock,
        turn=turn,
        watch=None if contributes else watching(net.spec, engine.layout),
    )
    axon = Axon(key, net.spec.run_id, net.chain, AxonConfig(ip="127.0.0.1"), telemetry, clock)
    await stack.enter_async_context(net.wire.serving(axon))
    dendrite = await stack.enter_async_context(Dendrite(key, transport=net.wire.transport()))
    keeper = Keeper(net.folder / f"checkpoint{uid}", worker, telemetry)
    return Neuron(uid, engine, worker, keeper, averager, known, node, axon, dendrite, sink, telemetry, transport, turn)


def serving(neuron: Neuron) -> StateServer:
    """Its kept states, for those whom it knows."""
    return StateServer(
        neuron.transport,
        run_id=neuron.averager._run_id,
        provider=neuron.keeper.offer,
        own=neuron.keeper.own,
        allow=neuron.known.__contains__,
        admit=lambda _: False,
    )
