"""A hub in a directory: one folder an epoch, named by its number. For a laptop, or a file system that all can see.

A release is put together in a draft, brought to the disk, and renamed to its epoch number: the rename is the tag.
Needs a POSIX file system on which a rename is atomic and flock works.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from distributed_training.hub import files
from distributed_training.hub.card import card
from distributed_training.hub.events import announced
from distributed_training.hub.hub import (
    CARD,
    MANIFEST,
    MANIFEST_BYTES,
    Accept,
    ModelTag,
    Publication,
    Release,
    anything,
    epoch_of,
    manifest_of,
    read_manifest,
    release_of,
    settle,
)
from template.clock import Clock
from template.errors import HubError, NotPublished
from template.telemetry import Telemetry

T = TypeVar("T")


class DirectoryHub:
    """`Hub` in the folder `root`, which the first publication creates; before that there are no releases."""

    def __init__(self, root: Path, *, telemetry: Telemetry, clock: Clock) -> None:
        self._root = root
        self._telemetry = telemetry
        self._clock = clock

    async def publish(self, folder: Path, tag: ModelTag) -> None:
        work = self._in_thread(lambda: self._publish(folder, tag))
        await announced(work, hub=f"dir://{self._root}", tag=tag, telemetry=self._telemetry, clock=self._clock)

    async def epochs(self) -> tuple[int, ...]:
        return tuple(await self._in_thread(self._epochs))

    async def releases(self, newest: int | None = None) -> tuple[Release, ...]:
        return await self._in_thread(lambda: tuple(map(self._read, self._newest(newest))))

    async def latest(self) -> Release | None:
        found = await self.releases(newest=1)
        return found[0] if found else None

    async def fetch(self, epoch: int, destination: Path, accept: Accept = anything) -> Release:
        return await self._in_thread(lambda: self._fetch(epoch, destination, accept))

    async def remove(self, epochs: Collection[int]) -> None:
        for epoch in sorted(epochs):
            await self._in_thread(functools.partial(self._remove, epoch))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run file work off the event loop. A disk is not tried twice: what it refuses it refuses again."""
        return await files.on_disk(asyncio.to_thread(work))

    def _epochs(self) -> list[int]:
        try:
            names = os.listdir(self._root)
        except FileNotFoundError:
            return []  # nothing was ever published
        return sorted(epoch for name in names if (epoch := epoch_of(name)) is not None)

    def _newest(self, count: int | None) -> list[int]:
        epochs = self._epochs()
        return epochs if count is None else epochs[max(0, len(epochs) - count) :]

    def _read(self, epoch: int) -> Release:
        path = self._root / str(epoch) / MANIFEST
        try:
            with path.open("rb") as file:
                return read_manifest(file.read(MANIFEST_BYTES + 1), epoch)
        except (FileNotFoundError, NotADirectoryError):
            raise HubError(f"{path.parent} is no release: move it away, only releases have numbers here") from None

    def _publish(self, folder: Path, tag: ModelTag) -> Publication:
        sources = files.contents(folder)
        if tag.epoch in self._epochs():
            return settle(self._read(tag.epoch), tag)
        with files.draft(self._root, "publish") as draft:
            release = release_of(tag, tuple(files.copy(source, draft / source.name) for source in sources))
            files.write(draft / CARD, card(release).encode())
            files.write(draft / MANIFEST, manifest_of(release))
            try:
                files.place(draft, self._root / str(tag.epoch))
            except HubError:
                if tag.epoch not in self._epochs():
                    raise
                return settle(self._read(tag.epoch), tag)  # another publisher was faster
        return Publication(release=release, new=True)

    def _remove(self, epoch: int) -> None:
        """A rename takes the release away at once; what a killed remover leaves is swept by the next draft."""
        if epoch not in self._epochs():
            return
        with files.draft(self._root, "remove") as draft:
            try:
                os.rename(self._root / str(epoch), draft / str(epoch))
            except FileNotFoundError:
                return  # another remover was faster

    def _fetch(self, epoch: int, destination: Path, accept: Accept) -> Release:
        files.require_new(destination)
        if epoch not in self._epochs():
            raise NotPublished(f"epoch {epoch} is not in {self._root}")
        release = self._read(epoch)
        source = self._root / str(epoch)
        accept(release)
        with files.draft(destination.parent, "fetch") as draft:
            files.require_space(release, draft)
            for file in release.files:
                if files.copy(source / file.name, draft / file.name) != file:
                    raise HubError(f"{source / file.name} is damaged: its size or sha256 is not that of {MANIFEST}")
            for name in (CARD, MANIFEST):
                files.write(draft / name, (source / name).read_bytes())
            files.place(draft, destination)
        return release
