"""States from several peers at once: whole or not at all, bounded, proved chunk by chunk, only among neurons."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from distributed_training.averaging.frames import read_message, write_message
from distributed_training.averaging.memory import MemoryNetwork, MemoryTransport
from distributed_training.averaging.peer import Peer
from distributed_training.averaging.state_download import DownloadConfig, Source, download_state
from distributed_training.averaging.state_transfer import (
    MAX_FRAME,
    PROTOCOL,
    StateAnswer,
    StateOffer,
    StateRequest,
    StateServerConfig,
    chunk_number,
)
from distributed_training.averaging.streams import Transport
from distributed_training.model.files import read_state
from distributed_training.model.state import State
from distributed_training.protocol import PeerBinding
from template.errors import AveragingError, ConfigurationError
from tests.averaging.transfers import (
    EPOCH,
    NAMES,
    RUN,
    binding_of,
    everybody,
    hostile,
    make_offer,
    make_state,
    serving,
    source,
    wanted,
)

QUICK = DownloadConfig(open_seconds=0.5, chunk_seconds=0.5, patience=0.1)
STEADY = DownloadConfig(open_seconds=10, chunk_seconds=10, patience=0.1)  # blames nobody for a busy machine
PATIENT = DownloadConfig(open_seconds=10, chunk_seconds=10, patience=10)
STATE = make_state()


class Scene:
    """A state on the disk of `honest0`, `honest1`, ... and of a client that wants it; hostile peers beside them."""

    def __init__(self, folder: Path, stack: contextlib.AsyncExitStack) -> None:
        self.network = MemoryNetwork()
        self.client = self.network.transport("client")
        self.folder = folder
        self.offer = make_offer(folder / "offered", STATE)
        self.told: dict[str, str] = {}
        self.sources: list[Source] = []
        self._stack = stack

    def transport(self, name: str) -> MemoryTransport:
        transport = self.network.transport(name)
        self.sources.append(source(transport))
        return transport

    async def honest(self, count: int = 1, **options: Any) -> None:
        for i in range(count):
            await self._stack.enter_async_context(serving(self.transport(f"honest{i}"), self.offer, **options))

    async def hostile(self, kind: str, good: int = 0, pause: float = 0.0) -> None:
        await self._stack.enter_async_context(hostile(self.transport(kind), kind, self.offer, good, pause))

    async def fetch(self, state: State = STATE, config: DownloadConfig = STEADY, name: str = "new") -> dict[str, int]:
        self.told.clear()
        return await download_state(
            self.client, self.sources, wanted(state), self.folder / name, refused=self.told.__setitem__, config=config
        )

    def received(self, name: str = "new") -> State:
        return read_state(self.folder / name, STATE.layout, RUN, NAMES, STATE.hash)


@contextlib.asynccontextmanager
async def scene(folder: Path) -> Any:
    async with contextlib.AsyncExitStack() as stack:
        yield Scene(folder, stack)


async def test_several_peers_each_give_a_part(tmp_path: Path) -> None:
    """What arrives is a state like the one that was written, byte for byte, and every byte came once."""
    async with scene(tmp_path) as at:
        await at.honest(3)
        parts = await at.fetch(config=PATIENT)
    assert set(parts) == {"honest0", "honest1", "honest2"}
    assert sum(parts.values()) == 3 * 4 * STATE.layout.size
    assert at.received().hash == STATE.hash
    for path in (tmp_path / "offered").iterdir():
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()
    assert at.told == {}


KINDS = ["wrong bytes", "truncated", "stalls", "endless", "huge frame", "other size", "other digests", "no digests"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("good", [0, 2])
async def test_a_hostile_peer_is_named_and_an_honest_one_is_enough(tmp_path: Path, kind: str, good: int) -> None:
    """Whatever it does, at once or after some good chunks: the state is right, and nobody else is blamed."""
    async with scene(tmp_path) as at:
        await at.hostile(kind, good)
        await at.honest(1)
        parts = await at.fetch()
        assert at.received().hash == STATE.hash
        assert set(at.told) <= {kind}
        assert sum(parts.values()) >= 3 * 4 * STATE.layout.size
        if kind in KINDS[4:]:
            assert kind not in parts


@pytest.mark.parametrize("kind", KINDS)
async def test_hostile_peers_alone_give_nothing_in_bounded_time(tmp_path: Path, kind: str) -> None:
    """One clear error, each source told with its reason."""
    started = time.monotonic()
    async with scene(tmp_path) as at:
        await at.hostile(kind)
        with pytest.raises(AveragingError, match="no source is left: 9 of 9 chunks are missing"):
            await at.fetch(config=QUICK)
    assert list(at.told) == [kind]
    assert at.told[kind]
    assert time.monotonic() - started < 30
    assert not (tmp_path / "new" / "state.json").exists()


async def test_a_liar_is_found_by_its_first_wrong_chunk(tmp_path: Path) -> None:
    """Its good chunks are kept; only the one is asked of another."""
    async with scene(tmp_path) as at:
        await at.hostile("wrong bytes", good=1)
        await at.honest(1)
        parts = await at.fetch(config=PATIENT)
    assert "is not what the state's digests say" in at.told["wrong bytes"]
    assert sum(parts.values()) == 3 * 4 * STATE.layout.size


async def test_a_peer_that_dies_midway_costs_its_chunks_under_way(tmp_path: Path) -> None:
    """They are asked of the others."""
    async with scene(tmp_path) as at:
        await at.hostile("stalls", good=2)
        await at.honest(2)
        task = asyncio.create_task(at.fetch(config=PATIENT))
        await asyncio.sleep(0.3)
        at.network.kill("stalls")
        parts = await task
    assert parts["stalls"] > 0
    assert sum(parts.values()) == 3 * 4 * STATE.layout.size


async def test_a_stalled_peer_holds_up_nobody(tmp_path: Path) -> None:
    """Its chunks are asked of another long before its own deadline."""
    async with scene(tmp_path) as at:
        await at.hostile("stalls", good=1)
        await at.honest(1)
        async with asyncio.timeout(20):
            await at.fetch(config=DownloadConfig(chunk_seconds=600, open_seconds=600, patience=0.2))
    assert at.received().hash == STATE.hash


async def test_a_stream_that_is_lost_is_opened_again(tmp_path: Path) -> None:
    """As long as the peer gets on: the only source is not given up for a hiccup."""
    async with scene(tmp_path) as at:
        await at.hostile("truncated", good=2)
        parts = await at.fetch()
        assert (at.told, sum(parts.values())) == ({}, 3 * 4 * STATE.layout.size)


async def test_more_sources_than_are_used_at_once_are_a_reserve(tmp_path: Path) -> None:
    """When those before them fail."""
    async with scene(tmp_path) as at:
        for kind in ("other digests", "truncated", "wrong bytes"):
            await at.hostile(kind)
        await at.honest(1)
        parts = await at.fetch(config=DownloadConfig(sources=1))
        assert set(parts) == {"honest0"}
        assert list(at.told) == ["other digests", "truncated", "wrong bytes"]


@pytest.mark.parametrize("what", ["hash", "epoch"])
async def test_another_state_is_unknown(tmp_path: Path, what: str) -> None:
    """A stale or other state is refused before a byte of it moves."""
    other = make_state(seed=1) if what == "hash" else make_state(epoch=EPOCH - 1)
    async with scene(tmp_path) as at:
        await at.honest(1)
        with pytest.raises(AveragingError):
            await at.fetch(other)
        assert at.told == {"honest0": "it does not serve this state: unknown"}


async def test_strangers_are_not_served(tmp_path: Path) -> None:
    """Dropped without a word."""
    async with scene(tmp_path) as at:
        await at.honest(1, allow=lambda _: False)
        with pytest.raises(AveragingError):
            await at.fetch()


async def test_who_shows_that_it_is_a_neuron_is_served(tmp_path: Path) -> None:
    """Though nobody has heard of it; not under the name of another peer."""
    shown: list[str] = []

    def admit(binding: PeerBinding) -> bool:
        shown.append(binding.peer_id)
        return True

    async with scene(tmp_path) as at:
        await at.honest(1, allow=lambda _: False, admit=admit)
        assert sum((await at.fetch()).values()) == 3 * 4 * STATE.layout.size
        other = at.network.transport("other")
        with pytest.raises(AveragingError):
            await download_state(other, at.sources, wanted(STATE), tmp_path / "b", refused=lambda *_: None)
    assert shown == ["client"]


async def test_silent_strangers_take_no_place_from_neurons(tmp_path: Path) -> None:
    """They have few streams of their own, for a short while."""
    async with scene(tmp_path) as at:
        await at.honest(1, allow="client".__eq__, config=StateServerConfig(stranger_seconds=0.3))
        silent = [await at.network.transport(f"s{i}").open("honest0", (), PROTOCOL) for i in range(30)]
        await at.fetch()
        for stream in silent:
            with pytest.raises(AveragingError):
                await stream.readexactly(1)


async def test_time_is_limited_by_size(tmp_path: Path) -> None:
    """A peer that sends just fast enough not to stall does not hold the download for ever."""
    config = DownloadConfig(open_seconds=0.2, chunk_seconds=0.6, slowest_rate=1e9)
    async with scene(tmp_path) as at:
        await at.hostile("slow", good=100, pause=0.3)
        with pytest.raises(AveragingError, match=r"not done in 1 s: \d of 9 chunks are missing"):
            await at.fetch(config=config)


async def test_a_disk_that_takes_nothing_is_no_peer_s_fault(tmp_path: Path) -> None:
    """One error that says what to do."""
    async with scene(tmp_path) as at:
        await at.honest(1)
        (tmp_path / "new").write_text("in the way")
        with pytest.raises(AveragingError, match="cannot be stored"):
            await at.fetch()
        assert at.told == {}


async def opened(transport: Transport, offer: StateOffer) -> tuple[Any, StateAnswer]:
    """A stream to `honest0` with the request made."""
    stream = await transport.open("honest0", (), PROTOCOL)
    peer = binding_of(transport.peer_id)
    await write_message(stream, StateRequest(run_id=RUN, epoch=EPOCH, state_hash=offer.state_hash, peer=peer))
    return stream, await read_message(stream, StateAnswer, MAX_FRAME)


async def test_a_server_has_so_many_places_and_one_for_each_peer(tmp_path: Path) -> None:
    """The next one is told; who comes again takes its own place; a place that is left is free."""
    async with scene(tmp_path) as at:
        await at.honest(1, config=StateServerConfig(readers=1))
        first, answer = await opened(at.client, at.offer)
        assert answer.code == "ready"
        other = at.network.transport("other")
        assert (await opened(other, at.offer))[1].code == "busy"
        again, answer = await opened(at.client, at.offer)
        assert answer.code == "ready"
        with pytest.raises(AveragingError):
            await first.readexactly(10_000_000)
        again.abort()
        await asyncio.sleep(0.05)
        assert (await opened(other, at.offer))[1].code == "ready"


async def test_a_server_may_serve_nobody(tmp_path: Path) -> None:
    """An operator's choice; the late comer goes elsewhere."""
    async with scene(tmp_path) as at:
        await at.honest(1, config=StateServerConfig(readers=0))
        with pytest.raises(AveragingError):
            await at.fetch()
        assert at.told == {"honest0": "it does not serve this state: busy"}


