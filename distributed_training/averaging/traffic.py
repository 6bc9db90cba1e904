"""What a round measures while it runs: bytes and busy seconds of transfers, and processor work by kind. Thread-safe."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator


class Meter:
    """Bytes and values moved, and the seconds in which at least one transfer was under way; `parent` sees the same."""

    def __init__(self, parent: Meter | None = None) -> None:
        self.bytes = 0
        self.values = 0  # that arrived whole, whatever they took on the wire
        self.first: float | None = None  # time.monotonic of the first transfer
        self._parent = parent
        self._lock = threading.Lock()
        self._active = 0
        self._since = 0.0
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        with self._lock:
            return self._seconds + (time.monotonic() - self._since if self._active else 0.0)

    @property
    def bits_per_value(self) -> float | None:
        """What a value took on the wire, framing included; None if none moved."""
        with self._lock:
            return 8 * self.bytes / self.values if self.values else None

    def begin(self) -> None:
        """A transfer starts."""
        with self._lock:
            if not self._active:
                self._since = time.monotonic()
                if self.first is None:
                    self.first = self._since
            self._active += 1
        if self._parent is not None:
            self._parent.begin()

    def end(self, count: int, values: int = 0) -> None:
        """A transfer of `count` bytes, which stand for so many values, is over."""
        with self._lock:
            self.bytes += count
            self.values += values
            self._active -= 1
            if not self._active:
                self._seconds += time.monotonic() - self._since
        if self._parent is not None:
            self._parent.end(count, values)


class Effort:
    """Seconds spent in each kind of work, summed over threads."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Count the time of a block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[kind] = self._seconds.get(kind, 0.0) + time.perf_counter() - began

    def seconds(self, kind: str) -> float:
        with self._lock:
            return self._seconds.get(kind, 0.0)
