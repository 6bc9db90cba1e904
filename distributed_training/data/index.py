"""What is known of the files of a corpus without reading them again, kept in a file beside other caches.

An entry is reused as long as the file's size and modification time stand; a cache whose hash does not match its content
is built anew, with a warning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_training.data.canonical import canonical, save_index
from template.errors import ConfigurationError, SourceUnavailable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """What reading a file once tells: a hash, numbers whose meaning is the source's, and what is wrong with it."""

    digest: str
    marks: tuple[int, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class FileEntry:
    """One file of a corpus. `name` is its path below the folder, with '/'; `size` is in bytes."""

    name: str
    size: int
    modified_ns: int
    scan: Scan


def list_files(folder: Path, suffix: str, what: str) -> list[str]:
    """The names of the files below `folder` that end with `suffix` and are not hidden, in order of their code points.

    Raises:
        ConfigurationError: no such folder, or none of its files is of that kind.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"data.path: there is no folder {folder}; it must hold {what}")
    found = (path.relative_to(folder) for path in folder.rglob(f"*{suffix}") if path.is_file())
    names = sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise ConfigurationError(f"data.path: the folder {folder} is empty; it must hold {what}")
    return names


def build_index(
    kind: str, folder: Path, names: Iterable[str], scan: Callable[[Path], Scan], cache: Path | None
) -> tuple[FileEntry, ...]:
    """Entries for `names` below `folder`, scanning only files that `cache` (a folder; None: no cache) does not know.

    Raises:
        SourceUnavailable: a file cannot be read.
        ConfigurationError: the cache cannot be written.
    """
    where = cache / f"{kind}-{_sha256(str(folder.resolve()).encode())[:16]}.json" if cache else None
    known = {entry.name: entry for entry in (_load(where) if where else ())}
    entries = tuple(_entry(folder, name, scan, known.get(name)) for name in names)
    if where and entries != tuple(known.values()):
        _store(where, entries)
    return entries


def fingerprint(kind: str, entries: Sequence[FileEntry]) -> str:
    """sha256 over kind, names, sizes, hashes and marks; modification times do not count."""
    facts = [[entry.name, entry.size, entry.scan.digest, *entry.scan.marks] for entry in entries]
    return _sha256(canonical([kind, facts]))


def _entry(folder: Path, name: str, scan: Callable[[Path], Scan], known: FileEntry | None) -> FileEntry:
    path = folder / name
    try:
        status = path.stat()
        if known and (known.size, known.modified_ns) == (status.st_size, status.st_mtime_ns):
            return known
        return FileEntry(name, status.st_size, status.st_mtime_ns, scan(path))
    except OSError as error:
        raise SourceUnavailable(f"{path} cannot be read: {error}") from error


def _load(where: Path) -> tuple[FileEntry, ...]:
    try:
        stored = json.loads(where.read_bytes())
        if stored["sha256"] != _sha256(canonical(stored["files"])):
            raise ValueError("its hash does not match")
        return tuple(_from_json(item) for item in stored["files"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the index %s is unusable (%s) and is built anew", where, error)
        return ()


def _from_json(item: dict[str, Any]) -> FileEntry:
    scan = Scan(item["scan"]["digest"], tuple(item["scan"]["marks"]), item["scan"]["problem"])
    return FileEntry(item["name"], item["size"], item["modified_ns"], scan)


def _store(where: Path, entries: Sequence[FileEntry]) -> None:
    files = [dataclasses.asdict(entry) for entry in entries]
    save_index(where, canonical({"sha256": _sha256(canonical(files)), "files": files}))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
