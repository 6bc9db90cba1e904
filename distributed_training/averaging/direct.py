"""Streams over direct TCP connections, beside the libp2p daemon: the fast way for the parts of a round.

Both sides prove their peer ids by TLS 1.3 (tls.py, identity.py); each stream's bytes are sealed with keys of its own
that are exchanged over TLS (sealed.py). A connection carries one stream at a time and is kept for the next one, in
either process only by the side that opened it. All calls that may block run in threads, which end when the stream is
aborted.

A certificate must be known (`trust`) before its peer can call or be called: it comes over libp2p. A peer that cannot be
reached is not tried again for a while; the caller has libp2p to fall back to.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from distributed_training.averaging.addresses import is_relayed
from distributed_training.averaging.identity import HostKey
from distributed_training.averaging.lane import in_thread
from distributed_training.averaging.sealed import KEY, SMALL, Connection, Incoming, Outgoing
from distributed_training.averaging.streams import Handler, Lane
from distributed_training.averaging.tls import Trust
from template.errors import AveragingError
from template.transport.synapse import Message

log = logging.getLogger(__name__)

MAX_OPENING = 512  # bytes
MAX_ADDRESSES = 4  # that are tried for one peer
_SIZE = struct.Struct(">H")
_READY = b"\x01"


@dataclass(frozen=True, kw_only=True)
class DirectConfig:
    """`host` is the IP to listen on, port 0 any free one; `public_port` is what others use if a router maps it.

    Seconds: to connect, to shake hands and begin, for the other side to end a stream, until an unreachable peer is
    tried again. At most `handshakes` run at once; a peer may have `per_peer` connections to us.
    """

    host: str
    port: int = 0
    public_port: int | None = None
    dial_seconds: float = 2.0
    handshake_seconds: float = 5.0
    end_seconds: float = 5.0
    retry_seconds: float = 600.0
    handshakes: int = 64
    per_peer: int = 4

    def __post_init__(self) -> None:
        if min(self.dial_seconds, self.handshake_seconds, self.end_seconds, self.retry_seconds) <= 0:
            raise AveragingError("the seconds of a direct transport must be positive")
        if min(self.handshakes, self.per_peer) < 1:
            raise AveragingError("handshakes and per_peer must be at least 1")
        if not all(0 <= port <= 65535 for port in (self.port, self.public_port or 0)):
            raise AveragingError("a port must lie in [0, 65535]")


class _Opening(Message):
    """What the caller says over TLS before a stream: the protocol, and the keys of its and of our direction."""

    protocol: Annotated[str, StringConstraints(max_length=64)]
    call_key: Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{2 * KEY}}}$")] = Field(repr=False)
    answer_key: Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{2 * KEY}}}$")] = Field(repr=False)


class DirectStream:
    """One stream. Of the same object, tasks use the async methods and threads the lane."""

    def __init__(
        self, connection: Connection, send_key: bytes, receive_key: bytes, closed: Callable[[DirectStream], None]
    ) -> None:
        self.peer_id = connection.peer_id
        self.connection = connection
        self.incoming = Incoming(connection, receive_key)
        self.outgoing = Outgoing(connection, send_key)
        self._closed = closed
        self._over = False

    @property
    def bytes_read(self) -> int:
        return self.incoming.content

    @property
    def bytes_written(self) -> int:
        return self.outgoing.content

    async def read(self, limit: int) -> bytes:
        if not self.incoming.ready:
            await _readable(self.connection)
        if self.incoming.ready:
            return self.incoming.receive(limit)
        return await in_thread(lambda: self.incoming.receive(limit), self.abort)

    async def readexactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < min(count, SMALL):
            more = await self.read(count - len(data))
            if not more:
                self.abort()
                raise AveragingError("the stream ended early")
            data += more
        if len(data) == count:
            return bytes(data)
        rest = bytearray(count - len(data))
        await in_thread(lambda: self.incoming.receive_into(memoryview(rest)), self.abort)
        return bytes(data + rest)

    async def write(self, data: bytes | memoryview) -> None:
        if self._over:
            raise AveragingError("the stream is closed")
        if len(data) > SMALL or not self.outgoing.send_small(data):
            await in_thread(lambda: self.outgoing.send(data), self.abort)

    async def close(self) -> None:
        if self._over:
            return
        await self.end()
        self._over = True
        self._closed(self)

    async def end(self) -> None:
        """Say that nothing follows."""
        if not self.outgoing.ended and not self.outgoing.end_at_once():
            await in_thread(self.outgoing.end, self.abort)

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self.connection.drop()

    def lane(self) -> Lane:
        return _DirectLane(self)


class _DirectLane:
    def __init__(self, stream: DirectStream) -> None:
        self.send = stream.outgoing.send
        self.receive_into = stream.incoming.receive_into
        self.abort = stream.abort
        self._stream = stream

    @property
    def sent(self) -> int:
        return self._stream.outgoing.wire

    @property
    def received(self) -> int:
        return self._stream.incoming.wire


class DirectTransport:
    """The Transport over direct connections; addresses are `/ip4/…/tcp/…` or `/ip6/…/tcp/…`. `start` before use."""

    def __init__(self, host_key: HostKey, config: DirectConfig) -> None:
        self.peer_id = host_key.peer_id
        self._config = config
        self._trust = Trust(host_key, lambda: datetime.datetime.now(datetime.UTC))
        self._listener: socket.socket | None = None
        self._handlers: dict[str, Handler] = {}
        self._callers: dict[asyncio.Task[None], str] = {}  # serves a connection -> the protocol it runs, or nothing
        self._called_by: Counter[str] = Counter()
        self._shaking = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: dict[str, list[Connection]] = {}
        self._unreachable: dict[str, float] = {}  # peer id -> until, in time.monotonic

    async def start(self) -> None:
        """Listen.

        Raises:
            AveragingError: the port is taken or the address is not ours.
        """
        family = socket.AF_INET6 if ":" in self._config.host else socket.AF_INET
        try:
            self._listener = socket.create_server((self._config.host, self._config.port), family=family, backlog=256)
        except OSError as error:
            raise AveragingError(
                f"cannot listen on {self._config.host} port {self._config.port}: {error.strerror}"
            ) from error
        self._listener.setblocking(False)
        self._spawn(self._accept(self._listener))

    async def close(self) -> None:
        """Drop every connection and listen no more."""
        tasks = [*self._tasks, *self._callers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        for connections in self._idle.values():
            for connection in connections:
                connection.drop()
        self._idle.clear()
        self._handlers.clear()

    @property
    def port(self) -> int:
        """Where others find us, at any of our addresses."""
        if self._listener is None:
            raise AveragingError("the direct transport does not listen: call start")
        return self._config.public_port or int(self._listener.getsockname()[1])

    @property
    def certificate(self) -> bytes:
        """What others must trust, DER."""
        return self._trust.certificate

    def trust(self, peer_id: str, certificate: bytes) -> None:
        """Take calls of this peer, and be able to call it.

        Raises:
            AveragingError: the certificate does not prove that peer id.
        """
        if self._trust.add(peer_id, certificate):
            self._unreachable.pop(peer_id, None)  # it has started anew, perhaps elsewhere

    # Calling

    async def prepare(self, peer_id: str, addresses: tuple[str, ...], seconds: float) -> None:
        """Have a connection ready, within `seconds`.

        Raises:
            AveragingError: the peer cannot be reached directly, now or a short while ago.
        """
        connection = self._take_idle(peer_id) or await self._dial(peer_id, addresses, seconds)
        self._idle.setdefault(peer_id, []).append(connection)

    async def open(self, peer_id: str, addresses: tuple[str, ...], protocol: str) -> DirectStream:
        connection = self._take_idle(peer_id)
        if connection is None:
            connection = await self._dial(peer_id, addresses, self._config.dial_seconds)
        keys = os.urandom(KEY), os.urandom(KEY)
        opening = _Opening(protocol=protocol, call_key=keys[0].hex(), answer_key=keys[1].hex())
        data = opening.model_dump_json().encode()
        _send_record(connection, _SIZE.pack(len(data)) + data)  # nothing waits in its socket: this does not block
        return DirectStream(connection, *keys, self._recycle_soon)

    def _take_idle(self, peer_id: str) -> Connection | None:
        connections = self._idle.get(peer_id, [])
        while connections:
            connection = connections.pop()
            if not select.select([connection.raw], [], [], 0)[0]:
                return connection
            connection.drop()  # it has ended, or says what nobody asked
        self._idle.pop(peer_id, None)
        return None

    async def _dial(self, peer_id: str, addresses: tuple[str, ...], seconds: float) -> Connection:
        """A new connection: all addresses at once, the first at which the peer proves itself."""
        if self._unreachable.get(peer_id, 0.0) > time.monotonic():
            raise AveragingError(f"{peer_id} could not be reached directly a short while ago")
        self._unreachable.pop(peer_id, None)
        tasks = [asyncio.create_task(self._call(peer_id, *place)) for place in _endpoints(addresses)]
        errors: list[str] = []
        found: Connection | None = None
        try:
            async with asyncio.timeout(seconds):
                for task in asyncio.as_completed(tasks):
                    try:
                        found = await task
                        return found
                    except AveragingError as error:
                        errors.append(str(error))
        except TimeoutError:
            errors.append(f"no answer in {seconds:g} s")
        finally:
            await _drop_all(tasks, found)
        self._unreachable[peer_id] = time.monotonic() + self._config.retry_seconds
        raise AveragingError(f"{peer_id} cannot be reached directly: {'; '.join(errors) or 'it has no IP address'}")

    async def _call(self, peer_id: str, host: str, port: int) -> Connection:
        raw = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            raw.setblocking(False)
            await asyncio.get_running_loop().sock_connect(raw, (host, port))
            _tune(raw)
            return await in_thread(lambda: self._shake_as_caller(raw, peer_id), lambda: _shut(raw))
        except OSError as error:
            raw.close()
            raise AveragingError(f"{host} port {port}: {error.strerror or error}") from error
        except BaseException:
            raw.close()
            raise

    def _shake_as_caller(self, raw: socket.socket, peer_id: str) -> Connection:
        tls = self._trust.call(raw, peer_id)
        if tls.receive(1) != _READY:  # in TLS 1.3 the caller learns only now whether its certificate was taken
            raise AveragingError("an unknown answer to the TLS handshake")
        return Connection(raw, tls, peer_id)

    def _recycle_soon(self, stream: DirectStream) -> None:
        task = self._spawn(self._recycle(stream))
        task.add_done_callback(lambda done: stream.connection.drop() if done.cancelled() else None)

    async def _recycle(self, stream: DirectStream) -> None:
        """Keep the connection of a closed stream once the other side has ended it too."""
        connection = stream.connection
        try:
            async with asyncio.timeout(self._config.end_seconds):
                if await stream.read(1):
                    raise AveragingError("more than was read")
            idle = self._idle.setdefault(stream.peer_id, [])
            if len(idle) >= self._config.per_peer:
                raise AveragingError("enough connections are kept")
            idle.append(connection)
        except (AveragingError, TimeoutError) as error:
            log.debug("a connection to %s is not kept: %r", stream.peer_id, error)
            connection.drop()

    # Being called

    async def serve(self, protocol: str, handler: Handler) -> None:
        if protocol in self._handlers:
            raise AveragingError(f"{protocol} has a handler already")
        self._handlers[protocol] = handler

    async def unserve(self, protocol: str) -> None:
        del self._handlers[protocol]
        running = [task for task, served in self._callers.items() if served == protocol]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                raw, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the caller went before it was taken
                log.warning("a direct connection could not be accepted: %r", error)
                await asyncio.sleep(0.1)
                continue
            if self._shaking >= self._config.handshakes:
                raw.close()
                continue
            task = asyncio.create_task(self._attend(raw))
            self._callers[task] = ""
            task.add_done_callback(self._callers.pop)
            task.add_done_callback(lambda _, raw=raw: raw.close())  # type: ignore[misc]  # mypy infers no default

    async def _attend(self, raw: socket.socket) -> None:
        """One connection that was opened to us: handshake, then stream after stream."""
        connection: Connection | None = None
        try:
            _tune(raw)
            connection = await self._welcome(raw)
            self._called_by[connection.peer_id] += 1
            while await self._serve_stream(connection):
                pass
        except (AveragingError, TimeoutError, OSError) as error:
            log.debug("a direct connection ended: %r", error)
        finally:
            if connection is not None:
                connection.drop()
                self._called_by[connection.peer_id] -= 1
                self._called_by += Counter()  # drops zeros

    async def _welcome(self, raw: socket.socket) -> Connection:
        self._shaking += 1
        try:
            async with asyncio.timeout(self._config.handshake_seconds):
                return await in_thread(lambda: self._shake_as_called(raw), lambda: _shut(raw))
        finally:
            self._shaking -= 1

    def _shake_as_called(self, raw: socket.socket) -> Connection:
        tls, peer_id = self._trust.answer(raw)
        if self._called_by[peer_id] >= self._config.per_peer:
            raise AveragingError(f"too many connections of {peer_id}")
        tls.send(_READY)
        return Connection(raw, tls, peer_id)

    async def _serve_stream(self, connection: Connection) -> bool:
        """The next stream of a connection; whether another one may follow."""
        await _readable(connection)
        if connection.holds_record():
            opening = _receive_opening(connection)
        else:
            async with asyncio.timeout(self._config.handshake_seconds):
                opening = await in_thread(lambda: _receive_opening(connection), connection.drop)
        handler = self._handlers.get(opening.protocol)
        task = asyncio.current_task()
        if handler is None or task is None:
            return False
        keys = bytes.fromhex(opening.answer_key), bytes.fromhex(opening.call_key)
        stream = DirectStream(connection, *keys, lambda _: None)
        self._callers[task] = opening.protocol
        try:
            await handler(stream)
        except Exception:  # the edge: a handler's bug ends its stream, not the listener
            log.exception("the handler of %s failed", opening.protocol)
            return False
        finally:
            self._callers[task] = ""
        if not stream.incoming.drained or connection.dropped:
            return False
        async with asyncio.timeout(self._config.end_seconds):
            await stream.end()
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def direct_addresses(addresses: tuple[str, ...], port: int) -> tuple[str, ...]:
    """Where a peer with these libp2p addresses takes direct connections: at its own IPs, not at its relays'."""
    own = [address.split("/") for address in addresses if not is_relayed(address)]
    ips = [f"/{words[1]}/{words[2]}" for words in own if len(words) > 3 and words[1] in ("ip4", "ip6")]
    return tuple(f"{ip}/tcp/{port}" for ip in dict.fromkeys(ips))


