"""Peers that only relays can reach: real libp2p daemons, four of which relay for two that nobody may call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from distributed_training.averaging.libp2p import parse_peer
from distributed_training.averaging.peer import Peer
from distributed_training.averaging.shares import dialable
from distributed_training.averaging.streams import Stream
from template.errors import AveragingError
from tests.averaging.conftest import peer_config
from tests.averaging.groups import contributions, exact_mean, group_on, make_plan, weights

RELAYS = 4  # with fewer the daemon waits for minutes
RESERVED_SECONDS = 20.0

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[int, Peer]]:
    """Relays 0 to 3, and 4 and 5 behind them."""
    folder = tmp_path_factory.mktemp("crowd")
    async with AsyncExitStack() as stack:
        peers: dict[int, Peer] = {}
        for uid in range(RELAYS):
            config = replace(peer_config(folder, str(uid), peers[0].addresses if peers else ()), relay_others=True)
            peers[uid] = await stack.enter_async_context(Peer(config))
        relays = tuple(peers[uid].addresses[0] for uid in range(RELAYS))
        for uid in (4, 5):
            config = replace(peer_config(folder, str(uid), relays), relay=True)
            peers[uid] = await stack.enter_async_context(Peer(config))
        yield peers


async def answers(stream: Stream) -> None:
    await stream.write(b"here")
    await stream.read(1)


async def test_two_whom_nobody_can_call_reach_each_other(crowd: dict[int, Peer]) -> None:
    """Through addresses that name a relay, as soon as that has room for them."""
    called = crowd[4]
    assert not dialable(called.addresses)
    assert not [c for c in psutil.Process(called.daemon_pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert [a.split("/p2p-circuit")[0] for a in called.addresses] == [crowd[uid].addresses[0] for uid in range(RELAYS)]
    await called.serve("asks/1", answers)
    try:
        stream = await within(RESERVED_SECONDS, crowd[5], called, "asks/1")
        assert stream.peer_id == called.peer_id
        assert await stream.readexactly(4) == b"here"
        assert not neighbours(crowd[5], called)
        assert neighbours(crowd[5], crowd[0])
        stream.abort()
    finally:
        await called.unserve("asks/1")


def neighbours(one: Peer, other: Peer) -> bool:
    """Whether there is a connection between two daemons, without a third."""
    seen = [psutil.Process(peer.daemon_pid).net_connections("tcp") for peer in (one, other)]
    ends = [{(c.laddr, c.raddr) for c in connections if c.raddr} for connections in seen]
    return any((there, here) in ends[1] for here, there in ends[0])


async def within(seconds: float, caller: Peer, called: Peer, protocol: str) -> Stream:
    """A stream, tried again until the relays have taken the called one."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await caller.open(called.peer_id, called.addresses, protocol)
            except AveragingError:
                await asyncio.sleep(0.5)


async def test_a_round_with_two_behind_relays(crowd: dict[int, Peer]) -> None:
    """They reduce nothing, and put as much into the average as anybody."""
    await crowd[4].serve("asks/2", answers)
    (await within(RESERVED_SECONDS, crowd[5], crowd[4], "asks/2")).abort()
    await crowd[4].unserve("asks/2")
    async with group_on({uid: crowd[uid] for uid in (0, 4, 5)}) as group:
        plan = make_plan(group.members(idle=[4, 5]), 5000)
        values = contributions(plan)
        results = await group.run(plan, values)
    assert all(result.outcome.completed for result in results.values())
    for result in results.values():
        assert result.average is not None
        np.testing.assert_allclose(result.average, exact_mean(values, weights(plan)), atol=1e-5)


async def test_who_does_not_relay_is_no_way(tmp_path: Path, crowd: dict[int, Peer]) -> None:
    """Nobody is a relay without having said so."""
    async with Peer(peer_config(tmp_path, "plain")) as plain:
        address = f"{plain.addresses[0]}/p2p-circuit/p2p/{crowd[4].peer_id}"
        await plain.connect(crowd[4].peer_id, crowd[4].addresses)  # it could
        async with Peer(peer_config(tmp_path, "caller")) as caller:
            with pytest.raises(AveragingError, match="libp2p"):
                await caller.connect(crowd[4].peer_id, (address,))


async def test_a_relayed_address_is_encoded_as_the_daemon_reads_it(crowd: dict[int, Peer]) -> None:
    """The relay's peer id as the bytes of its hash, then the mark of a relay; what is no peer id is refused."""
    relay, called = crowd[0], crowd[4].peer_id
    _, (plain,) = parse_peer(relay.peer_id, relay.addresses[:1])
    remote, (relayed,) = parse_peer(called, (f"{relay.addresses[0]}/p2p-circuit/p2p/{called}",))
    assert remote.to_base58() == called
    relay_id = parse_peer(relay.peer_id, ())[0].to_bytes()
    assert relayed == plain + b"\xa5\x03" + bytes([len(relay_id)]) + relay_id + b"\xa2\x02"
    with pytest.raises(AveragingError, match="not a peer"):
        parse_peer(called, ("/ip4/127.0.0.1/tcp/1/p2p/0OIl/p2p-circuit",))
