"""State from peer to peer: whole or not at all, bounded, and only among neurons."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from distributed_training.averaging.frames import write_message
from distributed_training.averaging.memory import MemoryNetwork
from distributed_training.averaging.peer import Peer
from distributed_training.averaging.state_transfer import (
    PROTOCOL,
    FileEntry,
    Manifest,
    StateOffer,
    StateServer,
    StateServerConfig,
    describe,
    fetch_state,
)
from distributed_training.averaging.streams import Stream, Transport
from template.errors import AveragingError, CorruptState, StateMismatch, SubnetError

RUN, HASH, OTHER = "test-1", "a" * 64, "b" * 64
BLOB = np.random.default_rng(0).bytes(2_500_001)


def everybody(_: str) -> bool:
    return True


def nobody(_: str) -> bool:
    return False


def fetch(transport: Transport, folder: Path, **changes: Any) -> Any:
    """Fetch epoch 7 from `server`, with some arguments changed."""
    arguments: dict[str, Any] = {
        "run_id": RUN,
        "epoch": 7,
        "expected_hash": HASH,
        "destination": folder,
        "max_bytes": 10_000_000,
        "seconds": 5.0,
        "allow": everybody,
    }
    return fetch_state(transport, "server", (), **{**arguments, **changes})


def offer(folder: Path) -> StateOffer:
    """One file on disk and one in memory."""
    path = folder / "stored"
    path.write_bytes(BLOB)
    return StateOffer(state_hash=HASH, files=(describe("model.safetensors", path), describe("state.json", b"{}")))


@contextlib.asynccontextmanager
async def served(
    folder: Path, allow: Callable[[str], bool] = everybody, config: StateServerConfig | None = None
) -> AsyncIterator[tuple[Transport, MemoryNetwork]]:
    """A client beside a server of epoch 7."""
    network = MemoryNetwork()
    available = {7: offer(folder)}
    server = network.transport("server")
    async with StateServer(server, run_id=RUN, provider=available.get, allow=allow, config=config):
        yield network.transport("client"), network


async def test_the_files_arrive_as_they_are(tmp_path: Path) -> None:
    """From disk and from memory, over many blocks, into a folder that is made."""
    async with served(tmp_path) as (client, _):
        model, state = await fetch(client, tmp_path / "new" / "folder")
    assert model.read_bytes() == BLOB
    assert state.read_bytes() == b"{}"
    assert sorted(p.name for p in model.parent.iterdir()) == ["model.safetensors", "state.json"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"expected_hash": OTHER}, StateMismatch),
        ({"max_bytes": len(BLOB)}, CorruptState),
        ({"epoch": 8}, AveragingError),
        ({"run_id": "other-1"}, AveragingError),
        ({"allow": nobody}, AveragingError),
    ],
)
async def test_what_is_not_wanted_is_not_taken(
    tmp_path: Path, changes: dict[str, Any], error: type[SubnetError]
) -> None:
    """Another hash, one byte too many, another epoch or run, a peer that is no neuron: nothing is stored."""
    async with served(tmp_path) as (client, _):
        with pytest.raises(error):
            await fetch(client, tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


async def test_strangers_are_not_served(tmp_path: Path) -> None:
    """Dropped without a word."""
    async with served(tmp_path, allow=nobody) as (client, _):
        with pytest.raises(AveragingError):
            await fetch(client, tmp_path / "new")


async def test_a_transfer_that_hangs_loses_its_place(tmp_path: Path) -> None:
    """After the server's deadline the place is free for the next."""
    config = StateServerConfig(transfers=1, seconds=0.3, request_seconds=0.3)
    async with served(tmp_path, config=config) as (client, network):
        hanging = await network.transport("slow").open("server", (), PROTOCOL)
        network.stall("slow")
        await asyncio.sleep(0.1)
        with pytest.raises(AveragingError, match="busy"):
            await fetch(client, tmp_path / "new")
        await asyncio.sleep(0.5)
        assert len(await fetch(client, tmp_path / "new")) == 2
        hanging.abort()


async def test_a_full_server_says_so(tmp_path: Path) -> None:
    """More than it may serve at a time."""
    async with served(tmp_path, config=StateServerConfig(transfers=1)) as (client, _):
        results = await asyncio.gather(*(fetch(client, tmp_path / str(i)) for i in range(3)), return_exceptions=True)
    assert sum(isinstance(r, tuple) for r in results) == 1
    assert all("busy" in str(r) for r in results if not isinstance(r, tuple))


@contextlib.asynccontextmanager
async def lying(manifest: Manifest, data: bytes) -> AsyncIterator[Transport]:
    """A client beside a server that answers anything with these bytes."""
    network = MemoryNetwork()

    async def answer(stream: Stream) -> None:
        await stream.read(1 << 16)
        await write_message(stream, manifest)
        await stream.write(data)
        await stream.read(1)

    server = network.transport("server")
    await server.serve(PROTOCOL, answer)
    yield network.transport("client")
    await server.unserve(PROTOCOL)


def entry(name: str, data: bytes, **changes: Any) -> FileEntry:
    fields = {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return FileEntry.model_validate({**fields, **changes})


async def test_wrong_bytes_leave_nothing_behind(tmp_path: Path) -> None:
    """A good first file is not kept when the second is corrupt."""
    manifest = Manifest(code="ready", state_hash=HASH, files=(entry("a", b"good"), entry("b", b"good")))
    async with lying(manifest, b"goodevil") as client:
        with pytest.raises(CorruptState, match="b:"):
            await fetch(client, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


async def test_a_manifest_with_a_name_twice_is_corrupt(tmp_path: Path) -> None:
    """The second would overwrite the first."""
    manifest = Manifest(code="ready", state_hash=HASH, files=(entry("a", b"x"), entry("a", b"y")))
    async with lying(manifest, b"xy") as client:
        with pytest.raises(CorruptState, match="same name"):
            await fetch(client, tmp_path / "new")


async def test_a_server_that_goes_quiet_costs_one_deadline(tmp_path: Path) -> None:
    """A file that never ends."""
    manifest = Manifest(code="ready", state_hash=HASH, files=(entry("a", b"xyz", size=1000),))
    async with lying(manifest, b"xyz") as client:
        with pytest.raises(AveragingError, match="did not deliver"):
            await fetch(client, tmp_path / "new", seconds=0.3)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", ".hidden", "", "a/b", "a\0b", "x" * 200])
def test_names_that_leave_the_folder_are_no_names(name: str) -> None:
    """A manifest with such a name is not even parsed."""
    with pytest.raises(ValidationError):
        entry(name, b"")


@pytest.mark.integration
@pytest.mark.asyncio(loop_scope="module")
async def test_over_libp2p(peers: dict[int, Peer], tmp_path: Path) -> None:
    """The same over real daemons."""
    available = {7: offer(tmp_path)}
    async with StateServer(peers[1], run_id=RUN, provider=available.get, allow=everybody):
        model, _ = await fetch_state(
            peers[2],
            peers[1].peer_id,
            peers[1].addresses,
            run_id=RUN,
            epoch=7,
            expected_hash=HASH,
            destination=tmp_path / "new",
            max_bytes=10_000_000,
            seconds=20.0,
            allow=everybody,
        )
    assert model.read_bytes() == BLOB
