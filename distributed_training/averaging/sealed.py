"""The bytes of one stream on a direct connection: frames sealed with AES-128-GCM, sent and received by blocking calls.

A frame is four bytes of length, the ciphertext and a 16-byte tag. Both keys are fresh for each stream and travelled in
TLS; the nonce is the frame's number, so frames cannot be changed, dropped, repeated or moved. An empty frame ends a
direction: an end without it is a loss. TLS's own records (16 KiB, a call and a system call each) cost about twice as
much processor time as frames of this size.

A length is checked before anything is allocated for it, and no more than a frame is held.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from distributed_training.averaging.tls import TLS_HEADER, TlsChannel, record_size
from template.errors import AveragingError

FRAME = 1 << 18  # bytes of content at most: stays in a core's cache on its way
KEY = 16  # bytes
SMALL = 4096  # bytes: what is sent or received in the event loop's own thread, as it blocks nobody
_LENGTH = struct.Struct(">I")
_TAG = 16
_MAX_FRAMES = 1 << 32


class Connection:
    """A TCP connection after its TLS handshake. Threads use it inside `use`; `drop` throws them out and closes it."""

    def __init__(self, raw: socket.socket, tls: TlsChannel, peer_id: str) -> None:
        self.raw = raw
        self.tls = tls
        self.peer_id = peer_id
        self.outgoing, self.incoming = bytearray(), bytearray()  # of one frame each, kept from stream to stream
        self._lock = threading.Lock()
        self._users = 0
        self._dropped = False

    @property
    def dropped(self) -> bool:
        return self._dropped

    def holds_frame(self) -> bool:
        """Whether a small frame has arrived whole, so that receiving it blocks nobody."""
        return self._holds(_LENGTH.size, lambda head: _LENGTH.size + int(_LENGTH.unpack(head)[0]))

    def holds_record(self) -> bool:
        """The same for a TLS record."""
        return self._holds(TLS_HEADER, record_size)

    def _holds(self, head: int, size: Callable[[bytes], int]) -> bool:
        with self.use() as raw:
            try:
                start = raw.recv(SMALL, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            return len(start) >= head and size(start[:head]) <= len(start)

    @contextlib.contextmanager
    def use(self) -> Iterator[socket.socket]:
        """The socket, which stays open for the length of the block. An error in the block drops the connection.

        Raises:
            AveragingError: the connection was dropped or lost.
        """
        with self._lock:
            if self._dropped:
                raise AveragingError("the stream was dropped")
            self._users += 1
        try:
            yield self.raw
        except OSError as error:
            self.drop()
            raise AveragingError(f"the stream was reset: {error}") from error
        except AveragingError:
            self.drop()
            raise
        finally:
            with self._lock:
                self._users -= 1
                if self._dropped and not self._users:
                    self.raw.close()

    def drop(self) -> None:
        """Lose the connection now. May be called many times, from any thread."""
        with self._lock:
            if self._dropped:
                return
            self._dropped = True
            with contextlib.suppress(OSError):  # the other side was quicker
                self.raw.shutdown(socket.SHUT_RDWR)
            if not self._users:
                self.raw.close()


class Outgoing:
    """Seals and sends. One thread at a time."""

    def __init__(self, connection: Connection, key: bytes) -> None:
        self.content = 0  # bytes sent, and with framing:
        self.wire = 0
        self.ended = False
        self._connection = connection
        self._aead = AESGCM(key)
        self._frames = 0

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send all of it; blocks while the socket is full. If `more` follows at once, they may share a packet."""
        view = memoryview(data).cast("B")
        flags = getattr(socket, "MSG_MORE", 0) if more else 0  # Linux has it
        with self._connection.use() as raw:
            for start in range(0, len(view), FRAME):
                self._send_frame(raw, view[start : start + FRAME], flags)

    def end_at_once(self) -> bool:
        """`end`, without blocking; False if the socket is full and nothing was done."""
        self.ended = self.send_small(b"")
        return self.ended

    def end(self) -> None:
        """Say that nothing follows."""
        if not self.ended:
            self.ended = True
            with self._connection.use() as raw:
                self._send_frame(raw, memoryview(b""), 0)

    def send_small(self, data: bytes | memoryview) -> bool:
        """Send at most SMALL bytes without blocking; False if the socket is full and nothing was done."""
        with self._connection.use() as raw:
            if not select.select([], [raw], [], 0)[1]:
                return False
            self._send_frame(raw, memoryview(data).cast("B"), 0)  # a socket is writable only with room for more
            return True

    def _send_frame(self, raw: socket.socket, content: memoryview, flags: int) -> None:
        size = _LENGTH.size + len(content) + _TAG
        if len(self._connection.outgoing) < size:
            self._connection.outgoing = bytearray(size)
        frame = memoryview(self._connection.outgoing)[:size]
        _LENGTH.pack_into(frame, 0, len(content) + _TAG)
        self._aead.encrypt_into(_nonce(self._frames), content, None, frame[_LENGTH.size :])
        self._frames += 1
        raw.sendall(frame, flags)
        self.content += len(content)
        self.wire += size


