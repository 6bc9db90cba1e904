"""Chunks of a state out of the files of `files.py`, and into them: what is served to peers, and what comes from them.

Nothing is copied in memory but the chunk at hand. A reader keeps its files open: the bytes stay readable even if the
folder is thinned meanwhile. Not in the event loop: these calls wait for the disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from distributed_training.model.chunks import Chunks, Place, digest_of
from distributed_training.model.files import (
    LENGTH_BYTES,
    MODEL,
    OPTIMIZER,
    Manifest,
    complete,
    header,
    header_length,
)
from distributed_training.model.layout import Layout
from distributed_training.model.state import hashes
from template.errors import CorruptState

_READABLE = 0o644


class _ChunkFiles:
    """Both tensor files, open, and where their data begins. The parameters are vector 0."""

    def __init__(self, chunks: Chunks, model: int, optimizer: int, starts: tuple[int, int], stack: ExitStack) -> None:
        self._chunks = chunks
        self._files = (model, optimizer)
        self._starts = starts
        self._stack = stack

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _locate(self, place: Place) -> tuple[int, int]:
        """The file that a chunk is in, and from which byte."""
        if place.vector == 0:
            return self._files[0], self._starts[0] + place.offset
        return self._files[1], self._starts[1] + (place.vector - 1) * self._chunks.vector_bytes + place.offset


class ChunkReader(_ChunkFiles):
    """The chunks of a complete, verified state. Use as a context manager."""

    @classmethod
    def open(cls, folder: Path, chunks: Chunks) -> Self:
        """Raises OSError if the files are not there (any more)."""
        with ExitStack() as stack:
            files = [_opened(stack, folder / name, os.O_RDONLY) for name in (MODEL, OPTIMIZER)]
            starts = [LENGTH_BYTES + header_length(os.pread(file, LENGTH_BYTES, 0)) for file in files]
            return cls(chunks, files[0], files[1], (starts[0], starts[1]), stack.pop_all())

    def read(self, number: int) -> bytes:
        """The bytes of a chunk.

        Raises:
            OSError: the disk does not give them.
        """
        place = self._chunks.place(number)
        file, start = self._locate(place)
        data = os.pread(file, place.size, start)
        if len(data) != place.size:
            raise OSError(f"chunk {number} is cut off")
        return data


class ChunkWriter(_ChunkFiles):
    """A state that is being put together from chunks, each checked before it is written. Use as a context manager."""

    @classmethod
    def create(cls, folder: Path, layout: Layout, optimizer: tuple[str, ...]) -> Self:
        """Make `folder` with both files in their full size, so that a disk too small for them is found at once.

        Raises:
            OSError: it is, or something is in the way.
        """
        chunks = Chunks.of(layout, optimizer)
        headers = (
            header({tensor.name: tensor.shape for tensor in layout.tensors}, {"format": "pt"}),
            header(dict.fromkeys(optimizer, (layout.size,))),
        )
        sizes = chunks.vector_bytes, chunks.vector_bytes * (chunks.vectors - 1)
        folder.mkdir(parents=True)
        with ExitStack() as stack:
            files = []
            for name, text, size in zip((MODEL, OPTIMIZER), headers, sizes, strict=True):
                file = _opened(stack, folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                os.posix_fallocate(file, 0, len(text) + size)
                os.pwrite(file, text, 0)
                files.append(file)
            return cls(chunks, files[0], files[1], (len(headers[0]), len(headers[1])), stack.pop_all())

    def write(self, number: int, data: bytes, digests: bytes) -> None:
        """Put a chunk into its place.

        Raises:
            CorruptState: its digest is not that in `digests`; nothing was written.
            OSError: the disk does not take it.
        """
        if hashlib.sha256(data).digest() != digest_of(digests, number):
            raise CorruptState(f"chunk {number} is not what the state's digests say")
        file, start = self._locate(self._chunks.place(number))
        if os.pwrite(file, data, start) != len(data):
            raise OSError(f"chunk {number} was cut off by the disk")


def complete_from_chunks(
    folder: Path,
    layout: Layout,
    run_id: str,
    epoch: int,
    optimizer: tuple[str, ...],
    digests: bytes,
    config: Mapping[str, Any],
) -> Manifest:
    """Make a state of a folder into which all chunks were written."""
    model, state = hashes(layout, epoch, optimizer, digests)
    manifest = Manifest(
        run_id=run_id,
        epoch=epoch,
        parameters=layout.size,
        optimizer=tuple(sorted(optimizer)),
        model_hash=model,
        state_hash=state,
    )
    complete(folder, manifest, config)
    return manifest


def _opened(stack: ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, _READABLE)
    stack.callback(os.close, descriptor)
    return descriptor
