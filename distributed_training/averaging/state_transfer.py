"""Model and optimiser state from peers to one that comes late: the messages, and the side that serves.

One stream: the request, the answer, the digests of the state's chunks, and then chunk after chunk as the other side
asks for them, each by its number in four bytes; the asking side closes. Both sides know from the run how many chunks
there are and how long each is, so no size is ever taken from the wire. `state_download.py` asks.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field

from distributed_training.averaging.frames import length_prefix, read_length, read_message, write_message
from distributed_training.averaging.streams import Stream, Transport
from distributed_training.model.chunk_files import ChunkReader
from distributed_training.model.chunks import Chunks
from distributed_training.protocol import Epoch, Hash, PeerBinding
from template.errors import AveragingError
from template.transport.synapse import Message, RunId

T = TypeVar("T")

log = logging.getLogger(__name__)

PROTOCOL = "dt-state/2"
MAX_FRAME = 8 * 1024  # bytes of a request or an answer
MAX_STRANGERS = 4  # streams at a time of peers that have not shown yet who they are

chunk_number, read_chunk_number = length_prefix, read_length  # of the same four bytes


class StateRequest(Message):
    """Asks for a state. `peer` shows one who was never heard of that it belongs to a registered hotkey."""

    run_id: RunId
    epoch: Epoch
    state_hash: Hash
    peer: PeerBinding


class StateAnswer(Message):
    """The digests of `chunks` chunks follow if and only if the code is "ready"."""

    code: Literal["ready", "busy", "unknown"]
    chunks: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0


@dataclass(frozen=True, kw_only=True)
class StateOffer:
    """A state on disk that peers may have: the chunks in `folder`, and their digests, which make its hash."""

    state_hash: str
    folder: Path
    chunks: Chunks
    digests: bytes


Provider = Callable[[int], StateOffer | None]


@dataclass(frozen=True, kw_only=True)
class StateServerConfig:
    """At most `readers` at a time, each at most `seconds` long, so that serving takes little from training; 0 serves
    nobody. A request for a state or a chunk must come within `request_seconds`, and a chunk be taken within
    `chunk_seconds`. A stranger must say who it is within `stranger_seconds`.
    """

    readers: int = 4
    seconds: float = 1800.0
    request_seconds: float = 60.0
    chunk_seconds: float = 60.0
    stranger_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.readers < 0:
            raise AveragingError("readers must not be negative")
        if min(self.seconds, self.request_seconds, self.chunk_seconds, self.stranger_seconds) <= 0:
            raise AveragingError("every number of seconds must be positive")


def _none(state_hash: str) -> None:
    return None


class StateServer:
    """Serves the states that `provider` has, to peers that `allow` knows or whose binding `admit` finds valid.

    `own` has those, by state hash, that this peer's own steps led to and that it has committed to: others may ask to
    see them. Use as an async context manager.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        run_id: str,
        provider: Provider,
        allow: Callable[[str], bool],
        admit: Callable[[PeerBinding], bool],
        config: StateServerConfig | None = None,
        own: Callable[[str], StateOffer | None] = _none,
    ) -> None:
        self._transport = transport
        self._run_id = run_id
        self._provider = provider
        self._own = own
        self._allow = allow
        self._admit = admit
        self._config = config or StateServerConfig()
        self._streams: Counter[bool] = Counter()  # of known peers, and of strangers
        self._readers: dict[str, Stream] = {}  # by peer id; each peer has one place

    async def __aenter__(self) -> Self:
        await self._transport.serve(PROTOCOL, self._serve)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.unserve(PROTOCOL)

    async def _serve(self, stream: Stream) -> None:
        try:
            known = self._allow(stream.peer_id)
            seconds = self._config.request_seconds if known else self._config.stranger_seconds
            with self._counted(known):
                async with asyncio.timeout(seconds):
                    request = await read_message(stream, StateRequest, MAX_FRAME)
                if not known:
                    self._require_neuron(stream.peer_id, request.peer)
            with self._counted(True):
                async with asyncio.timeout(self._config.seconds):
                    await self._answer(stream, request)
        except (AveragingError, TimeoutError, OSError) as error:
            log.info("a state transfer to %s ended: %r", stream.peer_id, error)

    @contextmanager
    def _counted(self, known: bool) -> Iterator[None]:
        if self._streams[known] >= (4 * self._config.readers + 4 if known else MAX_STRANGERS):
            raise AveragingError("too many streams at a time")
        self._streams[known] += 1
        try:
            yield
        finally:
            self._streams[known] -= 1

    def _require_neuron(self, peer_id: str, binding: PeerBinding) -> None:
        if binding.peer_id != peer_id or not self._admit(binding):
            raise AveragingError("it is no neuron of the subnet")

    async def _answer(self, stream: Stream, request: StateRequest) -> None:
        offer = self._find(request) if request.run_id == self._run_id else None
        if offer is None:
            await self._refuse(stream, "unknown")
        elif len(self._readers.keys() | {stream.peer_id}) > self._config.readers:
            await self._refuse(stream, "busy")
        else:
            await self._serve_offer(stream, offer)

    def _find(self, request: StateRequest) -> StateOffer | None:
        offer = self._provider(request.epoch)
        return offer if offer is not None and offer.state_hash == request.state_hash else self._own(request.state_hash)

    async def _serve_offer(self, stream: Stream, offer: StateOffer) -> None:
        try:
            opened = ChunkReader.open(offer.folder, offer.chunks)
        except FileNotFoundError:  # the run has just moved on
            await self._refuse(stream, "unknown")
            return
        with opened as reader, self._place(stream):
            await self._send(stream, offer, reader)

    async def _refuse(self, stream: Stream, code: Literal["busy", "unknown"]) -> None:
        async with asyncio.timeout(self._config.request_seconds):
            await write_message(stream, StateAnswer(code=code))
            await stream.read(1)  # the asking side closes first

    @contextmanager
    def _place(self, stream: Stream) -> Iterator[None]:
        """A place among the readers. Who comes back, after its stream was lost, takes its own place again."""
        before = self._readers.get(stream.peer_id)
        if before is not None:
            before.abort()
        self._readers[stream.peer_id] = stream
        try:
            yield
        finally:
            if self._readers.get(stream.peer_id) is stream:
                del self._readers[stream.peer_id]

    async def _send(self, stream: Stream, offer: StateOffer, reader: ChunkReader) -> None:
        """The digests, then whatever is asked for, until the other side ends the stream."""
        async with asyncio.timeout(self._config.chunk_seconds):
            await write_message(stream, StateAnswer(code="ready", chunks=offer.chunks.count))
            await stream.write(offer.digests)
        while True:
            async with asyncio.timeout(self._config.request_seconds):
                number = await read_chunk_number(stream)
            if number >= offer.chunks.count:
                raise AveragingError(f"there is no chunk {number}")
            data = await in_thread(functools.partial(reader.read, number))
            async with asyncio.timeout(self._config.chunk_seconds):
                await stream.write(data)


async def in_thread(work: Callable[[], T]) -> T:
    """Run in a thread and, if cancelled, still wait for it: files are closed or cleared away after that."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise
