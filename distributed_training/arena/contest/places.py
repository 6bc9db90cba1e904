"""Where sources are revealed: a folder that all can reach, or an http(s) address that takes PUT and gives GET.

A place is trusted with nothing: what is read counts only if it is what its hotkey committed on chain. Who may write
there is the place's own matter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import httpx

from template.clock import Clock, SystemClock
from template.errors import HubUnavailable, SubmissionRefused
from template.files import replace_file

SECONDS = 20.0  # for one reveal


class Place(Protocol):
    """Holds one reveal by round and hotkey."""

    def put(self, round_number: int, hotkey: str, text: str) -> None:
        """Publish; what was there is replaced.

        Raises:
            HubUnavailable: the place does not take it.
        """

    def get(self, round_number: int, hotkey: str, largest: int) -> bytes | None:
        """What is there; None if there is nothing.

        Raises:
            HubUnavailable: the place does not answer: whether there is something is not known.
            SubmissionRefused: `too_large`: more than `largest` bytes.
        """


class FolderPlace:
    """ROUND/HOTKEY.json below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, round_number: int, hotkey: str, text: str) -> None:
        path = self._path(round_number, hotkey)
        try:
            replace_file(path, text.encode())
        except OSError as error:
            raise HubUnavailable(f"a reveal cannot be written to {path}: {error}") from error

    def get(self, round_number: int, hotkey: str, largest: int) -> bytes | None:
        path = self._path(round_number, hotkey)
        try:
            with path.open("rb") as file:
                return _bounded(file.read(largest + 1), largest)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HubUnavailable(f"{path} cannot be read: {error}") from error

    def _path(self, round_number: int, hotkey: str) -> Path:
        return self._folder / str(round_number) / f"{_name(hotkey)}.json"


class HttpPlace:
    """ROUND/HOTKEY.json below an http(s) address."""

    def __init__(self, address: str, seconds: float = SECONDS, clock: Clock | None = None) -> None:
        """`seconds` for all of an answer, however slowly it comes."""
        self._address = address.rstrip("/")
        self._seconds = seconds
        self._clock = clock or SystemClock()

    def put(self, round_number: int, hotkey: str, text: str) -> None:
        url = self._url(round_number, hotkey)
        try:
            httpx.put(url, content=text.encode(), timeout=self._seconds).raise_for_status()
        except httpx.HTTPError as error:
            raise HubUnavailable(f"{url} does not take the reveal: {error}") from error

    def get(self, round_number: int, hotkey: str, largest: int) -> bytes | None:
        url = self._url(round_number, hotkey)
        try:
            with httpx.stream("GET", url, timeout=self._seconds) as answer:
                if answer.status_code == httpx.codes.NOT_FOUND:
                    return None
                answer.raise_for_status()
                return self._read(answer, largest, url)
        except httpx.HTTPError as error:
            raise HubUnavailable(f"{url} cannot be read: {error}") from error

    def _read(self, answer: httpx.Response, largest: int, url: str) -> bytes:
        end, found = self._clock.monotonic() + self._seconds, b""
        for piece in answer.iter_bytes():
            found = _bounded(found + piece, largest)
            if self._clock.monotonic() > end:
                raise HubUnavailable(f"{url}: no complete answer within {self._seconds:g} seconds")
        return found

    def _url(self, round_number: int, hotkey: str) -> str:
        return f"{self._address}/{round_number}/{_name(hotkey)}.json"


def place_at(where: str) -> Place:
    """The place that a contest spec names."""
    return HttpPlace(where) if where.startswith(("http://", "https://")) else FolderPlace(Path(where).expanduser())


def _bounded(found: bytes, largest: int) -> bytes:
    if len(found) > largest:
        raise SubmissionRefused(f"the reveal has more than {largest} bytes", reason="too_large")
    return found


def _name(hotkey: str) -> str:
    """The hotkey as a file's name; the chain makes them of letters and digits alone."""
    if not hotkey.isalnum():
        raise SubmissionRefused(f"{hotkey!r} is not a hotkey", reason="malformed")
    return hotkey
