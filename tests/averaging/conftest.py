"""Peers for the tests: real libp2p daemons on loopback, started once a module because each takes about a second."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from distributed_training.averaging.peer import Peer, PeerConfig


def peer_config(folder: Path, name: str, initial_peers: tuple[str, ...] = ()) -> PeerConfig:
    """A peer on a free loopback port with its identity in `folder`."""
    return PeerConfig(host="127.0.0.1", port=0, identity_path=folder / name, initial_peers=initial_peers)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def peers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[int, Peer]]:
    """Four peers, by uid; the first is the initial peer of the others."""
    folder = tmp_path_factory.mktemp("peers")
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Peer(peer_config(folder, "0")))
        started = {0: first}
        for uid in range(1, 4):
            config = peer_config(folder, str(uid), first.addresses)
            started[uid] = await stack.enter_async_context(Peer(config))
        yield started
