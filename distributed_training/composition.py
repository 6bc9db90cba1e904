"""From settings to a running neuron: opens every part in order, and closes them in the reverse one.

`open_miner` and `open_validator` are what the entry points run. A test or a researcher may pass another engine class.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from bittensor import Client, Wallet

from distributed_training.averaging.averager import Averager
from distributed_training.averaging.binding import binding_is_valid, sign_binding
from distributed_training.averaging.introduction import Introductions
from distributed_training.averaging.matchmaking import Matchmaker
from distributed_training.averaging.peer import Peer
from distributed_training.averaging.state_transfer import StateServer
from distributed_training.averaging.wire_exhibits import WireExhibits
from distributed_training.catch_up import CatchUp, CatchUpConfig
from distributed_training.data.build import build_loader
from distributed_training.data.loader import Loader
from distributed_training.data.prefetch import Prefetch
from distributed_training.engine.audit import Auditor
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import CatchUpFailed, CaughtUp, NeuronStarted
from distributed_training.hub.build import build_hub
from distributed_training.hub.hub import Hub
from distributed_training.keeper import Keeper
from distributed_training.miner.fallback import Fallback
from distributed_training.miner.miner import Miner
from distributed_training.node import Node
from distributed_training.peers import Census, KnownPeers
from distributed_training.protocol import MAX_GROUP, PeerBinding
from distributed_training.run import RunSpec, load_run
from distributed_training.settings import Settings, ValidatorConfig
from distributed_training.validator.audits import AuditDesk
from distributed_training.validator.lead import RoundLeader
from distributed_training.validator.memory import MemoryFile, Remembered
from distributed_training.validator.paymaster import Paymaster
from distributed_training.validator.publisher import Publisher
from distributed_training.validator.replays import ReplayDesk
from distributed_training.validator.report_desk import KEPT_EPOCHS, ReportDesk
from distributed_training.validator.report_file import ReportFile
from distributed_training.validator.shown_states import PeerStates
from distributed_training.validator.validator import Validator
from distributed_training.validator.watch import watching
from template.chain.connect import connect
from template.chain.metagraph import read_metagraph
from template.chain.neuron_calls import serve_axon
from template.chain.wallet import open_wallet
from template.chain.watch import ChainWatch
from template.clock import Clock, SystemClock
from template.errors import ConfigurationError, CorruptState, NotRegistered, StateMismatch
from template.neuron import Restart, Supervisor
from template.telemetry import Telemetry
from template.transport.axon import Axon
from template.transport.dendrite import Dendrite, DendriteConfig

EngineFactory = Callable[[RunSpec, Loader, int, str], Engine]
Role = Literal["miner", "validator"]
RESTART = Restart(times=5)
# A round's request must reach the whole group at once: whoever is asked later is missed by those asked before.
LEADING = DendriteConfig(concurrency=MAX_GROUP, max_response_bytes=1024 * 1024)


def honest_engine(spec: RunSpec, loader: Loader, uid: int, device: str) -> Engine:
    """The engine of a miner that does what it says."""
    return Engine(spec, loader.tokenizer.vocab_size, device)


@dataclass(frozen=True)
class Base:
    """What a neuron knows before it opens anything to others."""

    uid: int
    role: Role
    spec: RunSpec
    settings: Settings
    client: Client
    wallet: Wallet
    chain: ChainWatch
    loader: Loader
    hub: Hub
    telemetry: Telemetry
    clock: Clock


@dataclass(frozen=True)
class Training:
    """The engine, its thread, and its checkpoint."""

    engine: Engine
    worker: TrainingWorker
    keeper: Keeper


@dataclass(frozen=True)
class Network:
    """How this neuron reaches others and is reached."""

    peer: Peer
    known: KnownPeers
    averager: Averager
    binding: PeerBinding
    dendrite: Dendrite
    axon: Axon


@dataclass(frozen=True)
class Parts:
    """What both roles are built of."""

    base: Base
    training: Training
    network: Network
    node: Node
    census: Census
    catch_up: CatchUp


@asynccontextmanager
async def open_miner(
    settings: Settings, telemetry: Telemetry, tasks: Supervisor, make_engine: EngineFactory = honest_engine
) -> AsyncIterator[Miner]:
    """A miner that trains and answers."""
    async with AsyncExitStack() as stack:
        parts = await _open_parts(stack, settings, telemetry, make_engine, "miner")
        miner = Miner(
            spec=parts.base.spec,
            chain=parts.base.chain,
            node=parts.node,
            engine=parts.training.engine,
            worker=parts.training.worker,
            keeper=parts.training.keeper,
            census=parts.census,
            catch_up=parts.catch_up,
            fallback=_fallback(parts),
            telemetry=telemetry,
            clock=parts.base.clock,
        )
        miner.attach(parts.network.axon)
        await _go_live(stack, parts)
        tasks.start("chain", parts.base.chain.run, RESTART)
        tasks.start("miner", miner.run)
        yield miner


def _fallback(parts: Parts) -> Fallback:
    base, network = parts.base, parts.network
    matchmaker = Matchmaker(network.peer, network.peer, allow=network.known.__contains__, telemetry=base.telemetry)
    return Fallback(
        spec=base.spec,
        chain=base.chain,
        node=parts.node,
        matchmaker=matchmaker,
        telemetry=base.telemetry,
        clock=base.clock,
    )


@asynccontextmanager
async def open_validator(
    settings: Settings, config: ValidatorConfig, telemetry: Telemetry, tasks: Supervisor
) -> AsyncIterator[Validator]:
    """A validator that audits, leads and pays."""
    async with AsyncExitStack() as stack:
        parts = await _open_parts(stack, settings, telemetry, honest_engine, "validator")
        validator = await _build_validator(stack, parts, config)
        validator.attach(parts.network.axon)
        await _go_live(stack, parts)
        tasks.start("chain", parts.base.chain.run, RESTART)
        tasks.start("validator", validator.run)
        yield validator


async def _build_validator(stack: AsyncExitStack, parts: Parts, config: ValidatorConfig) -> Validator:
    base, training = parts.base, parts.training
    spec, telemetry, clock = base.spec, base.telemetry, base.clock
    file = MemoryFile(base.settings.general.folder / "validator.json")
    memory = Remembered(file, spec.run_id, telemetry)
    dendrite = await stack.enter_async_context(Dendrite(base.wallet.hotkey, LEADING, clock=clock))
    auditor = Auditor(spec, base.loader.tokenizer.vocab_size, base.settings.general.device)
    return Validator(
        spec=spec,
        chain=base.chain,
        node=parts.node,
        engine=training.engine,
        worker=training.worker,
        keeper=training.keeper,
        census=parts.census,
        catch_up=parts.catch_up,
        leader=RoundLeader(spec=spec, node=parts.node, dendrite=dendrite, telemetry=telemetry, clock=clock),
        desk=_audit_desk(parts, auditor),
        publisher=await _publisher(parts, auditor),
        paymaster=_paymaster(base, memory),
        memory=memory,
        reports=await asyncio.to_thread(_report_desk, base),
        until_epoch=config.until_epoch,
        telemetry=telemetry,
        clock=clock,
    )


def _audit_desk(parts: Parts, auditor: Auditor) -> AuditDesk:
    base = parts.base
    return AuditDesk(
        uid=base.uid,
        spec=base.spec,
        loader=base.loader,
        auditor=auditor,
        worker=parts.training.worker,
        dendrite=parts.network.dendrite,
        telemetry=base.telemetry,
        rng=random.SystemRandom(),
        exhibits=WireExhibits(parts.network.peer, base.clock),
        in_time=lambda epoch: parts.training.engine.epoch <= epoch + 1,
        clock=base.clock,
        replays=_replay_desk(parts, auditor),
    )


def _replay_desk(parts: Parts, auditor: Auditor) -> ReplayDesk | None:
    base, network, engine = parts.base, parts.network, parts.training.engine
    replay = base.spec.audit.replay
    if replay is None:
        return None
    states = PeerStates(
        transport=network.peer,
        binding=network.binding,
        run_id=base.spec.run_id,
        layout=engine.layout,
        vectors=engine.own_vectors,
        architecture=engine.architecture,
        folder=base.settings.general.folder,
    )
    return ReplayDesk(
        uid=base.uid,
        spec=base.spec,
        replay=replay,
        loader=base.loader,
        auditor=auditor,
        worker=parts.training.worker,
        dendrite=network.dendrite,
        states=states,
        telemetry=base.telemetry,
        clock=base.clock,
        rng=random.SystemRandom(),
    )


def _report_desk(base: Base) -> ReportDesk:
    """With what this validator scored before it was started."""
    file = ReportFile(base.settings.general.folder / "reports.jsonl", base.spec.run_id, KEPT_EPOCHS)
    return ReportDesk(base.uid, file, base.telemetry)


async def _publisher(parts: Parts, auditor: Auditor) -> Publisher:
    base, training = parts.base, parts.training
    return Publisher(
        uid=base.uid,
        run_id=base.spec.run_id,
        auditor=auditor,
        worker=training.worker,
        config=training.engine.architecture,
        folder=base.settings.general.folder,
        hub=base.hub,
        retention=base.settings.hub.retention,
        held_out=await asyncio.to_thread(base.loader.held_out),
        telemetry=base.telemetry,
    )


def _paymaster(base: Base, memory: Remembered) -> Paymaster:
    return Paymaster(
        uid=base.uid,
        spec=base.spec.scoring,
        netuid=base.settings.general.netuid,
        chain=base.chain,
        client=base.client,
        wallet=base.wallet,
        memory=memory,
        telemetry=base.telemetry,
        clock=base.clock,
    )


async def _open_parts(
    stack: AsyncExitStack, settings: Settings, telemetry: Telemetry, make_engine: EngineFactory, role: Role
) -> Parts:
    base = await _open_base(stack, settings, telemetry, role)
    training = await _open_training(stack, base, make_engine)
    network = await _open_network(stack, base, training.keeper)
    spec, corpus, turn = base.spec, base.loader.fingerprint, asyncio.Lock()
    census = Census(
        uid=base.uid,
        run_id=spec.run_id,
        corpus=corpus,
        stake_floor=spec.epoch.validator_stake,
        binding=network.binding,
        transport=network.peer,
        dendrite=network.dendrite,
        known=network.known,
        telemetry=telemetry,
    )
    catch_up = CatchUp(
        uid=base.uid,
        config=CatchUpConfig(),
        run_id=spec.run_id,
        engine=training.engine,
        worker=training.worker,
        transport=network.peer,
        binding=network.binding,
        known=network.known,
        keeper=training.keeper,
        hub=base.hub,
        folder=settings.general.folder,
        telemetry=telemetry,
        clock=base.clock,
        seed=secrets.randbits(64),
        turn=turn,
    )
    node = Node(
        uid=base.uid,
        spec=spec,
        chain=base.chain,
        engine=training.engine,
        worker=training.worker,
        averager=network.averager,
        known=network.known,
        binding=network.binding,
        corpus=corpus,
        settled=lambda: catch_up.settled,
        contributes=role == "miner",
        watch=watching(spec, training.engine.layout) if role == "validator" else None,
        telemetry=telemetry,
        clock=base.clock,
        turn=turn,
    )
    return Parts(base, training, network, node, census, catch_up)


async def _open_base(stack: AsyncExitStack, settings: Settings, telemetry: Telemetry, role: Role) -> Base:
    """Everything that can be found wrong before anything is opened to others, what is quick to find first."""
    general, clock = settings.general, SystemClock()
    spec = load_run(general.run)
    _require_reachable(settings)
    _set_up_torch(general.device, general.threads)
    _make_folder(general.folder)
    wallet = open_wallet(settings.wallet.name, settings.wallet.hotkey, settings.wallet.path)
    client = await stack.enter_async_context(connect(settings.subtensor.network))
    metagraph = await read_metagraph(client, general.netuid)
    uid = metagraph.uid_of(wallet.hotkey.ss58_address)
    if uid is None:
        raise NotRegistered(
            f"hotkey {settings.wallet.hotkey} of wallet {settings.wallet.name} has no uid on subnet {general.netuid} "
            f"of {settings.subtensor.network}: register it first (see README, 'On a real chain')"
        )
    if role == "miner" and uid >= spec.data.max_uids:
        raise ConfigurationError(f"uid {uid} gets no data: the run's data.max_uids is {spec.data.max_uids}")
    stake_floor = spec.epoch.validator_stake
    chain = ChainWatch(
        client, metagraph, stake_floor=stake_floor, config=settings.chain, telemetry=telemetry, clock=clock
    )
    cache = general.folder / "corpus"
    loader = await asyncio.to_thread(
        build_loader,
        spec,
        cache=cache,
        config=settings.corpus,
        token=settings.secret.data_token,
        telemetry=telemetry,
    )
    stack.callback(loader.close)
    hub = build_hub(settings.hub, token=settings.secret.token, telemetry=telemetry, clock=clock)
    return Base(uid, role, spec, settings, client, wallet, chain, loader, hub, telemetry, clock)


def _require_reachable(settings: Settings) -> None:
    """Refuse to start where nobody could reach us: the chain takes no address that means 'all of this machine'."""
    config = settings.axon
    try:
        anywhere = ipaddress.ip_address(config.ip).is_unspecified
    except ValueError:
        raise ConfigurationError(f"--axon.ip {config.ip!r} is not an IP address; 0.0.0.0 listens on all") from None
    if config.external_ip is None and anywhere:
        raise ConfigurationError(
            f"others cannot reach {config.ip}: give --axon.external_ip the address that they can reach this machine at"
        )


def _set_up_torch(device: str, threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        why = str(error).partition("\n")[0]
        raise ConfigurationError(f"--device {device} cannot be used: {why}; use cpu, cuda or cuda:N") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--folder {folder} cannot be made: {error.strerror}; choose another one") from error


async def _open_training(stack: AsyncExitStack, base: Base, make_engine: EngineFactory) -> Training:
    folder = base.settings.general.folder / "checkpoint"
    engine = await asyncio.to_thread(make_engine, base.spec, base.loader, base.uid, base.settings.general.device)
    await _resume(base, engine, folder)
    batches = Prefetch(base.loader, base.uid, base.settings.corpus.prefetch, telemetry=base.telemetry, clock=base.clock)
    stack.push_async_callback(asyncio.to_thread, batches.close)
    worker = await stack.enter_async_context(TrainingWorker(engine, batches, telemetry=base.telemetry))
    keeper = Keeper(folder, worker, base.telemetry)
    await keeper.save()
    return Training(engine, worker, keeper)


async def _resume(base: Base, engine: Engine, folder: Path) -> None:
    """Start from the checkpoint, the nearest source of all; a damaged one is told, and the others have to do."""
    started = base.clock.monotonic()
    try:
        if not await asyncio.to_thread(engine.load, folder):
            return
    except StateMismatch as error:
        raise ConfigurationError(f"{error}: give each run a --folder of its own, or move {folder} away") from error
    except CorruptState as error:
        base.telemetry.emit(
            CatchUpFailed(uid=base.uid, epoch=engine.epoch, source="checkpoint", reason=f"{error}; it starts anew")
        )
        return
    base.telemetry.emit(
        CaughtUp(
            uid=base.uid,
            epoch=engine.epoch,
            state_hash=engine.state_hash,
            source="checkpoint",
            seconds=base.clock.monotonic() - started,
            bytes=0,
            parts={},
        )
    )


async def _open_network(stack: AsyncExitStack, base: Base, keeper: Keeper) -> Network:
    settings, run_id, hotkey = base.settings, base.spec.run_id, base.wallet.hotkey
    known = KnownPeers()
    peer = await stack.enter_async_context(Peer(settings.dht.peer(settings.general.folder / "peer.key")))
    averager = await stack.enter_async_context(
        Averager(
            peer,
            uid=base.uid,
            run_id=run_id,
            allow=known.__contains__,
            direct=peer.direct,
            telemetry=base.telemetry,
        )
    )
    await stack.enter_async_context(
        StateServer(
            peer,
            run_id=run_id,
            provider=keeper.offer,
            allow=known.__contains__,
            admit=lambda binding: _admitted(base, known, binding),
            config=settings.states.server(),
            own=keeper.own,
        )
    )
    binding = sign_binding(hotkey, run_id, peer.peer_id, peer.addresses)
    await stack.enter_async_context(Introductions(peer, binding))
    dendrite = await stack.enter_async_context(Dendrite(hotkey, clock=base.clock))
    return Network(
        peer=peer,
        known=known,
        averager=averager,
        binding=binding,
        dendrite=dendrite,
        axon=Axon(hotkey, run_id, base.chain, settings.axon, base.telemetry, base.clock),
    )


def _admitted(base: Base, known: KnownPeers, binding: PeerBinding) -> bool:
    """Whether a peer that shows this binding is a neuron; from then on it is known."""
    if base.chain.metagraph.uid_of(binding.hotkey) is None:
        return False
    if not binding_is_valid(binding, base.spec.run_id, binding.hotkey):
        return False
    known.add(binding.hotkey, binding.peer_id)
    return True


async def _go_live(stack: AsyncExitStack, parts: Parts) -> None:
    """Listen, and tell the chain and the log where."""
    base, axon = parts.base, parts.network.axon
    await stack.enter_async_context(axon)
    external, port = axon.published
    ip = external or base.settings.axon.ip
    await serve_axon(base.client, base.wallet, base.settings.general.netuid, ip, port)
    now = parts.node.status()
    base.telemetry.emit(
        NeuronStarted(
            uid=base.uid,
            role=base.role,
            run_id=base.spec.run_id,
            epoch=now.epoch,
            state_hash=now.state_hash,
            corpus=now.corpus,
            axon=f"{ip}:{port}",
            peer_id=now.peer.peer_id,
        )
    )
