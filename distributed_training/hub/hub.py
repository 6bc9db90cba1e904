"""The seam to the place where models are published: what a release is, and the `Hub` that keeps releases.

A release is a flat folder (model.safetensors, config.json, optimizer.safetensors, state.json, tokenizer files) under
a tag, which is the epoch number. A hub looks into none of these files; it adds README.md (the model card) and
release.json: this module's `Release`, with size and sha256 of every file, and `folder`, which leads from the address of
release.json to that of the files ("" if they lie beside it), so that plain HTTP can get all of a release without
listing anything. One hub belongs to one run.

Implementations: `directory.py`, `huggingface.py`, `s3.py`, `memory.py`; `build.py` chooses by URL. All four pass
tests/hub/test_hub_conformance.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ConfigDict, TypeAdapter, ValidationError

from template.errors import HubError, TagConflict

CARD = "README.md"
MANIFEST = "release.json"
MANIFEST_BYTES = 1 << 20
FILES_PER_RELEASE = 256

_FORMAT = 2
_RUN_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise HubError(message)


@dataclass(frozen=True, kw_only=True)
class ModelTag:
    """What a publisher states of a model.

    `epoch`: global updates applied; `state_hash`: 64 hex digits; `samples`: sequences averaged into this epoch's
    update; `participants`: uids whose contribution is in it; `held_out_loss`: nats a token, None if not measured.

    Raises:
        HubError: a value is out of its range.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    run_id: str
    epoch: int
    state_hash: str
    samples: int
    participants: tuple[int, ...]
    held_out_loss: float | None

    def __post_init__(self) -> None:
        _require(_RUN_ID.fullmatch(self.run_id) is not None, f"{self.run_id!r} is not a run id")
        _require(self.epoch >= 0, f"epoch must not be negative, found {self.epoch}")
        _require(_SHA256.fullmatch(self.state_hash) is not None, f"{self.state_hash!r} is not a state hash")
        _require(self.samples >= 0, f"samples must not be negative, found {self.samples}")
        _require(all(0 <= uid <= 65535 for uid in self.participants), "a participant is not a uid (0 to 65535)")
        finite = self.held_out_loss is None or math.isfinite(self.held_out_loss)
        _require(finite, f"held_out_loss must be finite or None, found {self.held_out_loss}")


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """One file of a release: its name in the flat folder, bytes and sha256 (hex)."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        _require(valid_name(self.name), f"{self.name!r} cannot be the name of a published file")
        _require(self.size >= 0, f"{self.name}: size must not be negative")
        _require(_SHA256.fullmatch(self.sha256) is not None, f"{self.name}: {self.sha256!r} is not a sha256")


@dataclass(frozen=True, kw_only=True)
class Release(ModelTag):
    """A published model: what was stated of it, and its files in order of name."""

    files: tuple[FileDigest, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [file.name for file in self.files]
        _require(bool(names), "a release has at least one file")
        _require(len(names) <= FILES_PER_RELEASE, f"a release has at most {FILES_PER_RELEASE} files")
        _require(names == sorted(set(names)), "the files of a release must be in order of name, each once")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """How a publication ended: `new` is false if the hub already had this state under this tag."""

    release: Release
    new: bool


Accept = Callable[[Release], None]
Folder = Callable[[Release], str]  # a relative reference (RFC 3986), with a slash at its end, or empty


def anything(_: Release) -> None:
    """Accepts every release."""


class Hub(Protocol):
    """Keeps the releases of one run, one for each epoch. A release never changes once it can be seen."""

    async def publish(self, folder: Path, tag: ModelTag) -> None:
        """Publish the files of a flat folder under the tag `str(tag.epoch)`. The folder is left untouched.

        The tag appears last: until it does, nobody sees anything. If the call fails or the process dies, what can be
        seen is nothing or the whole release, and the call may be repeated. Nothing happens if the tag is there with
        the same run and state hash, whoever made it: the first publisher's samples, participants and loss stay.

        Raises:
            TagConflict: the tag holds another state hash or another run. Nothing is overwritten.
            HubUnavailable: no success within the bounded number of tries.
            HubError: the folder cannot be published, or the hub refuses for good (rights, no such place).
        """

    async def epochs(self) -> tuple[int, ...]:
        """The epochs that have a release, ascending. Raises as `releases` does; reads no release."""

    async def releases(self, newest: int | None = None) -> tuple[Release, ...]:
        """All releases by ascending epoch, or only the `newest` many.

        Raises:
            HubUnavailable: no answer within the bounded number of tries.
            HubError: a tag holds no readable release, or the hub refuses for good.
        """

    async def latest(self) -> Release | None:
        """The release of the highest epoch, None if there is none. Raises as `releases` does."""

    async def fetch(self, epoch: int, destination: Path, accept: Accept = anything) -> Release:
        """Download a release into the new folder `destination`: all its files, README.md and release.json.

        Every file is checked against release.json; the folder appears complete and verified, or not at all. `accept`
        sees what release.json says before anything else is downloaded; what it raises goes on to the caller.

        Raises:
            NotPublished: there is no release of that epoch (yet).
            HubUnavailable: no complete and intact copy within the bounded number of tries.
            HubError: `destination` exists, the release is damaged, or the hub refuses for good.
        """

    async def remove(self, epochs: Collection[int]) -> None:
        """Take releases away, oldest first; those that are not there are fine.

        The tag goes first: if the call fails or the process dies, a release is whole or cannot be seen, and the call
        may be repeated. Which to remove is decided by `retention.py`; nothing that is being published may be.

        Raises:
            HubUnavailable: no success within the bounded number of tries.
            HubError: the hub refuses for good.
        """


def epoch_of(name: str) -> int | None:
    """The epoch that a tag's name stands for, None if it is no epoch's: "7" is, "007" and "v7" are not."""
    return int(name) if name.isascii() and name.isdigit() and str(int(name)) == name else None


def valid_name(name: str) -> bool:
    """Whether a file may be published under this name: flat, portable, not hidden, not one that a hub writes."""
    return _FILE_NAME.fullmatch(name) is not None and name not in (CARD, MANIFEST)


def release_of(tag: ModelTag, files: tuple[FileDigest, ...]) -> Release:
    """The release that `tag` and these files make."""
    stated = {field.name: getattr(tag, field.name) for field in dataclasses.fields(ModelTag)}
    return Release(**stated, files=tuple(sorted(files, key=lambda file: file.name)))


def same_state(release: Release, tag: ModelTag) -> bool:
    """Whether a release is of the run, epoch and state that `tag` names."""
    return (release.run_id, release.epoch, release.state_hash) == (tag.run_id, tag.epoch, tag.state_hash)


def settle(held: Release, tag: ModelTag) -> Publication:
    """What follows for a publisher of `tag` who finds `held` under it.

    Raises:
        TagConflict: another run or another state.
    """
    if same_state(held, tag):
        return Publication(release=held, new=False)
    if held.run_id != tag.run_id:
        raise TagConflict(
            f"tag {tag.epoch} belongs to the run {held.run_id}, not to {tag.run_id}: give each run a hub of its own"
        )
    raise TagConflict(
        f"tag {tag.epoch} holds state {held.state_hash[:12]}, not {tag.state_hash[:12]}: another publisher's epoch "
        "came first; fetch it, or find out why the states differ"
    )


def beside(_: Release) -> str:
    """The files lie where release.json does."""
    return ""


def manifest_of(release: Release, folder: Folder = beside) -> bytes:
    """release.json: canonical, so equal releases in equal places give equal bytes."""
    document = {"format": _FORMAT, "folder": folder(release), **dataclasses.asdict(release)}
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_manifest(content: bytes, epoch: int, folder: Folder = beside) -> Release:
    """The release in a release.json that was found under the tag of `epoch`.

    Raises:
        HubError: not a release, of an unknown format, of another epoch, or with files in another place than `folder`.
    """
    _require(len(content) <= MANIFEST_BYTES, f"release.json of epoch {epoch} is larger than {MANIFEST_BYTES} bytes")
    try:
        document = json.loads(content)
        found = document.pop("format") if isinstance(document, dict) else None
        _require(found == _FORMAT, f"release.json of epoch {epoch} has the unknown format {found!r}")
        place = document.pop("folder")
        release = _RELEASE.validate_json(json.dumps(document))
    except (ValueError, KeyError, RecursionError, ValidationError) as error:
        raise HubError(
            f"tag {epoch} holds no release of this project: {type(error).__name__} in release.json"
        ) from error
    _require(release.epoch == epoch, f"tag {epoch} holds the release of epoch {release.epoch}")
    _require(place == folder(release), f"release.json of epoch {epoch} names another folder than its files lie in")
    return release


_RELEASE = TypeAdapter(Release)
