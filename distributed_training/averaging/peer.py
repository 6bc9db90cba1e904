"""A neuron's place in the peer-to-peer network: its libp2p daemon, its streams and its node of hivemind's DHT.

The DHT node lives in the neuron's own event loop, so nothing is forked beside torch's threads, and the daemon dies with
the neuron, however that ends. A record of the DHT is its owner's word (records.py), and may be kept from us: use it
for hints, never for a decision.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hivemind.dht.node import DHTNode
from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.p2pclient import Client
from hivemind.utils.multiaddr import Multiaddr

from distributed_training.averaging.addresses import CIRCUIT
from distributed_training.averaging.daemon import Daemon
from distributed_training.averaging.direct import DirectConfig, DirectTransport
from distributed_training.averaging.identity import HostKey
from distributed_training.averaging.libp2p import Libp2pStream, Libp2pTransport, parse_peer
from distributed_training.averaging.noticeboard import Addresses
from distributed_training.averaging.records import OwnRecords
from distributed_training.averaging.streams import Handler
from template.errors import AveragingError

log = logging.getLogger(__name__)

MAX_PEER_ID = 64  # bytes
MEET_AT_ONCE = 32
MAX_RELAYS = 16  # so many addresses fit into a binding


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """`host` is the IP to listen on, port 0 any free one; the peer id lives in the file `identity_path`.

    `initial_peers` are full multiaddresses (/ip4/…/tcp/…/p2p/…) of a network to join; none starts a new one. `announce`
    replaces the addresses told to others. Each of `start_attempts` may take `start_seconds`. `map_port` asks the
    router for a port. Direct connections are taken on `direct_port` (0: any free one), which others see as
    `direct_public_port` where a router maps it.

    With `relay` a peer takes no calls: it makes them, and its initial peers, which must `relay_others`, hand it those
    of others. With fewer than four of them the daemon waits three minutes before it asks them.
    """

    host: str
    port: int
    identity_path: Path
    initial_peers: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    start_seconds: float = 20.0
    start_attempts: int = 3
    dht_seconds: float = 10.0
    meet_seconds: float = 4.0
    map_port: bool = False
    relay: bool = False
    relay_others: bool = False
    direct_port: int = 0
    direct_public_port: int | None = None

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise AveragingError(f"dht host must be an IP address, not {self.host!r}") from None
        for port in (self.port, self.direct_port, self.direct_public_port or 0):
            if not 0 <= port <= 65535:
                raise AveragingError(f"a dht port must lie in [0, 65535], not {port}")
        if min(self.start_seconds, self.dht_seconds, self.meet_seconds, self.start_attempts) <= 0:
            raise AveragingError("start_seconds, dht_seconds, meet_seconds and start_attempts must be positive")
        if self.relay and (self.relay_others or self.announce or not self.initial_peers):
            raise AveragingError(
                "a peer with relay is reached through its initial peers alone: name some, announce nothing and do not "
                "relay_others"
            )
        for address in self.initial_peers:
            if "/p2p/" not in address:
                raise AveragingError(f"an initial peer ends in /p2p/<peer id>; {address!r} does not")

    @property
    def relays(self) -> tuple[str, ...]:
        """Through whom we are reached, if we are behind a NAT."""
        return self.initial_peers[:MAX_RELAYS] if self.relay else ()


class Peer:
    """A running daemon with streams (it is a Transport) and DHT. Use as an async context manager; not after its end."""

    def __init__(self, config: PeerConfig) -> None:
        self._config = config
        self._running: _Running | None = None

    async def __aenter__(self) -> Self:
        """Start, with a bounded number of attempts.

        Raises:
            AveragingError: the daemon does not start, or no initial peer can be reached.
        """
        for attempt in range(1, self._config.start_attempts + 1):
            try:
                self._running = await _start(self._config)
                return self
            except AveragingError as error:
                if attempt == self._config.start_attempts:
                    raise
                log.warning("start %d of the libp2p peer failed: %s", attempt, error)
        raise AssertionError("unreachable: start_attempts is positive")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running, self._running = self._the_running(), None
        await running.stop()

    @property
    def peer_id(self) -> str:
        """The libp2p identity, base58."""
        return self._the_running().transport.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others reach this peer, each ending in /p2p/<peer id>."""
        return self._the_running().addresses

    @property
    def direct(self) -> DirectTransport:
        """The direct streams beside libp2p's, under the same identity."""
        return self._the_running().direct

    @property
    def alive(self) -> bool:
        """Whether the daemon runs."""
        return self._running is not None and self._running.daemon.alive

    @property
    def daemon_pid(self) -> int:
        return self._the_running().daemon.pid

    async def connect(self, peer_id: str, addresses: tuple[str, ...]) -> None:
        """Connect to a peer; returns at once if it is connected. The caller sets the limit of time.

        Raises:
            AveragingError: it cannot be reached, or another identity answers there.
        """
        remote, at = parse_peer(peer_id, addresses)
        await self._the_running().daemon.connect(remote, at)

    async def open(self, peer_id: str, addresses: tuple[str, ...], protocol: str) -> Libp2pStream:
        """See Transport."""
        return await self._the_running().transport.open(peer_id, addresses, protocol)

    async def serve(self, protocol: str, handler: Handler) -> None:
        """See Transport."""
        await self._the_running().transport.serve(protocol, handler)

    async def unserve(self, protocol: str) -> None:
        """See Transport."""
        await self._the_running().transport.unserve(protocol)

    async def meet(self, others: Mapping[str, Addresses]) -> None:
        """See Noticeboard: connect to these peers, and let the DHT know them."""
        running, room = self._the_running(), asyncio.Semaphore(MEET_AT_ONCE)

        async def meet(peer_id: str, addresses: Addresses) -> None:
            async with room:
                try:
                    remote, at = parse_peer(peer_id, addresses)
                    await running.daemon.connect(remote, at)
                except AveragingError as error:
                    log.info("%s cannot be met: %s", peer_id, error)
                    return
                await running.node.protocol.call_ping(remote)

        tasks = [asyncio.create_task(meet(*other)) for other in others.items() if other[0] != self.peer_id]
        try:
            async with asyncio.timeout(self._config.meet_seconds):
                await asyncio.gather(*tasks)
        except TimeoutError:
            log.info("%d of %d peers were met in time", sum(task.done() for task in tasks), len(tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def declare(self, key: str, until: float) -> None:
        """See Noticeboard: a record of our own under `key`."""
        running = self._the_running()
        own = running.node.peer_id.to_bytes()
        if not await self._in_time(running.node.store(key, True, until, subkey=own)):
            raise AveragingError(f"no node of the DHT takes a record under {key}")

    async def declared(self, key: str) -> dict[str, float]:
        """See Noticeboard."""
        found = await self._in_time(self._the_running().node.get(key, latest=True))
        records = found.value if found is not None and isinstance(found.value, dict) else {}
        return {
            str(PeerID(subkey).to_base58()): float(record.expiration_time)
            for subkey, record in records.items()
            if isinstance(subkey, bytes) and len(subkey) <= MAX_PEER_ID
        }

    async def _in_time(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            async with asyncio.timeout(self._config.dht_seconds):
                return await work
        except TimeoutError:
            raise AveragingError(f"the DHT did not answer in {self._config.dht_seconds:g} s") from None

    def _the_running(self) -> _Running:
        if self._running is None:
            raise AveragingError("the peer is not running: use it inside 'async with'")
        return self._running


class _AttachedP2P(P2P):  # type: ignore[misc]  # hivemind ships no types
    """hivemind's handle on a daemon that we started ourselves, with its socket in the daemon's private folder."""

    @classmethod
    async def attach(cls, daemon: Daemon) -> _AttachedP2P:
        self = cls()
        self._alive = True
        self._daemon_listen_maddr = daemon.control_address
        self._client_listen_maddr = Multiaddr(f"/unix{daemon.socket_path('dht.sock')}")
        self._client = await Client.create(self._daemon_listen_maddr, self._client_listen_maddr)
        await self._ping_daemon()
        return self


@dataclass(frozen=True)
class _Running:
    """What runs between the start and the end of a peer."""

    daemon: Daemon
    transport: Libp2pTransport
    direct: DirectTransport
    p2p: P2P
    node: DHTNode
    addresses: tuple[str, ...]

    async def stop(self) -> None:
        await _stop_dht(self.node, self.p2p)
        await self.direct.close()
        await self.transport.close()
        await self.daemon.stop()


async def _start(config: PeerConfig) -> _Running:
    await asyncio.to_thread(_ensure_identity, config.identity_path)
    daemon = await Daemon.start(_arguments(config), config.start_seconds)
    try:
        async with asyncio.timeout(config.start_seconds):
            await _join(daemon, config.initial_peers)
            return await _attach(daemon, config)
    except TimeoutError:
        await daemon.stop()
        raise AveragingError(f"the DHT node did not start in {config.start_seconds:g} s") from None
    except BaseException:
        await daemon.stop()
        raise


async def _attach(daemon: Daemon, config: PeerConfig) -> _Running:
    own, listening = await daemon.identify()
    places = [relay + CIRCUIT for relay in config.relays] or listening
    addresses = tuple(f"{place}/p2p/{own.to_base58()}" for place in places)
    transport = Libp2pTransport(daemon, own.to_base58())
    await transport.start()
    host_key = await asyncio.to_thread(HostKey.load, config.identity_path)
    direct = await _start_direct(config, host_key)
    p2p = await _AttachedP2P.attach(daemon)
    try:
        node = await DHTNode.create(
            p2p,
            initial_peers=config.initial_peers or None,
            ensure_bootstrap_success=False,
            record_validator=OwnRecords(host_key),
        )
    except BaseException:
        await p2p.shutdown()
        await direct.close()
        await transport.close()
        raise
    return _Running(daemon, transport, direct, p2p, node, addresses)


async def _start_direct(config: PeerConfig, host_key: HostKey) -> DirectTransport:
    place = DirectConfig(host=config.host, port=config.direct_port, public_port=config.direct_public_port)
    direct = DirectTransport(host_key, place)
    await direct.start()
    return direct


async def _join(daemon: Daemon, initial_peers: tuple[str, ...]) -> None:
    """Connect to the initial peers, all at once; one is enough."""
    if not initial_peers:
        return

    async def join(address: str) -> AveragingError | None:
        try:
            await daemon.connect(*parse_peer(address.rpartition("/p2p/")[2], (address,)))
        except AveragingError as error:
            return error
        return None

    errors = await asyncio.gather(*map(join, initial_peers))
    if all(errors):
        raise AveragingError(f"none of the {len(initial_peers)} initial peers can be reached; the first: {errors[0]}")


async def _stop_dht(node: DHTNode, p2p: P2P) -> None:
    try:
        async with asyncio.timeout(2.0):
            await node.shutdown()
    except TimeoutError:
        log.warning("the DHT node did not sign off: its daemon does not answer")
    await p2p.shutdown()


def _ensure_identity(path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        P2P.generate_identity(str(path))


def _arguments(config: PeerConfig) -> list[str]:
    family = "ip6" if ":" in config.host else "ip4"
    arguments = [
        f"-id={config.identity_path}",
        "-noListenAddrs=1" if config.relay else f"-hostAddrs=/{family}/{config.host}/tcp/{config.port}",
        "-dhtServer=1",
        "-tls=1",
        "-connManager=1",
        "-autonat=0",
        f"-natPortMap={int(config.map_port)}",
        "-relay=1",  # be able to call through a relay
        f"-relayService={int(config.relay_others)}",
    ]
    if config.announce:
        arguments.append(f"-announceAddrs={','.join(config.announce)}")
    if config.relay:
        arguments += ["-autoRelay=1", f"-trustedRelays={','.join(config.relays)}", "-forceReachabilityPrivate"]
    if config.relay_others:
        arguments.append("-forceReachabilityPublic")
    return arguments