class Incoming:
    """Receives and opens. One thread at a time."""

    def __init__(self, connection: Connection, key: bytes) -> None:
        self.content = 0  # bytes handed out, and what passed the socket for them:
        self.wire = 0
        self.ended = False
        self._connection = connection
        self._aead = AESGCM(key)
        self._frames = 0
        self._length = bytearray(_LENGTH.size)
        self._left = memoryview(b"")  # opened, not yet handed out

    @property
    def ready(self) -> bool:
        """Whether `receive` returns at once."""
        return bool(self._left) or self.ended or self._connection.holds_frame()

    @property
    def drained(self) -> bool:
        """Whether the other side ended and everything before was handed out."""
        return self.ended and not self._left

    def receive_into(self, buffer: memoryview) -> None:
        """Fill the buffer; a stream that ends before is lost."""
        filled = self._take(buffer)
        with self._connection.use() as raw:
            while filled < len(buffer):
                filled += self._receive_frame(raw, buffer[filled:])
                if self.ended:
                    raise AveragingError("the stream ended early")
        self.content += len(buffer)

    def receive(self, limit: int) -> bytes:
        """At least one and at most `limit` bytes; empty at the end of the stream."""
        if not self._left and not self.ended:
            with self._connection.use() as raw:
                self._receive_frame(raw, memoryview(bytearray()))
        data = bytes(self._left[:limit])
        self._left = self._left[len(data) :]
        self.content += len(data)
        return data

    def _take(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _receive_frame(self, raw: socket.socket, buffer: memoryview) -> int:
        """Open the next frame into the buffer, or keep what does not fit; the number of bytes in the buffer."""
        _receive_exactly(raw, memoryview(self._length))
        size: int = _LENGTH.unpack(self._length)[0]
        if not _TAG <= size <= FRAME + _TAG:
            raise AveragingError(f"a frame of {size} bytes where at most {FRAME + _TAG} are taken")
        if len(self._connection.incoming) < size:
            self._connection.incoming = bytearray(size)
        sealed, length = memoryview(self._connection.incoming)[:size], size - _TAG
        _receive_exactly(raw, sealed)
        fits = length <= len(buffer)
        content = buffer[:length] if fits else memoryview(bytearray(length))
        try:
            self._aead.decrypt_into(_nonce(self._frames), sealed, None, content)
        except InvalidTag:
            raise AveragingError("a frame that was not sealed by the other side") from None
        self._frames += 1
        self.wire += _LENGTH.size + size
        self.ended = length == 0
        if fits:
            return length
        self._left = content
        return self._take(buffer)


def _nonce(number: int) -> bytes:
    if number >= _MAX_FRAMES:
        raise AveragingError("the stream is too long for its key")
    return number.to_bytes(12, "big")


def _receive_exactly(raw: socket.socket, buffer: memoryview) -> None:
    filled = 0
    while filled < len(buffer):
        count = raw.recv_into(buffer[filled:], 0, socket.MSG_WAITALL)
        if not count:
            raise AveragingError("the stream was cut off")
        filled += count
