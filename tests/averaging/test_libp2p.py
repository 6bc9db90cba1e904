"""Real libp2p daemons: the streams under the contract of all transports, the DHT, and who is let in."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from distributed_training.averaging.libp2p import parse_peer
from distributed_training.averaging.peer import Peer
from template.errors import AveragingError
from tests.averaging.conftest import peer_config
from tests.averaging.stream_contract import Pair, StreamContract

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


class TestLibp2pStreams(StreamContract):
    @pytest.fixture
    def pair(self, peers: dict[int, Peer]) -> Pair:
        return peers[1], peers[2], peers[2].addresses


async def test_a_notice_in_the_dht_is_found_by_another_peer(peers: dict[int, Peer]) -> None:
    """With its peer id and its time, beside others'; an unknown key has none."""
    until = {peers[uid].peer_id: time.time() + 10 * (uid + 1) for uid in (0, 1)}
    for uid in (0, 1):
        await peers[uid].declare("key", until[peers[uid].peer_id])
    assert await peers[3].declared("key") == until
    assert await peers[2].declared("no such key") == {}


@pytest.mark.parametrize("of", ["another", "all"])
async def test_nobody_writes_another_s_notice(peers: dict[int, Peer], of: str) -> None:
    """Neither under its peer id nor over all notices of the key; the true one is still found."""
    until, node = time.time() + 10, peers[2]._the_running().node
    await peers[1].declare(f"notices of {of}", until)
    subkey = peers[1]._the_running().node.peer_id.to_bytes() if of == "another" else None
    assert not await node.store(f"notices of {of}", False, until + 1000, subkey=subkey)
    assert await peers[3].declared(f"notices of {of}") == {peers[1].peer_id: until}


async def test_peers_that_meet_see_each_other_s_notices(tmp_path: Path, peers: dict[int, Peer]) -> None:
    """A peer that has joined no network, and others that are not there, which costs little time."""
    async with Peer(peer_config(tmp_path, "island")) as island:
        await peers[1].declare("island", time.time() + 30)
        assert await island.declared("island") == {}
        nowhere = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
        await island.meet({peers[1].peer_id: peers[1].addresses, nowhere: ("/ip4/127.0.0.1/tcp/1",)})
        assert set(await island.declared("island")) == {peers[1].peer_id}


async def test_another_identity_at_an_address_is_refused(peers: dict[int, Peer]) -> None:
    """The handshake proves the peer id: an address of somebody else does not pass for it."""
    stranger = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
    with pytest.raises(AveragingError):
        async with asyncio.timeout(10):
            await peers[0].connect(stranger, peers[1].addresses)


async def test_only_tcp_addresses_are_taken() -> None:
    """QUIC loses streamed replies; nonsense is refused as such."""
    good = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
    for peer_id, address in [
        (good, "/ip4/127.0.0.1/udp/1/quic"),
        (good, "localhost:80"),
        ("not base58 0OIl", "/ip4/127.0.0.1/tcp/1"),
    ]:
        with pytest.raises(AveragingError):
            parse_peer(peer_id, (address,))
