"""Streams over the libp2p daemon: encrypted, and the peer id of the other side is proved by the handshake."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re

from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import read_pbmsg_safe
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.multiaddr.exceptions import Error as MultiaddrError

from distributed_training.averaging.addresses import CIRCUIT
from distributed_training.averaging.daemon import READ_AHEAD, Daemon
from distributed_training.averaging.lane import StreamLane
from distributed_training.averaging.streams import Handler, Lane
from template.errors import AveragingError

log = logging.getLogger(__name__)

_OWN_ID = re.compile(r"/p2p/[^/]+$")
_RELAYED = re.compile(rf"(.+)/p2p/([^/]+){CIRCUIT}")
_P2P_CODE, _CIRCUIT_CODE = b"\xa5\x03", b"\xa2\x02"  # in a multiaddress's bytes


class Libp2pStream:
    """One libp2p stream, carried by a connection to the local daemon."""

    def __init__(self, peer_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer_id = peer_id
        self.bytes_read = 0
        self.bytes_written = 0
        self._reader = reader
        self._writer = writer

    async def read(self, limit: int) -> bytes:
        try:
            data = await self._reader.read(limit)
        except OSError as error:
            raise AveragingError(f"the stream was reset: {error}") from error
        self.bytes_read += len(data)
        return data

    async def readexactly(self, count: int) -> bytes:
        try:
            data = await self._reader.readexactly(count)
        except asyncio.IncompleteReadError as error:
            raise AveragingError("the stream ended early") from error
        except OSError as error:
            raise AveragingError(f"the stream was reset: {error}") from error
        self.bytes_read += len(data)
        return data

    async def write(self, data: bytes | memoryview) -> None:
        if self._writer.is_closing():
            raise AveragingError("the stream is closed")
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise AveragingError(f"the stream was reset: {error}") from error
        self.bytes_written += len(data)

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError as error:
            raise AveragingError(f"the stream was reset: {error}") from error

    def abort(self) -> None:
        self._writer.transport.abort()

    def lane(self) -> Lane:
        return StreamLane(self)


class Libp2pTransport:
    """The Transport over a running daemon. `start` before use, `close` before the daemon stops."""

    def __init__(self, daemon: Daemon, peer_id: str) -> None:
        self.peer_id = peer_id
        self._daemon = daemon
        self._socket = daemon.socket_path("streams.sock")
        self._server: asyncio.Server | None = None
        self._handlers: dict[str, Handler] = {}
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._connected: set[str] = set()  # peers that had a stream of ours: asking to connect again takes time

    async def start(self) -> None:
        """Listen for the streams that the daemon hands over."""
        self._server = await asyncio.start_unix_server(self._accept, path=self._socket, limit=READ_AHEAD)

    async def close(self) -> None:
        """Drop every incoming stream and listen no more."""
        if self._server is not None:
            self._server.close()
        await self._cancel(list(self._tasks))
        self._handlers.clear()

    async def open(self, peer_id: str, addresses: tuple[str, ...], protocol: str) -> Libp2pStream:
        remote, at = parse_peer(peer_id, addresses)
        if peer_id in self._connected:
            with contextlib.suppress(AveragingError):  # it is not connected any more; the second try tells more
                return Libp2pStream(peer_id, *await self._daemon.open(remote, protocol))
            self._connected.discard(peer_id)
        await self._daemon.connect(remote, at)
        stream = Libp2pStream(peer_id, *await self._daemon.open(remote, protocol))
        self._connected.add(peer_id)
        return stream

    async def serve(self, protocol: str, handler: Handler) -> None:
        if protocol in self._handlers:
            raise AveragingError(f"{protocol} has a handler already")
        self._handlers[protocol] = handler
        await self._daemon.register(protocol, self._socket)

    async def unserve(self, protocol: str) -> None:
        del self._handlers[protocol]
        await self._cancel([task for task, served in self._tasks.items() if served == protocol])
        if self._daemon.alive:
            await self._daemon.unregister(protocol, self._socket)

    async def _cancel(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._run(reader, writer))
        self._tasks[task] = ""
        task.add_done_callback(lambda ended: self._drop(ended, writer))

    def _drop(self, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        """Here and not in the task: one that is cancelled before it begins runs no line of its own."""
        del self._tasks[task]
        writer.transport.abort()

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One incoming stream: what the daemon says of it, then its handler."""
        info = p2pd_pb2.StreamInfo()
        try:
            await read_pbmsg_safe(reader, info)
            handler = self._handlers.get(info.proto)
            task = asyncio.current_task()
            if handler is None or task is None:
                return
            self._tasks[task] = info.proto
            await handler(Libp2pStream(PeerID(info.peer).to_base58(), reader, writer))
        except (OSError, EOFError) as error:
            log.debug("a stream ended before it began: %r", error)
        except Exception:
            log.exception("the handler of %s failed", info.proto)


def parse_peer(peer_id: str, addresses: tuple[str, ...]) -> tuple[PeerID, list[bytes]]:
    """A peer id and TCP addresses as the daemon takes them; a trailing /p2p/ part is dropped.

    Raises:
        AveragingError: not base58, not a multiaddress, or no TCP (QUIC loses streamed replies).
    """
    try:
        return PeerID.from_base58(peer_id), [_encoded(_OWN_ID.sub("", address)) for address in addresses]
    except (ValueError, MultiaddrError) as error:
        raise AveragingError(f"not a peer: {peer_id!r} at {addresses!r}: {error}") from error


def _encoded(address: str) -> bytes:
    """A relay's peer id is written here: the daemon does not read it as hivemind's multiaddress writes it."""
    relayed = _RELAYED.fullmatch(address)
    at = Multiaddr(relayed[1] if relayed else address)
    if "tcp" not in [protocol.name for protocol in at.protocols()]:
        raise AveragingError(f"{address} is not a TCP address")
    encoded: bytes = at.to_bytes()
    if relayed is None:
        return encoded
    relay: bytes = PeerID.from_base58(relayed[2]).to_bytes()
    return encoded + _P2P_CODE + bytes([len(relay)]) + relay + _CIRCUIT_CODE
