"""Time as a parameter: seconds for deadlines and a wall-clock for signatures, real or moved by hand in tests."""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import Protocol


class Clock(Protocol):
    """What the rest of the code knows of time."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back. For deadlines and durations."""

    def time(self) -> float:
        """Seconds since the Unix epoch. For nonces and log lines."""

    async def sleep(self, seconds: float) -> None:
        """Return after at least `seconds` of this clock."""


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that stands still until `advance` moves it; sleepers wake in the order of their deadlines."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start = start
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._sequence = 0

    def monotonic(self) -> float:
        return self._elapsed

    def time(self) -> float:
        return self._start + self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sequence += 1
        heapq.heappush(self._sleepers, (self._elapsed + seconds, self._sequence, future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move the clock, waking each sleeper at its own instant and letting it run."""
        target = self._elapsed + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            self._elapsed, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
            for _ in range(10):  # let the woken task run to its next wait
                await asyncio.sleep(0)
        self._elapsed = target
