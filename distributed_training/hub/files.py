"""Files of a release on disk: what a folder holds, copies that are hashed and safe on disk, drafts that vanish.

A draft is a hidden folder beside the place where it will be renamed to. Its owner holds an flock on `<draft>.lock` as
long as it lives, so that whoever comes next can tell a draft in work from one whose owner was killed, and sweep it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from distributed_training.hub.hub import CARD, MANIFEST, FileDigest, Release, valid_name
from template.errors import HubError, HubUnavailable

T = TypeVar("T")

CHUNK = 1 << 20  # bytes

_LOCK_TRIES = 10


async def on_disk(work: Awaitable[T]) -> T:
    """Await work on files; what the operating system refuses becomes a HubError that names the file."""
    try:
        return await work
    except PermissionError as error:
        raise HubError(f"{error.filename}: {error.strerror}: give this user the right to it") from error
    except OSError as error:
        raise HubUnavailable(f"{error.filename or 'disk'}: {error.strerror or error}") from error


def contents(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that can be published, in order of name; what a hub writes itself is left out.

    Raises:
        HubError: not a folder, empty, or with something in it that is not a plain file of a portable name.
    """
    if not folder.is_dir():
        raise HubError(f"{folder} is not a folder: nothing to publish")
    files = tuple(sorted(path for path in folder.iterdir() if path.name not in (CARD, MANIFEST)))
    for path in files:
        if path.is_symlink() or not path.is_file() or not valid_name(path.name):
            raise HubError(f"{path} cannot be published: a release is plain files named with A-Z a-z 0-9 . _ -")
    if not files:
        raise HubError(f"{folder} is empty: nothing to publish")
    return files


def digest(path: Path) -> FileDigest:
    """Name, bytes and sha256 of a file."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            size += len(chunk)
    return FileDigest(name=path.name, size=size, sha256=sha256.hexdigest())


def copy(source: Path, target: Path) -> FileDigest:
    """Copy a file to the disk itself; the digest is of the bytes that were written."""
    sha256, size = hashlib.sha256(), 0
    with source.open("rb") as reading, target.open("xb") as writing:
        while chunk := reading.read(CHUNK):
            writing.write(chunk)
            sha256.update(chunk)
            size += len(chunk)
        sync(writing)
    return FileDigest(name=target.name, size=size, sha256=sha256.hexdigest())


def write(target: Path, content: bytes) -> None:
    """Write a small new file to the disk itself."""
    with target.open("xb") as file:
        file.write(content)
        sync(file)


def sync(file: BinaryIO) -> None:
    """Bring what was written to the disk itself."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk itself."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_new(destination: Path) -> None:
    """Raises HubError if something is at `destination`."""
    if os.path.lexists(destination):
        raise HubError(f"{destination} exists: fetch into a new folder, or remove it first")


def require_space(release: Release, folder: Path) -> None:
    """Raises HubError if the disk of `folder` cannot hold the release."""
    free = shutil.disk_usage(folder).free
    if free < release.size:
        raise HubError(f"epoch {release.epoch} takes {release.size} bytes and {folder} has {free}: free some space")


def place(draft: Path, destination: Path) -> None:
    """Let a complete draft appear at `destination`.

    Raises:
        HubError: somebody else put something there meanwhile.
    """
    sync_folder(draft)
    require_new(destination)  # a rename would silently replace an empty folder
    try:
        os.rename(draft, destination)
    except OSError:
        require_new(destination)
        raise
    sync_folder(destination.parent)


@contextlib.contextmanager
def draft(parent: Path, label: str) -> Iterator[Path]:
    """A new folder `.<label>-<random>` in `parent`, removed at the end unless it was renamed away.

    Drafts of the same label whose owner is dead are removed first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent, label)
    folder, descriptor = _own(parent, label)
    try:
        folder.mkdir()
        yield folder
    finally:
        if folder.exists():
            shutil.rmtree(folder)
        _lock_of(folder).unlink(missing_ok=True)
        os.close(descriptor)


def sweep(parent: Path, label: str) -> None:
    """Remove the drafts of dead owners; those in work are left alone."""
    for lock in parent.glob(f".{label}-*.lock"):
        try:
            descriptor = os.open(lock, os.O_RDWR)
        except FileNotFoundError:
            continue  # its owner has just finished
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            if not lock.with_suffix("").exists():
                lock.unlink(missing_ok=True)
        except BlockingIOError:
            continue  # its owner lives
        finally:
            os.close(descriptor)


def _lock_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.lock"


def _own(parent: Path, label: str) -> tuple[Path, int]:
    """A free name and the descriptor that holds its lock.

    Between creating and locking the file a sweeper can take it for a dead owner's and remove it, hence the check that
    the name still leads to what was locked.
    """
    for _ in range(_LOCK_TRIES):
        folder = parent / f".{label}-{secrets.token_hex(8)}"
        lock = _lock_of(folder)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(lock).st_ino == os.fstat(descriptor).st_ino:
                return folder, descriptor
        os.close(descriptor)
    raise HubError(f"no lock could be had in {parent} in {_LOCK_TRIES} tries")
