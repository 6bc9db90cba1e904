"""States to transfer, and peers that serve them well, badly or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distributed_training.averaging.frames import read_message, write_message
from distributed_training.averaging.state_download import Source, Wanted
from distributed_training.averaging.state_transfer import (
    MAX_FRAME,
    PROTOCOL,
    StateAnswer,
    StateOffer,
    StateRequest,
    StateServer,
    StateServerConfig,
    read_chunk_number,
)
from distributed_training.averaging.streams import Stream, Transport
from distributed_training.model.chunk_files import ChunkReader
from distributed_training.model.chunks import Chunks
from distributed_training.model.files import write_state
from distributed_training.model.layout import Layout, Tensor
from distributed_training.model.state import State
from distributed_training.protocol import PeerBinding

RUN, EPOCH, NAMES = "test-1", 7, ("first", "second")
CONFIG = {"model_type": "none"}


def everybody(_: str) -> bool:
    return True


def make_state(size: int = 700_001, seed: int = 0, epoch: int = EPOCH) -> State:
    """Parameters in two tensors and two moments, of random numbers: 9 chunks of up to a MiB."""
    random = np.random.default_rng(seed)
    layout = Layout((Tensor("a", (size - 1,), 0), Tensor("b", (1, 1), size - 1)))
    params, first, second = (random.normal(size=size).astype(np.float32) for _ in range(3))
    return State(layout, epoch, params, {"first": first, "second": second})


def make_offer(folder: Path, state: State) -> StateOffer:
    """The state on disk, as a peer offers it."""
    write_state(folder, state, CONFIG, RUN)
    return StateOffer(
        state_hash=state.hash, folder=folder, chunks=Chunks.of(state.layout, NAMES), digests=state.digests
    )


def binding_of(peer_id: str) -> PeerBinding:
    """Signed by nobody: whether it is valid is for `admit` to say."""
    return PeerBinding(hotkey="5" * 48, peer_id=peer_id, addresses=("/memory",), signature="0x" + "0" * 128)


def wanted(state: State, peer_id: str = "client") -> Wanted:
    return Wanted(
        peer=binding_of(peer_id),
        run_id=RUN,
        epoch=state.epoch,
        state_hash=state.hash,
        layout=state.layout,
        optimizer=NAMES,
        config=CONFIG,
    )


def source(transport: Transport, addresses: tuple[str, ...] = ()) -> Source:
    return Source(name=transport.peer_id, peer_id=transport.peer_id, addresses=addresses)


def serving(
    transport: Transport,
    offer: StateOffer,
    allow: Callable[[str], bool] = everybody,
    admit: Callable[[PeerBinding], bool] = lambda _: False,
    config: StateServerConfig | None = None,
) -> StateServer:
    """An honest server of that one state."""
    available = {EPOCH: offer}
    return StateServer(transport, run_id=RUN, provider=available.get, allow=allow, admit=admit, config=config)


@dataclass(frozen=True)
class Hostile:
    """A server that does as the protocol says, up to a point. `good` chunks are right, then comes what `kind` says."""

    kind: str
    offer: StateOffer
    good: int = 0
    pause: float = 0.0  # seconds before each of them

    async def serve(self, stream: Stream) -> None:
        await read_message(stream, StateRequest, MAX_FRAME)
        await self._promise(stream)
        with ChunkReader.open(self.offer.folder, self.offer.chunks) as reader:
            for _ in range(self.good):
                await asyncio.sleep(self.pause)
                await stream.write(reader.read(await read_chunk_number(stream)))
            await self._betray(stream, reader.read(await read_chunk_number(stream)))

    async def _promise(self, stream: Stream) -> None:
        count, digests = self.offer.chunks.count, self.offer.digests
        if self.kind == "huge frame":
            await stream.write(b"\xff\xff\xff\xff" + b"x" * 100_000)
            await asyncio.sleep(60)
        if self.kind == "other size":
            count = 2**32 - 1
        if self.kind == "other digests":
            digests = digests[::-1]
        await write_message(stream, StateAnswer(code="ready", chunks=count))
        if self.kind == "no digests":
            await asyncio.sleep(60)
        await stream.write(digests)

    async def _betray(self, stream: Stream, chunk: bytes) -> None:
        if self.kind == "wrong bytes":
            await stream.write(bytes([chunk[0] ^ 1]) + chunk[1:])
            await stream.read(1)
        elif self.kind == "truncated":
            await stream.write(chunk[:1000])
            await asyncio.sleep(0.05)
        elif self.kind == "stalls":
            await stream.write(chunk[:1000])
            await asyncio.sleep(60)
        elif self.kind == "endless":
            while True:
                await stream.write(b"more" * 50_000)
        else:
            raise AssertionError(self.kind)


@asynccontextmanager
async def hostile(
    transport: Transport, kind: str, offer: StateOffer, good: int = 0, pause: float = 0.0
) -> AsyncIterator[None]:
    await transport.serve(PROTOCOL, Hostile(kind, offer, good, pause).serve)
    try:
        yield
    finally:
        await transport.unserve(PROTOCOL)
