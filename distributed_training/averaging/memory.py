"""Streams inside one process: the seam of streams.py for tests of everything above it, with faults on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from distributed_training.averaging.lane import StreamLane
from distributed_training.averaging.streams import Handler, Lane
from template.errors import AveragingError

_WINDOW = 256 * 1024  # bytes in flight before a writer waits


class _Pipe:
    """One direction: bounded bytes, an end, or a loss."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ended = False
        self._lost = False
        self._stalled = False
        self._changed = asyncio.Event()

    async def take(self, limit: int) -> bytes:
        while self._stalled or not (self._buffer or self._ended or self._lost):
            await self._wait()
        if self._lost:
            raise AveragingError("the stream was reset")
        data = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        self._ring()
        return data

    async def put(self, data: bytes | memoryview) -> None:
        self._buffer += data
        self._ring()
        while len(self._buffer) > _WINDOW and not self._lost:
            await self._wait()
        if self._lost or self._ended:
            raise AveragingError("the stream was reset")

    def end(self, *, lost: bool) -> None:
        self._ended, self._lost = True, self._lost or lost
        self._ring()

    def stall(self) -> None:
        self._stalled = True

    def _ring(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self) -> None:
        await self._changed.wait()


class MemoryStream:
    """One end of a stream."""

    def __init__(self, peer_id: str, incoming: _Pipe, outgoing: _Pipe) -> None:
        self.peer_id = peer_id
        self.bytes_read = 0
        self.bytes_written = 0
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    async def read(self, limit: int) -> bytes:
        data = await self._incoming.take(limit)
        self.bytes_read += len(data)
        return data

    async def readexactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            more = await self.read(count - len(data))
            if not more:
                raise AveragingError("the stream ended early")
            data += more
        return bytes(data)

    async def write(self, data: bytes | memoryview) -> None:
        if self._closed:
            raise AveragingError("the stream is closed")
        await self._outgoing.put(data)
        self.bytes_written += len(data)

    async def close(self) -> None:
        self._closed = True
        self._outgoing.end(lost=False)

    def abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._outgoing.end(lost=True)
        self._incoming.end(lost=True)

    def lane(self) -> Lane:
        return StreamLane(self)

    def stall(self) -> None:
        """Let nothing through any more, in either direction, without a word: the peer hangs."""
        self._incoming.stall()
        self._outgoing.stall()


class MemoryNetwork:
    """Joins transports of one process by peer id."""

    def __init__(self) -> None:
        self._transports: dict[str, MemoryTransport] = {}
        self.streams: list[tuple[str, str, MemoryStream, MemoryStream]] = []

    def transport(self, peer_id: str) -> MemoryTransport:
        """A new transport of that name."""
        self._transports[peer_id] = MemoryTransport(peer_id, self)
        return self._transports[peer_id]

    def stall(self, peer_id: str) -> None:
        """The peer hangs: what is on its streams stays there."""
        for stream in self._of(peer_id):
            stream.stall()

    def kill(self, peer_id: str) -> None:
        """The peer is gone: its streams are reset and nobody can reach it."""
        del self._transports[peer_id]
        for stream in self._of(peer_id):
            stream.abort()

    def dial(self, caller: str, peer_id: str, protocol: str) -> MemoryStream:
        if peer_id not in self._transports:
            raise AveragingError(f"{peer_id} cannot be reached")
        there, back = _Pipe(), _Pipe()
        near, far = MemoryStream(peer_id, back, there), MemoryStream(caller, there, back)
        self._transports[peer_id].accept(protocol, far)
        self.streams.append((caller, peer_id, near, far))
        return near

    def _of(self, peer_id: str) -> Iterable[MemoryStream]:
        return [s for caller, called, near, far in self.streams if peer_id in (caller, called) for s in (near, far)]


class MemoryTransport:
    """The Transport of one peer of a MemoryNetwork."""

    def __init__(self, peer_id: str, network: MemoryNetwork) -> None:
        self.peer_id = peer_id
        self._network = network
        self._handlers: dict[str, Handler] = {}
        self._tasks: dict[asyncio.Task[None], str] = {}

    async def open(self, peer_id: str, addresses: tuple[str, ...], protocol: str) -> MemoryStream:
        await asyncio.sleep(0)
        return self._network.dial(self.peer_id, peer_id, protocol)

    async def serve(self, protocol: str, handler: Handler) -> None:
        if protocol in self._handlers:
            raise AveragingError(f"{protocol} has a handler already")
        self._handlers[protocol] = handler

    async def unserve(self, protocol: str) -> None:
        del self._handlers[protocol]
        running = [task for task, served in self._tasks.items() if served == protocol]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def accept(self, protocol: str, stream: MemoryStream) -> None:
        if protocol not in self._handlers:
            raise AveragingError(f"{self.peer_id} does not serve {protocol}")
        task = asyncio.create_task(self._run(self._handlers[protocol], stream))
        self._tasks[task] = protocol
        task.add_done_callback(self._tasks.pop)

    async def _run(self, handler: Handler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        finally:
            stream.abort()
