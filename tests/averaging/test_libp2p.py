"""Real libp2p daemons: the streams under the contract of all transports, the DHT, and who is let in."""

from __future__ import annotations

import asyncio

import pytest

from distributed_training.averaging.libp2p import parse_peer
from distributed_training.averaging.peer import MAX_DHT_VALUE, Peer
from template.errors import AveragingError
from tests.averaging.stream_contract import Pair, StreamContract

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


class TestLibp2pStreams(StreamContract):
    @pytest.fixture
    def pair(self, peers: dict[int, Peer]) -> Pair:
        return peers[1], peers[2], peers[2].addresses


async def test_a_value_in_the_dht_is_found_by_another_peer(peers: dict[int, Peer]) -> None:
    """Small values pass, large ones are refused, unknown keys are None."""
    assert await peers[1].store("key", b"value", 60)
    assert await peers[3].get("key") == b"value"
    assert await peers[2].get("no such key") is None
    with pytest.raises(AveragingError, match="too many"):
        await peers[1].store("key", bytes(MAX_DHT_VALUE + 1), 60)


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