def _endpoints(addresses: tuple[str, ...]) -> list[tuple[str, int]]:
    """The IPs and TCP ports of multiaddresses, each once, the first few; other addresses are passed over."""
    found: dict[tuple[str, int], None] = {}
    for address in addresses:
        words = address.split("/")
        if len(words) < 5 or words[1] not in ("ip4", "ip6") or words[3] != "tcp":
            continue
        with contextlib.suppress(ValueError):
            found[str(ipaddress.ip_address(words[2])), int(words[4])] = None
    return [place for place in found if 0 < place[1] <= 65535][:MAX_ADDRESSES]


async def _drop_all(tasks: list[asyncio.Task[Connection]], found: Connection | None) -> None:
    """Cancel the calls that still run, and drop connections that came too late."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Connection) and result is not found:
            result.drop()


def _tune(raw: socket.socket) -> None:
    raw.setblocking(True)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _shut(raw: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was quicker
        raw.shutdown(socket.SHUT_RDWR)


def _send_record(connection: Connection, data: bytes) -> None:
    with connection.use():
        connection.tls.send(data)


def _receive_opening(connection: Connection) -> _Opening:
    with connection.use():
        size = _SIZE.unpack(connection.tls.receive(_SIZE.size))[0]
        if size > MAX_OPENING:
            raise AveragingError(f"an opening of {size} bytes where at most {MAX_OPENING} are taken")
        try:
            return _Opening.model_validate_json(connection.tls.receive(size))
        except ValidationError as error:
            raise AveragingError(f"not an opening: {error.error_count()} faults") from error


async def _readable(connection: Connection) -> None:
    """Wait until something arrived, or the connection ended or was dropped."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    with connection.use() as raw:  # which keeps the descriptor ours
        loop.add_reader(raw.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(raw.fileno())
