"""What was read from afar, kept in a folder of bounded size: the least recently used goes first.

Every entry is a file that begins with the sha256 of its content, so one that a crash or a disk has spoiled is not an
entry. Files are written whole or not at all. A disk that takes nothing more costs reads, not the run: said once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from template.errors import ConfigurationError

logger = logging.getLogger(__name__)

_DIGEST = hashlib.sha256().digest_size
_SUFFIX = ".block"


class BlockCache:
    """Blocks of bytes by key, at most `limit` bytes of them. Thread-safe; one process a folder.

    Raises:
        ConfigurationError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._full = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = [(path.stat().st_mtime_ns, path.stem, path.stat().st_size) for path in folder.glob(f"*{_SUFFIX}")]
        except OSError as error:
            raise ConfigurationError(f"the cache of the corpus cannot be kept in {folder}: {error.strerror}") from error
        self._sizes = OrderedDict((name, size) for _, name, size in sorted(found))
        self._bytes = sum(self._sizes.values())
        self._evict()

    @property
    def size(self) -> int:
        """How many bytes lie in the folder."""
        return self._bytes

    def get(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The block of `key`, from the folder, or as `make` gives it (its errors are passed on)."""
        name = hashlib.sha256(key.encode()).hexdigest()
        content = self._read(name)
        if content is None:
            content = make()
            self._keep(name, content)
        return content

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"

    def _read(self, name: str) -> bytes | None:
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
        try:
            path = self._path(name)
            data = path.read_bytes()
            os.utime(path)  # the order survives a restart
        except OSError:  # evicted by another thread, or taken away by a person: read again from afar
            return None
        content = data[_DIGEST:]
        return content if hashlib.sha256(content).digest() == data[:_DIGEST] else None

    def _keep(self, name: str, content: bytes) -> None:
        size = len(content) + _DIGEST
        if size > self._limit:
            return
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(hashlib.sha256(content).digest() + content)
            with self._lock:  # so that no other thread takes the file away before it is counted
                os.replace(file.name, self._path(name))
                self._bytes += size - self._sizes.pop(name, 0)
                self._sizes[name] = size
                self._evict()
        except OSError as error:
            if not self._full:
                logger.warning("nothing can be kept in %s: %s", self._folder, error)
            self._full = True

    def _evict(self) -> None:
        while self._bytes > self._limit:
            name, size = self._sizes.popitem(last=False)
            self._bytes -= size
            self._path(name).unlink(missing_ok=True)
