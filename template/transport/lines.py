"""Connections to other neurons: one small HTTP client for each address, kept while it is in use.

One client for all would do the same, but httpcore's pool looks at every pair of its connections for each request: with
256 neurons to ask, choosing a connection took longer than the answers.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import httpx

from template.clock import Clock

Address = tuple[str, int]


@dataclass
class _Line:
    client: httpx.AsyncClient
    used_at: float
    users: int = 0


class Lines:
    """Clients by address. Those unused for `idle_s` seconds are closed, and beyond `capacity` the longest unused."""

    def __init__(self, make: Callable[[], httpx.AsyncClient], clock: Clock, *, idle_s: float, capacity: int) -> None:
        self._make = make
        self._clock = clock
        self._idle_s = idle_s
        self._capacity = capacity
        self._lines: OrderedDict[Address, _Line] = OrderedDict()
        self.closed = False

    def __len__(self) -> int:
        return len(self._lines)

    @contextlib.asynccontextmanager
    async def to(self, address: Address) -> AsyncIterator[httpx.AsyncClient]:
        """The client for this address, not closed while inside."""
        line = self._lines.get(address)
        if line is None:
            line = self._lines[address] = _Line(self._make(), self._clock.monotonic())
        line.users += 1
        try:
            await self._prune()
            yield line.client
        finally:
            line.users -= 1
            line.used_at = self._clock.monotonic()
            if address in self._lines:
                self._lines.move_to_end(address)

    async def close(self) -> None:
        """Close all of them, whoever uses them. Idempotent."""
        self.closed = True
        while self._lines:
            _, line = self._lines.popitem()
            await line.client.aclose()

    async def _prune(self) -> None:
        horizon = self._clock.monotonic() - self._idle_s
        excess = len(self._lines) - self._capacity
        superfluous: list[Address] = []
        for address, line in self._lines.items():  # the longest unused first
            if line.users > 0:
                continue
            if line.used_at >= horizon and len(superfluous) >= excess:
                break
            superfluous.append(address)
        for client in [self._lines.pop(address).client for address in superfluous]:
            await client.aclose()
