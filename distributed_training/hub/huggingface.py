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
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from distributed_training.hub import files
from distributed_training.hub.events import PublishRetried, ReadRetried, announced
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
from distributed_training.hub.huggingface_client import HuggingFaceClient, Refs, RepositoryMissing, Timeouts, Transient
from distributed_training.hub.retry import RetryPolicy
from template.clock import Clock
from template.config import Secret
from template.errors import HubError, HubUnavailable, NotPublished
from template.telemetry import Event, Telemetry

T = TypeVar("T")
Retried = Callable[[str, int, float, str], Event]  # step, tried, delay, reason


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
        self._retries = retries
        self._timeouts = timeouts
        self._telemetry = telemetry
        self._clock = clock
        self._jitter = jitter
        self._known: dict[str, Release] = {}  # by commit; a commit never changes

    async def publish(self, folder: Path, tag: ModelTag) -> None:
        work = files.on_disk(self._publish(folder, tag))
        await announced(work, hub=self._url, tag=tag, telemetry=self._telemetry, clock=self._clock)

    async def releases(self, newest: int | None = None) -> tuple[Release, ...]:
        refs = await self._read("refs", self._client.refs)
        epochs = sorted(refs.epochs)
        wanted = epochs if newest is None else epochs[max(0, len(epochs) - newest) :]
        return tuple([await self._release(refs, epoch) for epoch in wanted])

    async def latest(self) -> Release | None:
        found = await self.releases(newest=1)
        return found[0] if found else None

    async def fetch(self, epoch: int, destination: Path, accept: Accept = anything) -> Release:
        return await files.on_disk(self._fetch(epoch, destination, accept))

    async def _fetch(self, epoch: int, destination: Path, accept: Accept) -> Release:
        files.require_new(destination)
        refs = await self._read("refs", self._client.refs)
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
            self._known[commit] = await self._read(
                f"release.json of {epoch}", lambda: self._client.manifest(commit, epoch)
            )
        return self._known[commit]

    async def _download(self, commit: str, release: Release, draft: Path) -> None:
        for file in release.files:
            # no limit on the call: the client bounds a download, and two at once would write the same file
            download = functools.partial(self._client.download, commit, file, draft)
            await self._try(file.name, download, self._read_retried, None)
        for name in (CARD, MANIFEST):
            content = await self._read(name, functools.partial(self._client.small_file, commit, name))
            files.write(draft / name, content)

    async def _publish(self, folder: Path, tag: ModelTag) -> Publication:
        sources = files.contents(folder)
        refs = await self._write(tag, "repository", self._open_repository)
        if tag.epoch in refs.epochs:
            return settle(await self._release(refs, tag.epoch), tag)
        digests = await asyncio.to_thread(lambda: tuple(map(files.digest, sources)))
        release = release_of(tag, digests)
        commit = await self._write(tag, "commit", lambda: self._commit_once(folder, release))
        if await self._write(tag, "tag", lambda: self._client.tag(tag.epoch, commit)):
            return Publication(release=release, new=True)
        refs = await self._write(tag, "refs", self._client.refs)
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

    async def _read(self, step: str, call: Callable[[], T]) -> T:
        return await self._try(step, call, self._read_retried, self._timeouts.call)

    async def _write(self, tag: ModelTag, step: str, call: Callable[[], T]) -> T:
        return await self._try(step, call, functools.partial(self._write_retried, tag.epoch), self._timeouts.call)

    def _read_retried(self, step: str, tried: int, delay: float, reason: str) -> Event:
        return ReadRetried(hub=self._url, step=step, tried=tried, delay=delay, reason=reason)

    def _write_retried(self, epoch: int, step: str, tried: int, delay: float, reason: str) -> Event:
        return PublishRetried(hub=self._url, epoch=epoch, step=step, tried=tried, delay=delay, reason=reason)

    async def _try(self, step: str, call: Callable[[], T], retried: Retried, limit: float | None) -> T:
        """Call in a thread, at most `limit` seconds a time, until it returns, is refused for good or tries run out.

        A call that outlives its limit goes on in its thread until the session's timeouts end it, and nothing waits
        for it. All it can still do is finish its own step: leave a commit without a tag, or set the tag of a
        complete commit.
        """
        for tried in range(1, self._retries.tries + 1):
            asked: float | None = None
            try:
                return await asyncio.wait_for(asyncio.to_thread(call), limit)
            except TimeoutError:
                reason = f"no end within {limit} s"
            except Transient as failure:
                reason, asked = str(failure), failure.retry_after
            delay = self._retries.delay(tried, self._jitter(), asked)
            if delay is None:
                raise HubUnavailable(f"{self._url}: {step} failed {tried} times, last: {reason}")
            self._telemetry.emit(retried(step, tried, delay, reason))
            await self._clock.sleep(delay)
        raise AssertionError("the policy gives up at its last try")
