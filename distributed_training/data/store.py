"""Where the files of a corpus lie, read by ranges of bytes: the seam, and the patience with those far away.

A `Store` makes one try a call. `Patient` puts a bounded number of tries around it, with back-off and jitter (the policy
of services/retry.py), bounded in time as well, and says each of them to telemetry. Once it has given up it tries only
once a call for a while, so that whoever has many pages to read learns at once that the other side is still away.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from distributed_training.services.retry import RetryPolicy, Transient
from template.clock import Clock, SystemClock
from template.errors import ConfigurationError, SourceUnavailable
from template.telemetry import Event, Telemetry

T = TypeVar("T")


class Absent(SourceUnavailable):
    """There is no such file."""


class Store(Protocol):
    """Named files, read by ranges. Every call is one try, bounded in time. Thread-safe.

    Every method raises Transient (another try may help) or SourceUnavailable (another try gives the same; Absent: there
    is no such file).
    """

    @property
    def where(self) -> str:
        """The place, for messages; never with a credential."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes start ... stop - 1 of a file: as many as asked for, or an error."""

    def tail(self, name: str, count: int) -> tuple[bytes, int]:
        """The last `count` bytes of a file (all, if it is shorter), and its size."""

    def whole(self, name: str, limit: int) -> bytes:
        """All of a file of at most `limit` bytes."""

    def close(self) -> None:
        """Give connections back."""


class Shelf(Store, Protocol):
    """A store that can be written to. A file appears whole or not at all."""

    def put(self, name: str, content: bytes) -> None:
        """Write a file; whatever is there is replaced."""

    def remove(self, name: str) -> None:
        """Remove a file; that it is not there is fine."""


@dataclass(frozen=True, kw_only=True)
class SourceRetried(Event):
    """One try to read the corpus failed; the next one is made after `wait_seconds`."""

    where: str
    tried: int
    reason: str
    wait_seconds: float


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a store that does not answer is tried: the policy's tries, and at most `seconds` in all.

    For `rest` seconds after giving up each call makes a single try.
    """

    policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(tries=8, first_delay=0.5, longest_delay=20.0))
    seconds: float = 90.0
    rest: float = 60.0

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.rest < 0:
            raise ConfigurationError("the seconds of a corpus's patience must be positive, and its rest not negative")


class Patient:
    """A `Store` around a store, that raises SourceUnavailable only. `close` ends the waiting of other threads.

    `pause` waits for so many seconds and tells whether the store was closed meanwhile.
    """

    def __init__(
        self,
        store: Store,
        patience: Patience | None = None,
        *,
        telemetry: Telemetry | None = None,
        clock: Clock | None = None,
        pause: Callable[[float], bool] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._patience = patience or Patience()
        self._telemetry = telemetry or Telemetry()
        self._clock = clock or SystemClock()
        self._closed = threading.Event()
        self._pause = pause or self._closed.wait
        self._jitter = jitter
        self._resting_until = float("-inf")

    @property
    def where(self) -> str:
        return self._store.where

    def read(self, name: str, start: int, stop: int, sha256: bytes | None = None) -> bytes:
        """As a store reads; bytes that do not hash to `sha256` count as a try that failed."""
        return self.attempt(lambda: _checked(self._store.read(name, start, stop), sha256, name))

    def tail(self, name: str, count: int) -> tuple[bytes, int]:
        return self.attempt(lambda: self._store.tail(name, count))

    def whole(self, name: str, limit: int, sha256: bytes | None = None) -> bytes:
        """As a store reads; bytes that do not hash to `sha256` count as a try that failed."""
        return self.attempt(lambda: _checked(self._store.whole(name, limit), sha256, name))

    def close(self) -> None:
        self._closed.set()
        self._store.close()

    def attempt(self, function: Callable[[], T]) -> T:
        """The function's result, tried anew while it raises Transient.

        Raises:
            SourceUnavailable: the tries or the time are used up, or the store was closed.
        """
        began, tried = self._clock.monotonic(), 0
        while True:
            if self._closed.is_set():
                raise SourceUnavailable(f"{self.where} is closed")
            try:
                result = function()
            except Transient as error:
                tried += 1
                wait, reason = self._wait(tried, began, error.retry_after), str(error)
            else:
                self._resting_until = float("-inf")
                return result
            if wait is None:
                raise self._gave_up(tried, began, reason)
            self._telemetry.emit(SourceRetried(where=self.where, tried=tried, reason=reason, wait_seconds=wait))
            if self._pause(wait):
                raise SourceUnavailable(f"{self.where} is closed")

    def _wait(self, tried: int, began: float, retry_after: float | None) -> float | None:
        """Seconds before the next try, None to give up."""
        now = self._clock.monotonic()
        if now < self._resting_until:
            return None
        wait = self._patience.policy.delay(tried, self._jitter(), retry_after)
        return None if wait is None or now + wait - began > self._patience.seconds else wait

    def _gave_up(self, tried: int, began: float, reason: str) -> SourceUnavailable:
        now = self._clock.monotonic()
        if now >= self._resting_until:
            self._resting_until = now + self._patience.rest
        times = "once" if tried == 1 else f"{tried} times in {now - began:.0f} s"
        return SourceUnavailable(f"{self.where} was tried {times} in vain: {reason}")


def _checked(content: bytes, sha256: bytes | None, name: str) -> bytes:
    if sha256 is not None and (found := hashlib.sha256(content).digest()) != sha256:
        raise Transient(f"{name} came with the hash {found.hex()[:12]}, it should be {sha256.hex()[:12]}")
    return content


class FolderStore:
    """A `Shelf` in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def where(self) -> str:
        return str(self._folder)

    def read(self, name: str, start: int, stop: int) -> bytes:
        data = self._bytes(name, start, stop - start)
        if len(data) != stop - start:
            raise SourceUnavailable(f"{self._folder / name} is shorter than it should be: restore it")
        return data

    def tail(self, name: str, count: int) -> tuple[bytes, int]:
        size = self._size(name)
        return self._bytes(name, max(0, size - count), count), size

    def whole(self, name: str, limit: int) -> bytes:
        data = self._bytes(name, 0, limit + 1)
        if len(data) > limit:
            raise SourceUnavailable(f"{self._folder / name} is larger than {limit} bytes")
        return data

    def close(self) -> None:
        return

    def put(self, name: str, content: bytes) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._partial(name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, self._folder / name)
        except OSError as error:
            raise SourceUnavailable(f"{self._folder / name} cannot be written: {error.strerror}") from error

    def remove(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
            self._partial(name).unlink(missing_ok=True)
        except OSError as error:
            raise SourceUnavailable(f"{self._folder / name} cannot be removed: {error.strerror}") from error

    def _partial(self, name: str) -> Path:
        """Where a file is while it is written: one place, so that who was killed there leaves nothing for good."""
        return self._folder / f".{name}.partial"

    def _size(self, name: str) -> int:
        try:
            return (self._folder / name).stat().st_size
        except OSError as error:
            raise self._translated(error, name) from error

    def _bytes(self, name: str, offset: int, count: int) -> bytes:
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(offset)
                return file.read(count)
        except OSError as error:
            raise self._translated(error, name) from error

    def _translated(self, error: OSError, name: str) -> SourceUnavailable:
        kind = Absent if isinstance(error, FileNotFoundError) else SourceUnavailable
        return kind(f"{self._folder / name} cannot be read: {error.strerror}")
