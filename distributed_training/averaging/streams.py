"""The seam under rounds and state transfer: authenticated, encrypted byte streams between peers known by peer id.

libp2p.py has libp2p streams, direct.py the fast ones over TCP, memory.py the same inside one process.
Close rule of every protocol above: the side that opened a stream closes it first, after it has read all that it wants;
a stream whose accepting side closes first may lose its last bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol


class Lane(Protocol):
    """A stream as threads use it: one may send while another receives. Both block, and raise AveragingError when the
    stream is lost; `abort`, called in the event loop's thread, ends both at once. `sent` and `received` count the bytes
    at the socket.
    """

    @property
    def sent(self) -> int: ...

    @property
    def received(self) -> int: ...

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Take `data`, which must not change afterwards; blocks while too much waits. `more` follows at once."""

    def receive_into(self, buffer: memoryview) -> None:
        """Fill `buffer` (bytes, writable)."""

    def abort(self) -> None:
        """Drop the stream now."""


class Stream(Protocol):
    """One bidirectional byte stream. One task may read while another writes; neither side may be shared by two tasks.

    All methods raise AveragingError when the stream is lost. Any wait in them ends at once when its task is cancelled
    (what was under way is lost then, and perhaps the stream) or `abort` is called. `bytes_read` and `bytes_written`
    count what passed.
    """

    @property
    def peer_id(self) -> str:
        """The authenticated identity of the other side."""

    @property
    def bytes_read(self) -> int: ...

    @property
    def bytes_written(self) -> int: ...

    async def read(self, limit: int) -> bytes:
        """At least one and at most `limit` bytes; empty at the end of the stream."""

    async def readexactly(self, count: int) -> bytes:
        """`count` bytes; a stream that ends before is lost. `count` must have been bounded by the caller."""

    async def write(self, data: bytes | memoryview) -> None:
        """Take `data`, which must not change afterwards; returns when a bounded amount at most waits to be sent."""

    async def close(self) -> None:
        """Send what waits and end the stream."""

    def abort(self) -> None:
        """Drop the stream now, with what waits in it. May be called many times, also after `close`."""

    def lane(self) -> Lane:
        """The same stream for threads. While they use it, no task may."""


Handler = Callable[[Stream], Awaitable[None]]


class Transport(Protocol):
    """Opens and accepts streams."""

    @property
    def peer_id(self) -> str:
        """This side's identity, base58."""

    async def open(self, peer_id: str, addresses: tuple[str, ...], protocol: str) -> Stream:
        """A new stream to the handler of `protocol` at that peer. Waits as long as it takes: the caller sets the limit.

        Raises:
            AveragingError: the peer cannot be reached or does not know the protocol.
        """

    async def serve(self, protocol: str, handler: Handler) -> None:
        """From now on run `handler` for each stream that a peer opens for `protocol`; when it returns, drop the stream.

        Raises:
            AveragingError: the protocol has a handler already.
        """

    async def unserve(self, protocol: str) -> None:
        """Refuse the protocol from now on and cancel its running handlers."""
