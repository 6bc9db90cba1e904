"""A hub in memory, for tests of what uses a hub."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from distributed_training.hub import files
from distributed_training.hub.card import card
from distributed_training.hub.events import announced
from distributed_training.hub.hub import (
    CARD,
    MANIFEST,
    Accept,
    FileDigest,
    ModelTag,
    Publication,
    Release,
    anything,
    manifest_of,
    release_of,
    settle,
)
from template.clock import Clock
from template.errors import HubUnavailable, NotPublished
from template.telemetry import Telemetry


class MemoryHub:
    """`Hub` in this process. While `reachable` is false, every call raises HubUnavailable."""

    def __init__(self, *, telemetry: Telemetry, clock: Clock) -> None:
        self.reachable = True
        self._telemetry = telemetry
        self._clock = clock
        self._held: dict[int, tuple[Release, dict[str, bytes]]] = {}

    async def publish(self, folder: Path, tag: ModelTag) -> None:
        work = files.on_disk(self._publish(folder, tag))
        await announced(work, hub="memory", tag=tag, telemetry=self._telemetry, clock=self._clock)

    async def epochs(self) -> tuple[int, ...]:
        self._require_reachable()
        return tuple(sorted(self._held))

    async def releases(self, newest: int | None = None) -> tuple[Release, ...]:
        self._require_reachable()
        found = tuple(self._held[epoch][0] for epoch in sorted(self._held))
        return found if newest is None else found[max(0, len(found) - newest) :]

    async def latest(self) -> Release | None:
        found = await self.releases(newest=1)
        return found[0] if found else None

    async def fetch(self, epoch: int, destination: Path, accept: Accept = anything) -> Release:
        return await files.on_disk(self._fetch(epoch, destination, accept))

    async def remove(self, epochs: Collection[int]) -> None:
        self._require_reachable()
        for epoch in epochs:
            self._held.pop(epoch, None)

    async def _fetch(self, epoch: int, destination: Path, accept: Accept) -> Release:
        self._require_reachable()
        files.require_new(destination)
        if epoch not in self._held:
            raise NotPublished(f"epoch {epoch} is not in memory")
        release, contents = self._held[epoch]
        accept(release)
        with files.draft(destination.parent, "fetch") as draft:
            files.require_space(release, draft)
            for name, content in contents.items():
                files.write(draft / name, content)
            files.place(draft, destination)
        return release

    async def _publish(self, folder: Path, tag: ModelTag) -> Publication:
        self._require_reachable()
        contents = {path.name: path.read_bytes() for path in files.contents(folder)}
        if tag.epoch in self._held:
            return settle(self._held[tag.epoch][0], tag)
        release = release_of(tag, tuple(_digest(name, content) for name, content in contents.items()))
        contents |= {CARD: card(release).encode(), MANIFEST: manifest_of(release)}
        self._held[tag.epoch] = release, contents
        return Publication(release=release, new=True)

    def _require_reachable(self) -> None:
        if not self.reachable:
            raise HubUnavailable("the hub in memory is switched off")


def _digest(name: str, content: bytes) -> FileDigest:
    return FileDigest(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