async def test_a_reader_that_asks_nothing_or_nonsense_loses_its_place(tmp_path: Path) -> None:
    """After its time; at once for a chunk that there is not."""
    async with scene(tmp_path) as at:
        await at.honest(1, config=StateServerConfig(readers=1, request_seconds=0.2))
        for nonsense in (False, True):
            stream, answer = await opened(at.client, at.offer)
            assert answer.code == "ready"
            if nonsense:
                await stream.write(chunk_number(9))
            with pytest.raises(AveragingError):
                await stream.readexactly(10_000_000)
            assert (await at.fetch(name=f"new{nonsense}"))["honest0"] == 3 * 4 * STATE.layout.size


async def test_what_is_being_read_stays_readable(tmp_path: Path) -> None:
    """The run moves on and the folder is removed: the transfer ends well."""
    async with scene(tmp_path) as at:
        await at.honest(1)
        stream, _ = await opened(at.client, at.offer)
        await stream.readexactly(len(at.offer.digests))
        for path in at.offer.folder.iterdir():
            path.unlink()
        await stream.write(chunk_number(0))
        assert await stream.readexactly(1 << 20) == STATE.params.tobytes()[: 1 << 20]
        again, answer = await opened(at.network.transport("late"), at.offer)
        assert answer.code == "unknown"
        again.abort()


