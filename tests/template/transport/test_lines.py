"""One client an address: kept in use, closed when idle or too many."""

from __future__ import annotations

import httpx

from template.clock import ManualClock
from template.transport.lines import Lines


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.MockTransport(lambda request: httpx.Response(200)), trust_env=False)


async def test_an_address_keeps_its_client() -> None:
    """The second request goes over the connections of the first."""
    lines = Lines(client, ManualClock(), idle_s=10, capacity=10)
    async with lines.to(("a", 1)) as first:
        pass
    async with lines.to(("a", 1)) as second, lines.to(("a", 2)) as other:
        assert second is first
        assert other is not first
    await lines.close()
    assert first.is_closed
    assert other.is_closed


async def test_an_idle_client_is_closed_and_a_busy_one_is_not() -> None:
    """Whoever has not been asked for a while loses its connections, a long request does not."""
    clock = ManualClock()
    lines = Lines(client, clock, idle_s=10, capacity=10)
    async with lines.to(("busy", 1)) as busy:
        async with lines.to(("idle", 1)) as idle:
            pass
        await clock.advance(11)
        async with lines.to(("new", 1)):
            assert (busy.is_closed, idle.is_closed, len(lines)) == (False, True, 2)
    await lines.close()


async def test_there_are_never_more_than_the_capacity_unless_busy() -> None:
    """The longest unused goes first."""
    lines = Lines(client, ManualClock(), idle_s=10, capacity=2)
    clients = []
    for port in range(5):
        async with lines.to(("a", port)) as one:
            clients.append(one)
    assert [one.is_closed for one in clients] == [True, True, True, False, False]
    await lines.close()
