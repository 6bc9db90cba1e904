"""A hub on the Hugging Face Hub: one model repository a run, a commit and a tag an epoch.

The library retries part of what it does and gives up at once on the rest (a commit, the list of tags, a download that
is refused). So each step here is tried `RetryPolicy.tries` times, with back-off, jitter and Retry-After; each step
can be repeated without harm, because it looks first whether it was done: by an earlier try whose answer was lost, or
by another publisher. The tag is the last step, and what readers go by.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Collection
from pathlib import Path

from distributed_training.hub import files
from distributed_training.hub.attempts import Attempts
from distributed_training.hub.download import Timeouts
from distributed_training.hub.events import announced
from distributed_training.hub.hub import (
    CARD,
    MANIFEST,
    Accept,
    ModelTag,
    Publication,
    Release,
    anything,
    release_of,
    same_state,
    settle,
)
from distributed_training.hub.huggingface_client import HuggingFaceClient, Refs, RepositoryMissing
from distributed_training.services.retry import RetryPolicy
from template.clock import Clock
from template.config import Secret
from template.errors import HubError, NotPublished
from template.telemetry import Telemetry


class HuggingFaceHub:
    """`Hub` in the repository `org/name`; the first publication creates it, reading before that is a HubError.

    (A repository that does not exist cannot be told from a private one that this token may not see.)
    """

    def __init__(
        self,
        repository: str,
        *,
        endpoint: str,
        private: bool,
        token: Secret | None,
        retries: RetryPolicy,
        timeouts: Timeouts,
        telemetry: Telemetry,
        clock: Clock,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._url = f"hf://{repository}"
        self._client = HuggingFaceClient(
            repository, endpoint=endpoint, private=private, token=token, timeouts=timeouts, clock=clock
        )
        self._attempts = Attempts(
            self._url, policy=retries, call_seconds=timeouts.call, telemetry=telemetry, clock=clock, jitter=jitter
        )
        self._telemetry = telemetry
        self._clock = clock
        self._known: dict[str, Release] = {}  # by commit; a commit never changes

    async def publish(self, folder: Path, tag: ModelTag) -> None:
        work = files.on_disk(self._publish(folder, tag))
        await announced(work, hub=self._url, tag=tag, telemetry=self._telemetry, clock=self._clock)

    async def epochs(self) -> tuple[int, ...]:
        refs = await self._attempts.read("refs", self._client.refs)
        return tuple(sorted(refs.epochs))

    async def releases(self, newest: int | None = None) -> tuple[Release, ...]:
        refs = await self._attempts.read("refs", self._client.refs)
        epochs = sorted(refs.epochs)
        wanted = epochs if newest is None else epochs[max(0, len(epochs) - newest) :]
        return tuple([await self._release(refs, epoch) for epoch in wanted])

    async def latest(self) -> Release | None:
        found = await self.releases(newest=1)
        return found[0] if found else None

    async def fetch(self, epoch: int, destination: Path, accept: Accept = anything) -> Release:
        return await files.on_disk(self._fetch(epoch, destination, accept))

    async def remove(self, epochs: Collection[int]) -> None:
        """The tag goes; commits and large files stay in the repository's history (see README, "Old epochs")."""
        for epoch in sorted(epochs):
            await self._attempts.write(epoch, "untag", functools.partial(self._client.untag, epoch))

    async def _fetch(self, epoch: int, destination: Path, accept: Accept) -> Release:
        files.require_new(destination)
        refs = await self._attempts.read("refs", self._client.refs)
        if epoch not in refs.epochs:
            raise NotPublished(f"epoch {epoch} is not on {self._url}")
        release = await self._release(refs, epoch)
        accept(release)
        with files.draft(destination.parent, "fetch") as draft:
            files.require_space(release, draft)
            await self._download(refs.epochs[epoch], release, draft)
            files.place(draft, destination)
        return release

    async def _release(self, refs: Refs, epoch: int) -> Release:
        commit = refs.epochs[epoch]
        if commit not in self._known:
            self._known[commit] = await self._attempts.read(
                f"release.json of {epoch}", lambda: self._client.manifest(commit, epoch)
            )
        return self._known[commit]

    async def _download(self, commit: str, release: Release, draft: Path) -> None:
        for file in release.files:
            await self._attempts.download(file.name, functools.partial(self._client.download, commit, file, draft))
        for name in (CARD, MANIFEST):
            content = await self._attempts.read(name, functools.partial(self._client.small_file, commit, name))
            files.write(draft / name, content)

    async def _publish(self, folder: Path, tag: ModelTag) -> Publication:
        sources = files.contents(folder)
        refs = await self._attempts.write(tag.epoch, "repository", self._open_repository)
        if tag.epoch in refs.epochs:
            return settle(await self._release(refs, tag.epoch), tag)
        digests = await asyncio.to_thread(lambda: tuple(map(files.digest, sources)))
        release = release_of(tag, digests)
        commit = await self._attempts.write(tag.epoch, "commit", lambda: self._commit_once(folder, release))
        if await self._attempts.write(tag.epoch, "tag", lambda: self._client.tag(tag.epoch, commit)):
            return Publication(release=release, new=True)
        refs = await self._attempts.write(tag.epoch, "refs", self._client.refs)
        held = await self._release(refs, tag.epoch)  # a lost answer to our own request, or another publisher
        return Publication(release=held, new=True) if held == release else settle(held, tag)

    def _open_repository(self) -> Refs:
        try:
            return self._client.refs()
        except RepositoryMissing:
            self._client.create_repository()
        return self._client.refs()

    def _commit_once(self, folder: Path, release: Release) -> str:
        """The commit of this state: the one at the head if a tag is all that it lacks, else a new one."""
        refs = self._client.refs()
        if release.epoch in refs.epochs:
            return refs.epochs[release.epoch]
        if refs.head is not None and self._is_at(refs.head, release):
            return refs.head
        return self._client.commit(folder, release, refs.head)

    def _is_at(self, commit: str, release: Release) -> bool:
        try:
            return same_state(self._client.manifest(commit, release.epoch), release)
        except HubError:
            return False  # the first commit of all, or another epoch's