@pytest.mark.parametrize("change", [{"sources": 0}, {"ahead": 0}, {"chunk_seconds": 0}, {"slowest_rate": 0}])
def test_impossible_limits_are_refused(change: dict[str, Any]) -> None:
    """At once."""
    with pytest.raises(ConfigurationError):
        DownloadConfig(**change)


@pytest.mark.parametrize("change", [{"readers": -1}, {"seconds": 0}, {"request_seconds": 0}, {"chunk_seconds": -1}])
def test_an_impossible_server_is_refused(change: dict[str, Any]) -> None:
    """At once, too."""
    with pytest.raises(AveragingError):
        StateServerConfig(**change)


@pytest.mark.integration
@pytest.mark.asyncio(loop_scope="module")
async def test_over_libp2p_with_a_liar_and_one_that_dies(peers: dict[int, Peer], tmp_path: Path) -> None:
    """Three real peers: one lies in its second chunk, one breaks off in its first; the state is right all the same."""
    offer, told = make_offer(tmp_path / "offered", STATE), dict[str, str]()
    sources = [source(peers[i], peers[i].addresses) for i in (1, 2, 3)]
    async with (
        hostile(peers[1], "wrong bytes", offer, good=1),
        hostile(peers[2], "truncated", offer),
        serving(peers[3], offer, everybody),
    ):
        parts = await download_state(
            peers[0], sources, wanted(STATE), tmp_path / "new", refused=told.__setitem__, config=DownloadConfig()
        )
    assert read_state(tmp_path / "new", STATE.layout, RUN, NAMES, STATE.hash).hash == STATE.hash
    assert parts[peers[3].peer_id] > 0
    assert peers[3].peer_id not in told
    assert "digests" in told.get(peers[1].peer_id, "digests")
