"""The wire without a wire: axons and dendrites of one process, for tests and simulations.

Everything but sockets is the real thing: signatures, policy, size caps, validation and deadlines run as they do over
TCP. What only sockets have, such as connection limits and slow writers, is not here.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import httpx

from template.transport.axon import Axon
from template.transport.dendrite import Target

HOST = "memory.invalid"


class MemoryNetwork:
    """Finds axons by the address they were given here. An axon that is removed is unreachable."""

    def __init__(self) -> None:
        self._ports: dict[str, int] = {}
        self._axons: dict[int, Axon] = {}

    def add(self, axon: Axon) -> None:
        """Make the axon reachable; it need not, and should not, be started."""
        port = self._ports.setdefault(axon.hotkey, len(self._ports) + 1)
        if port in self._axons:
            raise ValueError(f"{axon.hotkey} is on this network already")
        self._axons[port] = axon

    def remove(self, hotkey: str) -> None:
        """Make the hotkey's axon unreachable. Its address stays reserved for it."""
        del self._axons[self._ports[hotkey]]

    def target(self, uid: int, hotkey: str) -> Target:
        """Where the hotkey's axon is, or was."""
        return Target(uid, hotkey, HOST, self._ports[hotkey])

    @contextlib.asynccontextmanager
    async def serving(self, axon: Axon) -> AsyncIterator[None]:
        """What `async with axon` is on sockets."""
        self.add(axon)
        try:
            yield
        finally:
            self.remove(axon.hotkey)
            await axon.close()

    def transport(self, address: str = "127.0.0.1") -> httpx.AsyncBaseTransport:
        """For `Dendrite(transport=...)`; axons see its requests come from `address`."""
        return _Transport(self._axons, address)


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, axons: dict[int, Axon], address: str) -> None:
        self._axons = axons
        self._address = address

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        axon = self._axons.get(request.url.port or 0)
        if request.url.host != HOST or axon is None:
            raise httpx.ConnectError("nobody listens there", request=request)
        inner = httpx.ASGITransport(axon.app, client=(self._address, 1))
        return await inner.handle_async_request(request)
