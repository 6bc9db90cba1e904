"""Files behind an http(s) address, read by ranges: a dataset repository, a bucket with public read, any web server.

Redirects are followed, because large files of a repository lie on another origin; a token goes to the first origin only
and stands in no message. Each answer is bounded in size, in time between two bytes, and in time altogether.
"""

from __future__ import annotations

import functools
import re
import urllib.parse
from abc import ABC, abstractmethod
from dataclasses import dataclass

import httpx

from distributed_training.data.store import Absent
from distributed_training.services.retry import Transient, is_transient, retry_after
from template.clock import Clock, SystemClock
from template.config import Secret
from template.errors import ConfigurationError, SourceUnavailable

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_CONNECTIONS = 16


@dataclass(frozen=True, kw_only=True)
class ReadTimeouts:
    """Seconds: to connect; without a byte; for one answer."""

    connect: float = 10.0
    idle: float = 20.0
    answer: float = 60.0

    def __post_init__(self) -> None:
        if min(self.connect, self.idle, self.answer) <= 0:
            raise ConfigurationError("the timeouts of a corpus must be positive")


class RangeReader(ABC):
    """The reading half of a `Store`, by answers of HTTP."""

    def __init__(self, timeouts: ReadTimeouts | None, clock: Clock | None, *, follow_redirects: bool) -> None:
        self._timeouts = timeouts or ReadTimeouts()
        self._clock = clock or SystemClock()
        self._client = httpx.Client(
            follow_redirects=follow_redirects,
            timeout=httpx.Timeout(self._timeouts.idle, connect=self._timeouts.connect),
            limits=httpx.Limits(max_connections=_CONNECTIONS),
            headers={"accept-encoding": "identity"},  # the bytes as they lie there
        )

    @property
    @abstractmethod
    def where(self) -> str:
        """The place, for messages; never with a credential."""

    @abstractmethod
    def _get(self, name: str, asked: str | None, limit: int) -> tuple[bytes, int]:
        """The bytes of one answer, and the size of the file; `limit` bounds both the answer and the memory it takes."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        data, _ = self._get(name, f"bytes={start}-{stop - 1}", stop - start)
        if len(data) != stop - start:
            raise Transient(f"{name} broke off after {len(data)} of {stop - start} bytes")
        return data

    def tail(self, name: str, count: int) -> tuple[bytes, int]:
        return self._get(name, f"bytes=-{count}", count)

    def whole(self, name: str, limit: int) -> bytes:
        data, size = self._get(name, None, limit)
        if len(data) != size:
            raise Transient(f"{name} broke off after {len(data)} of {size} bytes")
        return data

    def close(self) -> None:
        self._client.close()

    def _received(self, response: httpx.Response, name: str, asked: str | None, limit: int) -> tuple[bytes, int]:
        """The bytes of an answer that is no error, and the size of the file."""
        if asked and response.status_code == 200:
            raise SourceUnavailable(f"{self.where}/{name}: the server does not serve ranges")
        size = _size_of(response, asked, limit)
        content, deadline = bytearray(), self._clock.monotonic() + self._timeouts.answer
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > limit:
                raise SourceUnavailable(f"{self.where}/{name} is larger than the {limit} bytes it may have")
            if self._clock.monotonic() > deadline:
                raise Transient(f"{name} took longer than {self._timeouts.answer:g} s")
        return bytes(content), size


@functools.lru_cache(1024)  # files: parsing an address takes longer than reading 10 kB
def parsed(url: str) -> httpx.URL:
    """Raises httpx.InvalidURL."""
    return httpx.URL(url)


class HttpStore(RangeReader):
    """A `Store` of the files below `base`."""

    def __init__(
        self,
        base: str,
        *,
        timeouts: ReadTimeouts | None = None,
        token: Secret | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(timeouts, clock, follow_redirects=True)
        self._base = base.rstrip("/")
        self._token = token

    @property
    def where(self) -> str:
        return self._base

    def _get(self, name: str, asked: str | None, limit: int) -> tuple[bytes, int]:
        headers = {"range": asked} if asked else {}
        if self._token:
            headers["authorization"] = f"Bearer {self._token.reveal()}"
        url = f"{self._base}/{urllib.parse.quote(name)}"
        try:
            with self._client.stream("GET", parsed(url), headers=headers) as response:
                self._require_success(response, name)
                return self._received(response, name, asked, limit)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"data.path: {self._base} is no address: {error}") from error
        except httpx.HTTPError as error:
            raise Transient(self._scrub(f"{type(error).__name__}: {error}")) from None

    def _require_success(self, response: httpx.Response, name: str) -> None:
        status = response.status_code
        if is_transient(status):
            raise Transient(f"HTTP {status} for {name}", retry_after(response.headers, self._clock.time()))
        if status not in (200, 206):
            kind = Absent if status == 404 else SourceUnavailable
            raise kind(f"HTTP {status} for {self._base}/{name}: check the address, or its right to be read")

    def _scrub(self, text: str) -> str:
        return self._token.scrub(text) if self._token else text


def _size_of(response: httpx.Response, asked: str | None, limit: int) -> int:
    """The size of the whole file, as the answer tells it."""
    if asked is None:
        length = response.headers.get("content-length", "")
        if not length.isdigit():
            raise SourceUnavailable(f"{response.url.host} does not tell the size of a file")
        if int(length) > limit:
            raise SourceUnavailable(
                f"a file at {response.url.host} of {length} bytes is larger than the {limit} bytes it may have"
            )
        return int(length)
    told = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if told is None:
        raise SourceUnavailable(f"{response.url.host} serves a range without telling which")
    if not asked.startswith(("bytes=-", f"bytes={told[1]}-")):
        raise SourceUnavailable(f"{response.url.host} serves {told[0]} where {asked} was asked for")
    return int(told[3])
