"""A hub in an S3 bucket (Amazon, R2, any other with conditional writes): one prefix a run.

    releases/<epoch>.json                 release.json: the tag, written last and only if it is not there yet
    releases/index.json                   the epochs, for readers who may not list
    models/<epoch>/<files>/<name>         the files, README.md among them

The tag names the folder of its files. `<files>` is a hash over them, so publishers of different models never write the
same object, and publishers of the same bytes share them: what one had uploaded before it was killed, the next one
finds. Nobody can see a release before its tag is there. The card beside the files is for people who look at the bucket;
a fetched folder's card is made from its release.json.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import random
from collections.abc import Callable, Collection
from pathlib import Path

from distributed_training.hub import files
from distributed_training.hub.attempts import Attempts
from distributed_training.hub.card import card
from distributed_training.hub.download import Timeouts
from distributed_training.hub.events import IndexNotWritten, announced
from distributed_training.hub.hub import (
    CARD,
    MANIFEST,
    Accept,
    FileDigest,
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
from distributed_training.hub.s3_client import Absent, Denied, S3Address, S3Client
from distributed_training.services.retry import RetryPolicy
from template.clock import Clock
from template.errors import HubError, HubUnavailable, NotPublished
from template.telemetry import Telemetry

RELEASES, MODELS, INDEX = "releases/", "models/", "releases/index.json"
_JSON, _TEXT, _BYTES = "application/json", "text/markdown; charset=utf-8", "application/octet-stream"
_FORMAT = 1


class S3Hub:
    """`Hub` below `address`, whose bucket must be there. Files over `part_bytes` are uploaded in parts of that size."""

    def __init__(
        self,
        address: S3Address,
        *,
        part_bytes: int,
        retries: RetryPolicy,
        timeouts: Timeouts,
        telemetry: Telemetry,
        clock: Clock,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._url = address.url
        self._client = S3Client(address, timeouts=timeouts, clock=clock)
        self._part_bytes = part_bytes
        self._attempts = Attempts(
            self._url, policy=retries, call_seconds=timeouts.call, telemetry=telemetry, clock=clock, jitter=jitter
        )
        self._telemetry = telemetry
        self._clock = clock
        self._known: dict[int, Release] = {}  # a tag never changes

    async def publish(self, folder: Path, tag: ModelTag) -> None:
        work = files.on_disk(self._publish(folder, tag))
        await announced(work, hub=self._url, tag=tag, telemetry=self._telemetry, clock=self._clock)

    async def epochs(self) -> tuple[int, ...]:
        try:
            names = await self._attempts.read("list", lambda: self._client.names(RELEASES))
        except Denied:
            return await self._index()
        return tuple(sorted(epoch for name in names if (epoch := epoch_of(name.removesuffix(".json"))) is not None))

    async def releases(self, newest: int | None = None) -> tuple[Release, ...]:
        epochs = await self.epochs()
        wanted = epochs if newest is None else epochs[max(0, len(epochs) - newest) :]
        found = [await self._held(epoch) for epoch in wanted]
        return tuple(release for release in found if release is not None)  # one may have been thinned meanwhile

    async def latest(self) -> Release | None:
        found = await self.releases(newest=1)
        return found[0] if found else None

    async def fetch(self, epoch: int, destination: Path, accept: Accept = anything) -> Release:
        return await files.on_disk(self._fetch(epoch, destination, accept))

    async def remove(self, epochs: Collection[int]) -> None:
        for epoch in sorted(epochs):
            self._known.pop(epoch, None)
            await self._attempts.write(epoch, "untag", functools.partial(self._client.remove, _tag(epoch)))
            await self._attempts.write(epoch, "remove", functools.partial(self._client.remove_folder, _models(epoch)))
        if epochs:
            await self._sweep(max(epochs))
            await self._write_index(max(epochs))

    async def _sweep(self, before: int) -> None:
        """Remove what interrupted publications and removals left of earlier epochs: files without a tag."""
        tagged = set(await self.epochs())
        names = await self._attempts.read("list", lambda: self._client.names(MODELS))
        folders = (epoch_of(name.removesuffix("/")) for name in names)
        for epoch in sorted(epoch for epoch in folders if epoch is not None and epoch < before and epoch not in tagged):
            await self._attempts.write(epoch, "sweep", functools.partial(self._client.remove_folder, _models(epoch)))

    async def _index(self) -> tuple[int, ...]:
        """The epochs by the index, for who may not list."""
        try:
            content = await self._attempts.read("index", lambda: self._client.small(INDEX))
        except Absent:
            return ()
        except Denied as error:
            raise HubError(f"{error}; nor is there a list of its releases to read ({INDEX})") from None
        return _read_index(content)

    async def _write_index(self, epoch: int) -> None:
        """The tags are what counts: an index that could not be written is told, and made good by the next one."""
        try:
            content = json.dumps({"format": _FORMAT, "epochs": await self.epochs()}).encode()
            await self._attempts.write(epoch, "index", lambda: self._client.put(INDEX, content, _JSON))
        except HubError as error:
            self._telemetry.emit(IndexNotWritten(hub=self._url, epoch=epoch, reason=str(error)))

    async def _held(self, epoch: int) -> Release | None:
        if epoch not in self._known:
            try:
                content = await self._attempts.read(f"tag {epoch}", lambda: self._client.small(_tag(epoch)))
            except Absent:
                return None
            self._known[epoch] = read_manifest(content, epoch, _from_tag)
        return self._known[epoch]

    # -- publishing

    async def _publish(self, folder: Path, tag: ModelTag) -> Publication:
        sources = files.contents(folder)
        held = await self._held(tag.epoch)
        if held is not None:
            return settle(held, tag)
        release = release_of(tag, await asyncio.to_thread(lambda: tuple(map(files.digest, sources))))
        for source, file in zip(sources, release.files, strict=True):
            await self._upload(release, source, file)
        text = card(release).encode()
        name = f"{_folder(release)}{CARD}"
        await self._attempts.write(tag.epoch, CARD, lambda: self._client.put(name, text, _TEXT))
        publication = await self._tag(release)
        await self._write_index(tag.epoch)
        return publication

    async def _tag(self, release: Release) -> Publication:
        content = manifest_of(release, _from_tag)
        put = functools.partial(self._client.put_new, _tag(release.epoch), content, _JSON)
        if await self._attempts.write(release.epoch, "tag", put):
            return Publication(release=release, new=True)
        held = await self._held(release.epoch)  # a lost answer to our own request, or another publisher
        if held is None:
            raise HubUnavailable(f"{self._url}: tag {release.epoch} was taken away while it was published")
        return Publication(release=held, new=True) if held == release else settle(held, release)

    async def _upload(self, release: Release, source: Path, file: FileDigest) -> None:
        name = f"{_folder(release)}{file.name}"
        if await self._is_there(release, name, file):
            return
        if file.size <= self._part_bytes:
            content = await asyncio.to_thread(source.read_bytes)
            put = functools.partial(self._client.put, name, content, _BYTES, file.sha256)
            await self._attempts.write(release.epoch, file.name, put)
        else:
            await self._upload_in_parts(release, name, source, file)

    async def _is_there(self, release: Release, name: str, file: FileDigest) -> bool:
        stored = await self._attempts.write(release.epoch, f"look for {file.name}", lambda: self._client.stored(name))
        return stored == (file.size, file.sha256)

    async def _upload_in_parts(self, release: Release, name: str, source: Path, file: FileDigest) -> None:
        """What is left of it when this fails or dies is no object; a removal of the epoch, or the bucket's rule for
        unfinished uploads, ends it.
        """
        write = functools.partial(self._attempts.write, release.epoch)
        upload = await write(f"{file.name} begin", lambda: self._client.begin(name, file.sha256))
        tags: list[str] = []
        try:
            with source.open("rb") as reading:
                while content := await asyncio.to_thread(reading.read, self._part_bytes):
                    part = functools.partial(self._client.part, name, upload, len(tags) + 1, content)
                    tags.append(await write(f"{file.name} part {len(tags) + 1}", part))
            await write(f"{file.name} end", lambda: self._client.complete(name, upload, tags))
        except HubError:
            if await self._attempts.once(lambda: self._client.stored(name)) == (file.size, file.sha256):
                return  # the answer to the end was lost, or another publisher brought the same file
            await self._attempts.once(lambda: self._client.abort(name, upload))
            raise

    # -- fetching

    async def _fetch(self, epoch: int, destination: Path, accept: Accept) -> Release:
        files.require_new(destination)
        release = await self._published(epoch)
        accept(release)
        with files.draft(destination.parent, "fetch") as draft:
            files.require_space(release, draft)
            for file in release.files:
                await self._download(release, file, draft)
            files.write(draft / CARD, card(release).encode())
            files.write(draft / MANIFEST, manifest_of(release))
            files.place(draft, destination)
        return release

    async def _published(self, epoch: int) -> Release:
        try:
            release = await self._held(epoch)
        except Denied as error:
            if not self._client.anonymous:
                raise
            raise NotPublished(f"epoch {epoch} is not on {self._url}, or not for everybody to read: {error}") from None
        if release is None:
            raise NotPublished(f"epoch {epoch} is not on {self._url}")
        return release

    async def _download(self, release: Release, file: FileDigest, draft: Path) -> None:
        name = f"{_folder(release)}{file.name}"
        try:
            await self._attempts.download(file.name, lambda: self._client.download(name, file, draft))
        except Absent:
            self._known.pop(release.epoch, None)
            await self._published(release.epoch)  # says so if it was thinned meanwhile
            raise HubError(f"{self._url}: {name} is missing: epoch {release.epoch} is damaged") from None


def _tag(epoch: int) -> str:
    return f"{RELEASES}{epoch}.json"


def _models(epoch: int) -> str:
    return f"{MODELS}{epoch}/"


def _folder(release: Release) -> str:
    """Where the files of a release lie: equal for equal files of the same epoch only."""
    lines = "".join(f"{file.sha256} {file.size} {file.name}\n" for file in release.files)
    return f"{_models(release.epoch)}{hashlib.sha256(lines.encode()).hexdigest()[:16]}/"


def _from_tag(release: Release) -> str:
    """The same, from where the tag lies."""
    return f"../{_folder(release)}"


def _read_index(content: bytes) -> tuple[int, ...]:
    try:
        document = json.loads(content)
        epochs = document["epochs"] if document["format"] == _FORMAT else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HubError(f"{INDEX} cannot be read: {type(error).__name__}") from error
    if not isinstance(epochs, list) or not all(type(epoch) is int and epoch >= 0 for epoch in epochs):
        raise HubError(f"{INDEX} holds no list of epochs")
    return tuple(sorted(set(epochs)))
