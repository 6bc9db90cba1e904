"""A state from several peers at once, chunk by chunk; `state_transfer.py` has the other side.

The wanted state hash proves a peer's list of digests, and that list proves every chunk when it arrives. So whoever
lies is known at once and dropped, and one honest peer is enough. Whoever is slow, stalls or dies is dropped, too, and
its chunks are asked of others. Every wait has a limit, and so has the whole.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_training.averaging.chunk_plan import ChunkPlan
from distributed_training.averaging.frames import read_message, write_message
from distributed_training.averaging.state_transfer import (
    MAX_FRAME,
    PROTOCOL,
    StateAnswer,
    StateRequest,
    chunk_number,
    in_thread,
)
from distributed_training.averaging.streams import Stream, Transport
from distributed_training.model.chunk_files import ChunkWriter, complete_from_chunks
from distributed_training.model.chunks import DIGEST, Chunks
from distributed_training.model.layout import Layout
from distributed_training.model.state import hashes
from distributed_training.protocol import PeerBinding
from template.errors import AveragingError, ConfigurationError, CorruptState, StateError


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The state that is asked for, and who asks.

    `optimizer` names the vectors beside the parameters; `config` is for config.json.
    """

    peer: PeerBinding
    run_id: str
    epoch: int
    state_hash: str
    layout: Layout
    optimizer: tuple[str, ...]
    config: Mapping[str, Any]

    @property
    def chunks(self) -> Chunks:
        return Chunks.of(self.layout, self.optimizer)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A peer that says it has the state. `name` is what it is called in reports."""

    name: str
    peer_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """At most `sources` peers at a time, each asked for `ahead` chunks before the first of them has come.

    A peer must accept and send the digests within `open_seconds`, and each chunk within `chunk_seconds`. A chunk that
    is under way for `patience` seconds is asked of another peer, too, when nothing else is left. The whole may take
    both, and as long as its bytes take at `slowest_rate` bytes/s.
    """

    sources: int = 4
    ahead: int = 4
    open_seconds: float = 15.0
    chunk_seconds: float = 20.0
    patience: float = 2.0
    slowest_rate: float = 256 * 1024.0

    def __post_init__(self) -> None:
        if min(self.sources, self.ahead) < 1:
            raise ConfigurationError("a download needs at least one source and one chunk ahead")
        if min(self.open_seconds, self.chunk_seconds, self.patience, self.slowest_rate) <= 0:
            raise ConfigurationError("open_seconds, chunk_seconds, patience and slowest_rate must be positive")

    def seconds(self, size: int) -> float:
        """How long a download of `size` bytes may take."""
        return self.open_seconds + self.chunk_seconds + size / self.slowest_rate


Refused = Callable[[str, str], None]  # called with the name of a source that is given up, and why


async def download_state(
    transport: Transport,
    sources: Iterable[Source],
    wanted: Wanted,
    folder: Path,
    *,
    refused: Refused,
    config: DownloadConfig | None = None,
) -> dict[str, int]:
    """Fetch a state into the new folder `folder`; the bytes that came from each source.

    The sources are tried in their order. The folder is a state as `model/files.py` describes it when this returns; if
    it raises, the folder is left as it is, for the caller to remove.

    Raises:
        AveragingError: no source is left, time is up, or the disk does not take it.
    """
    limits = config or DownloadConfig()
    try:
        writer = await in_thread(lambda: ChunkWriter.create(folder, wanted.layout, wanted.optimizer))
        with writer:
            download = _Download(transport, sources, wanted, writer, limits, refused)
            digests = await download.run()
        await in_thread(functools.partial(_complete, folder, wanted, digests))
    except OSError as error:
        raise AveragingError(f"the state cannot be stored in {folder}: {error}; free some space") from error
    return dict(download.taken)


def _complete(folder: Path, wanted: Wanted, digests: bytes) -> None:
    complete_from_chunks(folder, wanted.layout, wanted.run_id, wanted.epoch, wanted.optimizer, digests, wanted.config)


class _Download:
    """One download: a few tasks, each of which takes chunks from one source after another."""

    def __init__(
        self,
        transport: Transport,
        sources: Iterable[Source],
        wanted: Wanted,
        writer: ChunkWriter,
        config: DownloadConfig,
        refused: Refused,
    ) -> None:
        self.taken: Counter[str] = Counter()
        self._transport = transport
        self._sources = deque(sources)
        self._wanted = wanted
        self._chunks = wanted.chunks
        self._writer = writer
        self._config = config
        self._refused = refused
        self._plan = ChunkPlan(self._chunks.count, config.patience)
        self._digests: bytes | None = None
        self._complete = asyncio.Event()

    async def run(self) -> bytes:
        """Fetch all chunks; their digests."""
        seconds = self._config.seconds(self._chunks.size)
        try:
            async with asyncio.timeout(seconds):
                await self._all_lanes()
        except TimeoutError:
            raise AveragingError(f"not done in {seconds:.0f} s: {self._progress()}") from None
        if not self._plan.complete or self._digests is None:
            raise AveragingError(f"no source is left: {self._progress()}")
        return self._digests

    def _progress(self) -> str:
        return f"{self._plan.missing} of {self._chunks.count} chunks are missing"

    async def _all_lanes(self) -> None:
        """Until the last chunk has come or no lane has a source left; nothing goes on after that."""
        lanes = {asyncio.create_task(self._lane()) for _ in range(min(self._config.sources, len(self._sources)))}
        end = asyncio.create_task(self._complete.wait())
        try:
            running = set(lanes)
            while running and not end.done():
                done, _ = await asyncio.wait({*running, end}, return_when=asyncio.FIRST_COMPLETED)
                for lane in done & running:
                    lane.result()
                running -= done
        finally:
            for task in (*lanes, end):
                task.cancel()
            await asyncio.gather(*lanes, end, return_exceptions=True)

    async def _lane(self) -> None:
        while self._sources and not self._plan.complete:
            source = self._sources.popleft()
            before = self.taken[source.name]
            try:
                async with self._opened(source) as stream:
                    await self._take(stream, source)
            except (AveragingError, StateError) as error:
                self._plan.lost(source.name)
                again = isinstance(error, _Lost) and self.taken[source.name] > before
                if again:  # it got on: it may be asked once more, after the others
                    self._sources.append(source)
                else:
                    self._refused(source.name, str(error))

    @asynccontextmanager
    async def _opened(self, source: Source) -> AsyncIterator[Stream]:
        """A stream on which the source has promised the state, with digests that prove it."""
        stream: Stream | None = None
        try:
            try:
                async with asyncio.timeout(self._config.open_seconds):
                    stream = await self._transport.open(source.peer_id, source.addresses, PROTOCOL)
                    await self._ask_for_state(stream)
            except TimeoutError:
                raise AveragingError(f"no digests within {self._config.open_seconds:g} s") from None
            yield stream
        finally:
            if stream is not None:
                stream.abort()

    async def _ask_for_state(self, stream: Stream) -> None:
        wanted = self._wanted
        request = StateRequest(run_id=wanted.run_id, epoch=wanted.epoch, state_hash=wanted.state_hash, peer=wanted.peer)
        await write_message(stream, request)
        answer = await read_message(stream, StateAnswer, MAX_FRAME)
        if answer.code != "ready":
            raise AveragingError(f"it does not serve this state: {answer.code}")
        if answer.chunks != self._chunks.count:
            raise CorruptState(f"it has a state of {answer.chunks} chunks; the run's has {self._chunks.count}")
        digests = await stream.readexactly(DIGEST * self._chunks.count)
        if hashes(wanted.layout, wanted.epoch, wanted.optimizer, digests)[1] != wanted.state_hash:
            raise CorruptState("its digests do not make the state hash")
        self._digests = digests

    async def _take(self, stream: Stream, source: Source) -> None:
        """Ask for chunks and take them, a few under way at a time, until all are there."""
        waiting: deque[int] = deque()
        while not self._plan.complete:
            try:
                async with asyncio.timeout(self._config.chunk_seconds):
                    data = await self._next_chunk(stream, source, waiting)
            except TimeoutError:
                raise AveragingError(f"no chunk within {self._config.chunk_seconds:g} s") from None
            except AveragingError as error:
                raise _Lost(str(error)) from error
            if data is not None:
                await self._store(waiting.popleft(), data, source)

    async def _next_chunk(self, stream: Stream, source: Source, waiting: deque[int]) -> bytes | None:
        """The first of the `waiting` chunks; None if there is nothing to ask this source for at the moment."""
        now = asyncio.get_running_loop().time()
        while len(waiting) < self._config.ahead and (number := self._plan.next(source.name, now)) is not None:
            waiting.append(number)
            await stream.write(chunk_number(number))
        if waiting:
            return await stream.readexactly(self._chunks.place(waiting[0]).size)
        await asyncio.sleep(min(self._config.patience, self._config.chunk_seconds) / 4)
        return None

    async def _store(self, number: int, data: bytes, source: Source) -> None:
        assert self._digests is not None, "no stream is used before its digests were proved"
        await in_thread(functools.partial(self._writer.write, number, data, self._digests))
        self.taken[source.name] += len(data)
        self._plan.arrived(number)
        if self._plan.complete:
            self._complete.set()


class _Lost(AveragingError):
    """The stream to a source broke off; it may have been the network's fault."""
