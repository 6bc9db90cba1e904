"""Receiving one file of a release: resumed where it broke off, bounded in size and time, hashed before it counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from distributed_training.hub import files
from distributed_training.hub.hub import MANIFEST, MANIFEST_BYTES, FileDigest
from distributed_training.services.retry import Transient
from template.clock import Clock
from template.errors import ConfigurationError, HubError


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds: to connect; without a byte moving in either direction; for one call, upload included; for one file
    to download.

    Raises:
        ConfigurationError: one of them is not positive.
    """

    connect: float = 10.0
    idle: float = 60.0
    call: float = 1800.0
    download: float = 1800.0

    def __post_init__(self) -> None:
        if min(self.connect, self.idle, self.call, self.download) <= 0:
            raise ConfigurationError("hub timeouts must be positive")


@dataclass(frozen=True)
class Body:
    """An answer that is arriving; `resumed` is whether it begins at the offset that was asked for."""

    chunks: Iterator[bytes]
    resumed: bool


Open = Callable[[int], AbstractContextManager[Body]]  # from this byte on


class Receiver:
    """Receives what a client opens, within `seconds` a file."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock

    def small(self, name: str, open_from: Open) -> bytes:
        """A file of at most 1 MiB.

        Raises:
            Transient: too slow.
            HubError: larger than that.
        """
        content = bytearray()
        deadline = self._deadline()
        with open_from(0) as body:
            for chunk in body.chunks:
                content += chunk
                if len(content) > MANIFEST_BYTES:
                    raise HubError(f"{name} is larger than {MANIFEST_BYTES} bytes")
                self._require_time(deadline, name)
        return bytes(content)

    def file(self, file: FileDigest, target: Path, open_from: Open) -> None:
        """Receive a file into `target`, or go on with what is there of it. A partial file stays, a wrong one does not.

        Raises:
            Transient: broken off, too slow, or not what the release says.
        """
        deadline = self._deadline()
        with target.open("ab") as partial:
            offset = partial.tell()
            if offset < file.size:
                with open_from(offset) as body:
                    if not body.resumed:
                        partial.seek(0)  # the server sends it from the beginning
                        partial.truncate()
                    for chunk in body.chunks:
                        partial.write(chunk)
                        if partial.tell() > file.size:
                            break
                        self._require_time(deadline, file.name)
            files.sync(partial)
        _verify(file, target)

    def _deadline(self) -> float:
        return self._clock.monotonic() + self._seconds

    def _require_time(self, deadline: float, name: str) -> None:
        if self._clock.monotonic() > deadline:
            raise Transient(f"{name} took longer than {self._seconds} s")


def _verify(file: FileDigest, target: Path) -> None:
    found = files.digest(target)
    if found == file:
        return
    if found.size < file.size:
        raise Transient(f"{file.name} broke off at {found.size} of {file.size} bytes")
    target.unlink()
    raise Transient(
        f"{file.name} arrived with {found.size} bytes and sha256 {found.sha256[:12]}, "
        f"{MANIFEST} says {file.size} and {file.sha256[:12]}"
    )
