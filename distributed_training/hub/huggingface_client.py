"""The blocking calls to a Hugging Face Hub that a release needs, and the one place where its errors are translated.

Every call is one try. It returns, or raises `Transient` (worth another try), or a HubError (another try gives the
same). The client library's own exceptions hold the request, and with it the token: none of them is chained to ours,
and every message is scrubbed.

Uploads go through the library (LFS or Xet, as it chooses). Downloads are plain HTTP over the library's session: so
they are bounded in size and time, resumed where they broke off, and hashed as they arrive.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from distributed_training.hub.card import card
from distributed_training.hub.download import Body, Receiver, Timeouts
from distributed_training.hub.hub import CARD, MANIFEST, FileDigest, Release, epoch_of, manifest_of, read_manifest
from distributed_training.services.retry import Transient, is_transient, retry_after
from template.clock import Clock
from template.config import Secret
from template.errors import HubError

if TYPE_CHECKING:
    import httpx2

P = ParamSpec("P")
T = TypeVar("T")

_OVERTAKEN = frozenset({409, 412})  # somebody else's commit came between
_DAMAGED = "BadDigest"  # the store of large files received other bytes than were sent
_REASON_CHARACTERS = 300


class RepositoryMissing(HubError):
    """There is no such repository, or this token may not know that there is."""


@dataclass(frozen=True, kw_only=True)
class Refs:
    """Where the repository stands: commit of the main branch, and the commits of the tags that are epoch numbers."""

    head: str | None
    epochs: dict[int, str]


class HuggingFaceClient:
    """One repository on one Hub. Nothing is read from the environment's or the machine's tokens.

    The library keeps one HTTP session a process: the timeouts set here hold for all of it.
    """

    def __init__(
        self, repository: str, *, endpoint: str, private: bool, token: Secret | None, timeouts: Timeouts, clock: Clock
    ) -> None:
        import httpx2  # comes with huggingface_hub; both only where this hub is used
        import huggingface_hub

        self._library = huggingface_hub
        self._http = httpx2
        self._repository = repository
        self._private = private
        self._token = token
        self._receiver = Receiver(timeouts.download, clock)
        self._clock = clock
        # token=False keeps the library from looking for a token of its own
        self._api = huggingface_hub.HfApi(endpoint=endpoint, token=token.reveal() if token else False)
        _bound_session(timeouts)

    def refs(self) -> Refs:
        """Branch and tags. Raises RepositoryMissing."""
        return self._call(self._refs)

    def create_repository(self) -> None:
        """Create the repository; that it exists is fine."""
        self._call(self._api.create_repo, self._repository, private=self._private, exist_ok=True)

    def manifest(self, commit: str, epoch: int) -> Release:
        """The release.json of a commit. Raises HubError if it has none, or none of that epoch."""
        content = self._call(self._small_file, commit, MANIFEST)
        return read_manifest(content, epoch)

    def commit(self, folder: Path, release: Release, parent: str | None) -> str:
        """Commit the files of a release on top of `parent`; the new commit. Transient if main has moved."""
        return self._call(self._commit, folder, release, parent)

    def tag(self, epoch: int, commit: str) -> bool:
        """Tag a commit; false if the tag exists."""
        return self._call(self._create_tag, str(epoch), commit)

    def untag(self, epoch: int) -> None:
        """Delete a tag; that it is gone is fine."""
        self._call(self._delete_tag, str(epoch))

    def small_file(self, commit: str, name: str) -> bytes:
        """A file of at most 1 MiB."""
        return self._call(self._small_file, commit, name)

    def download(self, commit: str, file: FileDigest, folder: Path) -> None:
        """Download and verify a file. A partial file stays for the next try, a wrong one does not."""
        self._call(self._download, commit, file, folder / file.name)

    def _refs(self) -> Refs:
        found = self._api.list_repo_refs(self._repository)
        heads = {branch.name: branch.target_commit for branch in found.branches}
        epochs = {epoch: tag.target_commit for tag in found.tags if (epoch := epoch_of(tag.name)) is not None}
        return Refs(head=heads.get("main"), epochs=epochs)

    def _commit(self, folder: Path, release: Release, parent: str | None) -> str:
        add = self._library.CommitOperationAdd
        operations = [add(file.name, folder / file.name) for file in release.files]
        operations.append(add(CARD, card(release, self._repository).encode()))
        operations.append(add(MANIFEST, manifest_of(release)))
        done = self._api.create_commit(
            self._repository,
            operations,
            commit_message=f"{release.run_id} epoch {release.epoch}",
            commit_description=f"state {release.state_hash}",
            parent_commit=parent,
        )
        return str(done.oid)

    def _create_tag(self, tag: str, commit: str) -> bool:
        try:
            self._api.create_tag(self._repository, tag=tag, revision=commit)
        except self._library.errors.HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            return False
        return True

    def _delete_tag(self, tag: str) -> None:
        try:
            self._api.delete_tag(self._repository, tag=tag)
        except self._library.errors.RevisionNotFoundError:
            return

    @contextmanager
    def _stream(self, commit: str, name: str, offset: int) -> Iterator[Body]:
        url = f"{self._api.endpoint}/{self._repository}/resolve/{commit}/{name}"
        headers = {"accept-encoding": "identity"}  # the bytes as they lie there
        if offset:
            headers["range"] = f"bytes={offset}-"
        if self._token:
            headers["authorization"] = f"Bearer {self._token.reveal()}"
        session = self._library.get_session()
        with session.stream("GET", url, headers=headers) as response:
            self._library.hf_raise_for_status(response)
            # as they come: a fixed size would lose the last piece
            yield Body(response.iter_bytes(), resumed=response.status_code == 206)

    def _small_file(self, commit: str, name: str) -> bytes:
        return self._receiver.small(f"{name} on {self._repository}", partial(self._stream, commit, name))

    def _download(self, commit: str, file: FileDigest, target: Path) -> None:
        self._receiver.file(file, target, partial(self._stream, commit, file.name))

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (self._http.HTTPError, self._http.InvalidURL, OSError, ValueError, LookupError, RuntimeError) as error:
            failure = self._translate(error)
        raise failure  # outside the handler, so that nothing is chained

    def _translate(self, error: Exception) -> Transient | HubError:
        root = self._root_of(error)
        reason = self._reason(root)
        if isinstance(root, self._library.errors.HfHubHTTPError):
            return self._translate_status(root, reason)
        if isinstance(root, self._library.errors.OfflineModeIsEnabled):
            return HubError("the hub cannot be reached in offline mode: unset HF_HUB_OFFLINE")
        # RuntimeError without a cause and Python's own ConnectionError come from the Xet transfer
        if isinstance(root, (RuntimeError, ConnectionError, TimeoutError)):
            return Transient(f"{self._api.endpoint}: {reason} (HF_HUB_DISABLE_XET=1 uploads without Xet)")
        if isinstance(root, (self._http.RequestError, json.JSONDecodeError)):  # or the HTML page of a proxy
            return Transient(f"{self._api.endpoint}: {reason}")
        return HubError(f"{self._repository}: {reason}")

    def _root_of(self, error: Exception) -> BaseException:
        """The library wraps a failed upload in a RuntimeError: what is wrapped decides."""
        root: BaseException = error
        while isinstance(root, RuntimeError) and root.__cause__ is not None:
            root = root.__cause__
        return root

    def _translate_status(self, error: Any, reason: str) -> Transient | HubError:
        status = error.response.status_code
        damaged = status == 400 and _DAMAGED in error.response.text
        if is_transient(status) or status in _OVERTAKEN or damaged:
            return Transient(f"HTTP {status}: {reason}", retry_after(error.response.headers, self._clock.time()))
        whose = "the hub token" if self._token else "anonymous access (no hub token is set)"
        if isinstance(error, self._library.errors.RepositoryNotFoundError):
            return RepositoryMissing(
                f"{self._repository} does not exist or is hidden from {whose}: check the name, or use a token that "
                f"may read it ({reason})"
            )
        if status in (401, 403):
            return HubError(
                f"{whose} is refused by {self._repository} (HTTP {status}): publishing needs a token with write "
                f"access to {self._repository.split('/')[0]}, reading a private repository one with read access "
                f"({reason})"
            )
        return HubError(f"{self._repository}: HTTP {status}: {reason}")

    def _reason(self, error: BaseException) -> str:
        """One line, without the token."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return (self._token.scrub(text) if self._token else text)[:_REASON_CHARACTERS]


@dataclass(frozen=True)
class _BoundedSession:
    """Makes the library's session with timeouts, which it lacks."""

    timeouts: Timeouts

    def __call__(self) -> httpx2.Client:
        import httpx2
        from huggingface_hub.utils._http import default_client_factory  # the only way to keep its hooks

        client = default_client_factory()
        client.timeout = httpx2.Timeout(self.timeouts.idle, connect=self.timeouts.connect)
        return client


def _bound_session(timeouts: Timeouts) -> None:
    """Let the library's session have timeouts, and keep its progress bars out of a neuron's log.

    A session that has these timeouts already is left alone: changing it closes it under whoever is using it.
    """
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import _http
    from huggingface_hub.utils.tqdm import disable_progress_bars

    bounded = _BoundedSession(timeouts)
    if bounded != _http._GLOBAL_CLIENT_FACTORY:
        set_client_factory(bounded)
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
