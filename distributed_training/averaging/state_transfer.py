"""Model and optimiser state from one peer to another, over the same streams as the rounds.

One stream: the request, the manifest, then the files one after the other; the asking side closes. Every size is checked
against the caller's bound before a byte of it is taken; files go to disk block by block and appear in the destination
only when all of them have the promised digests. The digests bind the bytes to the manifest; that the loaded state has
the expected state hash is for the caller to check, who alone can load it.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints

from distributed_training.averaging.frames import read_message, write_message
from distributed_training.averaging.streams import Stream, Transport
from distributed_training.protocol import Epoch, Hash
from template.errors import AveragingError, CorruptState, StateMismatch
from template.transport.synapse import Message, RunId

log = logging.getLogger(__name__)

PROTOCOL = "dt-state/1"
BLOCK = 1 << 20  # bytes
MAX_FILES = 64
MAX_FRAME = 32 * 1024  # bytes of a request or a manifest

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class StateRequest(Message):
    """Asks for the state of an epoch."""

    run_id: RunId
    epoch: Epoch


class FileEntry(Message):
    """One file: a bare name, its size in bytes and the sha256 of its content."""

    name: FileName
    size: Annotated[int, Field(ge=0)]
    sha256: Hash


class Manifest(Message):
    """The answer. The files follow in this order if and only if the code is "ready"."""

    code: Literal["ready", "busy", "unknown"]
    state_hash: Hash | None = None
    files: Annotated[tuple[FileEntry, ...], Field(max_length=MAX_FILES)] = ()


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """A file to serve: its manifest entry, and where its bytes are. They must not change while it is offered."""

    entry: FileEntry
    source: Path | bytes


@dataclass(frozen=True, kw_only=True)
class StateOffer:
    """The state of one epoch."""

    state_hash: str
    files: tuple[StateFile, ...]


Provider = Callable[[int], StateOffer | None]


def describe(name: str, source: Path | bytes) -> StateFile:
    """A file with its size and digest; reads all of it, so call it once a state and not in the event loop."""
    digest, size = hashlib.sha256(), 0
    if isinstance(source, bytes):
        digest.update(source)
        size = len(source)
    else:
        with source.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                size += len(block)
    return StateFile(entry=FileEntry(name=name, size=size, sha256=digest.hexdigest()), source=source)


@dataclass(frozen=True, kw_only=True)
class StateServerConfig:
    """At most `transfers` at a time, each at most `seconds` long; a request must come within `request_seconds`."""

    transfers: int = 2
    seconds: float = 1800.0
    request_seconds: float = 5.0

    def __post_init__(self) -> None:
        if min(self.transfers, self.seconds, self.request_seconds) <= 0:
            raise AveragingError("transfers, seconds and request_seconds must be positive")


class StateServer:
    """Serves the states that `provider` has, to peers that `allow` knows. Use as an async context manager."""

    def __init__(
        self,
        transport: Transport,
        *,
        run_id: str,
        provider: Provider,
        allow: Callable[[str], bool],
        config: StateServerConfig | None = None,
    ) -> None:
        self._transport = transport
        self._run_id = run_id
        self._provider = provider
        self._allow = allow
        self._config = config or StateServerConfig()
        self._running = 0

    async def __aenter__(self) -> Self:
        await self._transport.serve(PROTOCOL, self._serve)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.unserve(PROTOCOL)

    async def _serve(self, stream: Stream) -> None:
        if not self._allow(stream.peer_id) or self._running >= 4 * self._config.transfers:
            return
        self._running += 1
        try:
            async with asyncio.timeout(self._config.request_seconds):
                request = await read_message(stream, StateRequest, MAX_FRAME)
            async with asyncio.timeout(self._config.seconds):
                await self._answer(stream, request)
                await stream.read(1)  # the asking side closes first
        except (AveragingError, TimeoutError, OSError) as error:
            log.info("a state transfer to %s ended: %r", stream.peer_id, error)
        finally:
            self._running -= 1

    async def _answer(self, stream: Stream, request: StateRequest) -> None:
        if self._running > self._config.transfers:
            await write_message(stream, Manifest(code="busy"))
            return
        offer = self._provider(request.epoch) if request.run_id == self._run_id else None
        if offer is None:
            await write_message(stream, Manifest(code="unknown"))
            return
        entries = tuple(file.entry for file in offer.files)
        await write_message(stream, Manifest(code="ready", state_hash=offer.state_hash, files=entries))
        for file in offer.files:
            await _send_file(stream, file)


async def _send_file(stream: Stream, file: StateFile) -> None:
    if isinstance(file.source, bytes):
        for start in range(0, len(file.source), BLOCK):
            await stream.write(memoryview(file.source)[start : start + BLOCK])
        return
    for start in range(0, file.entry.size, BLOCK):
        await stream.write(await asyncio.to_thread(_read_block, file.source, start))


def _read_block(path: Path, start: int) -> bytes:
    with path.open("rb") as file:  # opened for each block, so that no cancellation can leave it open
        file.seek(start)
        return file.read(BLOCK)


async def fetch_state(
    transport: Transport,
    peer_id: str,
    addresses: tuple[str, ...],
    *,
    run_id: str,
    epoch: int,
    expected_hash: str,
    destination: Path,
    max_bytes: int,
    seconds: float,
    allow: Callable[[str], bool],
) -> tuple[Path, ...]:
    """Fetch a state into the folder `destination`; the paths of its files, which exist all or not at all.

    Raises:
        AveragingError: the peer is not allowed, cannot be reached, refuses, or was not done within `seconds`.
        StateMismatch: the peer's state is another one.
        CorruptState: the manifest is above `max_bytes` or impossible, or the bytes are not those of the manifest.
    """
    if not allow(peer_id):
        raise AveragingError(f"{peer_id} is no neuron of the subnet; its state is not taken")
    partial = await asyncio.to_thread(_make_partial, destination)
    stream: Stream | None = None
    try:
        async with asyncio.timeout(seconds):
            stream = await transport.open(peer_id, addresses, PROTOCOL)
            await write_message(stream, StateRequest(run_id=run_id, epoch=epoch))
            manifest = await read_message(stream, Manifest, MAX_FRAME)
            _require_manifest(manifest, expected_hash, max_bytes)
            for entry in manifest.files:
                await _receive_file(stream, entry, partial / entry.name)
            await stream.close()
        return _publish(partial, destination, manifest.files)
    except TimeoutError:
        raise AveragingError(f"{peer_id} did not deliver the state of epoch {epoch} in {seconds:g} s") from None
    except OSError as error:
        raise AveragingError(f"the state cannot be stored in {destination}: {error}") from error
    finally:
        if stream is not None:
            stream.abort()
        shutil.rmtree(partial, ignore_errors=True)


def _make_partial(destination: Path) -> Path:
    destination.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".partial-", dir=destination))


def _require_manifest(manifest: Manifest, expected_hash: str, max_bytes: int) -> None:
    if manifest.code != "ready":
        raise AveragingError(f"the peer does not serve this state: {manifest.code}")
    if manifest.state_hash != expected_hash:
        raise StateMismatch(f"the peer has state {manifest.state_hash}, not {expected_hash}")
    total = sum(entry.size for entry in manifest.files)
    if total > max_bytes:
        raise CorruptState(f"the peer announces {total} bytes of state; at most {max_bytes} are taken")
    if len({entry.name for entry in manifest.files}) != len(manifest.files):
        raise CorruptState("two files of the state have the same name")


async def _receive_file(stream: Stream, entry: FileEntry, path: Path) -> None:
    digest = hashlib.sha256()
    left = entry.size
    await _to_the_end(path.touch)
    while left:
        block = await stream.readexactly(min(left, BLOCK))
        await _to_the_end(functools.partial(_append, path, digest, block))
        left -= len(block)
    if digest.hexdigest() != entry.sha256:
        raise CorruptState(f"{entry.name}: the bytes are not those of the manifest")


async def _to_the_end(work: Callable[[], None]) -> None:
    """Run in a thread and, if cancelled, still wait for it: nobody may write into the folder once it was cleared."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _append(path: Path, digest: hashlib._Hash, block: bytes) -> None:
    digest.update(block)
    with path.open("ab") as file:
        file.write(block)


def _publish(partial: Path, destination: Path, entries: Sequence[FileEntry]) -> tuple[Path, ...]:
    for entry in entries:
        os.replace(partial / entry.name, destination / entry.name)
    return tuple(destination / entry.name for entry in entries)
