"""From settings to a running neuron: opens every part in order, and closes them in the reverse one.

`open_miner` and `open_validator` are what the entry points run. A test or a researcher may pass another engine class.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import torch
from bittensor import Client, Wallet

from distributed_training.averaging.averager import Averager
from distributed_training.averaging.binding import sign_binding
from distributed_training.averaging.peer import Peer
from distributed_training.averaging.state_transfer import StateServer
from distributed_training.catch_up import CatchUp, CatchUpConfig
from distributed_training.data.build import build_loader
from distributed_training.data.loader import Loader
from distributed_training.engine.audit import Auditor
from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import NeuronStarted
from distributed_training.hub.build import build_hub
from distributed_training.hub.hub import Hub
from distributed_training.hub.secret import Secret as HubSecret
from distributed_training.keeper import Keeper
from distributed_training.miner.miner import Miner
from distributed_training.node import CompletedRound, Node
from distributed_training.peers import Census, KnownPeers
from distributed_training.run import RunSpec, load_run
from distributed_training.settings import Settings, ValidatorConfig
from distributed_training.validator.audits import AuditDesk
from distributed_training.validator.lead import RoundLeader
from distributed_training.validator.memory import MemoryFile
from distributed_training.validator.publisher import Publisher
from distributed_training.validator.validator import Validator
from template.chain.connect import connect
from template.chain.metagraph import read_metagraph
from template.chain.neuron_calls import serve_axon
from template.chain.wallet import open_wallet
from template.chain.watch import ChainWatch
from template.clock import Clock, SystemClock
from template.errors import ConfigurationError, NotRegistered
from template.neuron import Restart, Supervisor
from template.telemetry import Telemetry
from template.transport.axon import Axon
from template.transport.dendrite import Dendrite

EngineFactory = Callable[[RunSpec, Loader, int, str], Engine]
RESTART = Restart(times=5)


def honest_engine(spec: RunSpec, loader: Loader, uid: int, device: str) -> Engine:
    """The engine of a miner that does what it says."""
    return Engine(spec, loader.tokenizer.vocab_size, device)


@dataclass(frozen=True)
class Parts:
    """What both roles are built of."""

    uid: int
    spec: RunSpec
    settings: Settings
    client: Client
    wallet: Wallet
    chain: ChainWatch
    loader: Loader
    engine: Engine
    worker: TrainingWorker
    node: Node
    axon: Axon
    dendrite: Dendrite
    census: Census
    catch_up: CatchUp
    hub: Hub
    keeper: Keeper
    telemetry: Telemetry
    clock: Clock


@asynccontextmanager
async def open_miner(
    settings: Settings, telemetry: Telemetry, tasks: Supervisor, make_engine: EngineFactory = honest_engine
) -> AsyncIterator[Miner]:
    """A miner that trains and answers."""
    completed = _Later()
    async with AsyncExitStack() as stack:
        parts = await _open_parts(stack, settings, telemetry, make_engine, "miner", completed)
        miner = Miner(
            spec=parts.spec,
            chain=parts.chain,
            node=parts.node,
            engine=parts.engine,
            worker=parts.worker,
            keeper=parts.keeper,
            census=parts.census,
            catch_up=parts.catch_up,
            telemetry=telemetry,
            clock=parts.clock,
        )
        completed.call = miner.on_completed
        miner.attach(parts.axon)
        await _go_live(stack, parts, "miner")
        tasks.start("chain", parts.chain.run, RESTART)
        tasks.start("miner", miner.run)
        yield miner


@asynccontextmanager
async def open_validator(
    settings: Settings, config: ValidatorConfig, telemetry: Telemetry, tasks: Supervisor
) -> AsyncIterator[Validator]:
    """A validator that audits, leads and pays."""
    completed = _Later()
    async with AsyncExitStack() as stack:
        parts = await _open_parts(stack, settings, telemetry, honest_engine, "validator", completed)
        validator = _build_validator(parts, config)
        completed.call = validator.on_completed
        parts.node.attach(parts.axon)
        await _go_live(stack, parts, "validator")
        tasks.start("chain", parts.chain.run, RESTART)
        tasks.start("validator", validator.run)
        yield validator


def _build_validator(parts: Parts, config: ValidatorConfig) -> Validator:
    spec, telemetry, clock = parts.spec, parts.telemetry, parts.clock
    auditor = Auditor(spec, parts.loader.tokenizer.vocab_size, parts.settings.general.device)
    leader = RoundLeader(spec=spec, node=parts.node, dendrite=parts.dendrite, telemetry=telemetry, clock=clock)
    desk = AuditDesk(
        uid=parts.uid,
        spec=spec,
        loader=parts.loader,
        auditor=auditor,
        worker=parts.worker,
        dendrite=parts.dendrite,
        telemetry=telemetry,
        rng=random.SystemRandom(),
    )
    publisher = Publisher(
        uid=parts.uid,
        run_id=spec.run_id,
        engine=parts.engine,
        worker=parts.worker,
        keeper=parts.keeper,
        hub=parts.hub,
        held_out=parts.loader.held_out(),
        telemetry=telemetry,
    )
    return Validator(
        spec=spec,
        chain=parts.chain,
        client=parts.client,
        wallet=parts.wallet,
        netuid=parts.settings.general.netuid,
        node=parts.node,
        worker=parts.worker,
        keeper=parts.keeper,
        census=parts.census,
        catch_up=parts.catch_up,
        leader=leader,
        desk=desk,
        publisher=publisher,
        memory=MemoryFile(parts.settings.general.folder / "validator.json"),
        until_epoch=config.until_epoch,
        telemetry=telemetry,
        clock=clock,
    )


class _Later:
    """The callback of a part that is built after the one that calls it."""

    call: Callable[[CompletedRound], Awaitable[None]]

    async def __call__(self, done: CompletedRound) -> None:
        await self.call(done)


async def _open_parts(
    stack: AsyncExitStack,
    settings: Settings,
    telemetry: Telemetry,
    make_engine: EngineFactory,
    role: str,
    on_completed: Callable[[CompletedRound], Awaitable[None]],
) -> Parts:
    general, clock = settings.general, SystemClock()
    spec = load_run(general.run)
    if general.threads is not None:
        torch.set_num_threads(general.threads)
    general.folder.mkdir(parents=True, exist_ok=True)
    wallet = open_wallet(settings.wallet.name, settings.wallet.hotkey, settings.wallet.path)
    client = await stack.enter_async_context(connect(settings.subtensor.network))
    metagraph = await read_metagraph(client, general.netuid)
    uid = metagraph.uid_of(wallet.hotkey.ss58_address)
    if uid is None:
        raise NotRegistered(
            f"hotkey {settings.wallet.hotkey} of wallet {settings.wallet.name} has no uid on subnet {general.netuid} "
            f"of {settings.subtensor.network}: register it first (see README, 'On a real chain')"
        )
    chain = ChainWatch(
        client,
        metagraph,
        stake_floor=spec.epoch.validator_stake,
        config=settings.chain,
        telemetry=telemetry,
        clock=clock,
    )
    loader = build_loader(spec, cache=general.folder / "corpus", telemetry=telemetry)
    if role == "miner" and uid >= spec.data.max_uids:
        raise ConfigurationError(f"uid {uid} gets no data: the run's data.max_uids is {spec.data.max_uids}")
    engine = make_engine(spec, loader, uid, general.device)
    checkpoint = general.folder / "checkpoint"
    engine.load(checkpoint)
    token = settings.secret.token
    hub = build_hub(
        settings.hub, token=None if token is None else HubSecret(token.reveal()), telemetry=telemetry, clock=clock
    )
    worker = await stack.enter_async_context(TrainingWorker(engine, _batches(loader, uid), telemetry=telemetry))
    keeper = Keeper(checkpoint, worker)
    await keeper.save()
    peer = await stack.enter_async_context(Peer(settings.dht.peer(general.folder / "peer.key")))
    known = KnownPeers()
    averager = await stack.enter_async_context(
        Averager(peer, uid=uid, run_id=spec.run_id, allow=known.__contains__, direct=peer.direct, telemetry=telemetry)
    )
    binding = sign_binding(wallet.hotkey, spec.run_id, peer.peer_id, peer.addresses)
    dendrite = await stack.enter_async_context(Dendrite(wallet.hotkey, clock=clock))
    axon = Axon(wallet.hotkey, spec.run_id, chain, settings.axon, telemetry, clock)
    await stack.enter_async_context(
        StateServer(peer, run_id=spec.run_id, provider=keeper.offer, allow=known.__contains__)
    )
    corpus = loader.fingerprint
    census = Census(
        uid=uid,
        run_id=spec.run_id,
        corpus=corpus,
        stake_floor=spec.epoch.validator_stake,
        dendrite=dendrite,
        known=known,
        telemetry=telemetry,
    )
    catch_up = CatchUp(
        uid=uid,
        config=CatchUpConfig(),
        run_id=spec.run_id,
        engine=engine,
        worker=worker,
        transport=peer,
        known=known,
        keeper=keeper,
        hub=hub,
        folder=general.folder,
        telemetry=telemetry,
        clock=clock,
        seed=secrets.randbits(64),
    )
    node = Node(
        uid=uid,
        spec=spec,
        chain=chain,
        engine=engine,
        worker=worker,
        averager=averager,
        known=known,
        binding=binding,
        corpus=corpus,
        contributes=role == "miner",
        telemetry=telemetry,
        clock=clock,
        on_completed=on_completed,
    )
    return Parts(
        uid, spec, settings, client, wallet, chain, loader, engine, worker, node, axon, dendrite, census, catch_up,
        hub, keeper, telemetry, clock,
    )  # fmt: skip


async def _go_live(stack: AsyncExitStack, parts: Parts, role: str) -> None:
    """Listen, and tell the chain and the log where."""
    await stack.enter_async_context(parts.axon)
    ip, port = parts.axon.published
    await serve_axon(parts.client, parts.wallet, parts.settings.general.netuid, ip or parts.settings.axon.ip, port)
    parts.telemetry.emit(
        NeuronStarted(
            uid=parts.uid,
            role=role,
            run_id=parts.spec.run_id,
            epoch=parts.engine.epoch,
            state_hash=parts.engine.state_hash,
            corpus=parts.loader.fingerprint,
            axon=f"{ip or parts.settings.axon.ip}:{port}",
            peer_id=parts.node.binding.peer_id,
        )
    )


def _batches(loader: Loader, uid: int) -> Callable[[int, int], MicroBatch | None]:
    """The assignment of `uid`, one micro-batch after another, until the epoch's are used up."""

    def next_batch(epoch: int, number: int) -> MicroBatch | None:
        return loader.micro_batch(epoch, uid, number) if number < loader.micro_batches_per_epoch else None

    return next_batch
