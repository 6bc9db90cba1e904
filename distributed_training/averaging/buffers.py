"""Memory that is used again from round to round: fresh pages cost more time than anything else in a round.

What is kept is bounded by what one round needs: the vector of an average whose last user has let go of it, and the
chunks that were in flight at once. Thread-safe.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

import numpy as np

from distributed_training.averaging.codec import Floats


class Buffers:
    """Keeps one size of vector and one size of chunk."""

    def __init__(self) -> None:
        self._vectors: deque[Floats] = deque(maxlen=1)  # its append is atomic, so a finaliser may call it anywhere
        self._chunks: list[bytearray] = []
        self._chunk_size = 0
        self._lock = threading.Lock()

    def vector(self, size: int) -> Floats:
        """An array [size] with any content. Its memory comes back when nothing refers to it, or to a part of it."""
        try:
            memory = self._vectors.pop()
        except IndexError:
            memory = None
        if memory is None or memory.size != size:
            memory = np.empty(size, dtype=np.float32)
        # Over a memoryview, an array of its own: every view of it keeps it alive, and its end can be seen.
        lent = np.frombuffer(memory.data, dtype=np.float32)
        weakref.finalize(lent, self._vectors.append, memory).atexit = False
        return lent

    def chunk(self, size: int) -> bytearray:
        """`size` bytes with any content; give them back with `free`, or not at all."""
        with self._lock:
            if size != self._chunk_size:
                self._chunks.clear()
                self._chunk_size = size
            return self._chunks.pop() if self._chunks else bytearray(size)

    def free(self, chunk: bytearray) -> None:
        """Take back a chunk that nobody uses any more."""
        with self._lock:
            if len(chunk) == self._chunk_size:
                self._chunks.append(chunk)
