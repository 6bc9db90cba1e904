"""Files below a prefix of an S3 bucket (Amazon, R2, any other), read by ranges and written whole.

Whose bucket it is, and what its errors mean, is in services/s3.py. Tries are counted in one place (store.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from distributed_training.data.http import ReadTimeouts
from distributed_training.data.store import Absent
from distributed_training.services.retry import Transient
from distributed_training.services.s3 import Refusal, S3Connection, md5_of, read_place
from template.clock import Clock, SystemClock
from template.errors import ConfigurationError, SourceUnavailable

T = TypeVar("T")

_CHUNK = 1 << 16


class S3Store:
    """A `Shelf` (store.py) at `address`, s3://bucket/prefix. `endpoint`: address of the S3 API, None for Amazon's own
    or what AWS_ENDPOINT_URL says.

    Raises:
        ConfigurationError: the address is none, or the profile is not there.
    """

    def __init__(
        self,
        address: str,
        *,
        endpoint: str | None = None,
        timeouts: ReadTimeouts | None = None,
        clock: Clock | None = None,
    ) -> None:
        place = read_place(address)
        if place is None:
            raise ConfigurationError(f"{address} is no address of a bucket: s3://bucket/prefix")
        self._place = place
        self._timeouts = timeouts or ReadTimeouts()
        self._clock = clock or SystemClock()
        self._connection = S3Connection(
            place.url,
            endpoint=endpoint,
            region=None,
            connect=self._timeouts.connect,
            idle=self._timeouts.idle,
            clock=self._clock,
        )
        self._s3 = self._connection.client

    @property
    def where(self) -> str:
        return self._place.url

    def read(self, name: str, start: int, stop: int) -> bytes:
        data, _ = self._call(name, lambda: self._get(name, stop - start, Range=f"bytes={start}-{stop - 1}"))
        if len(data) != stop - start:
            raise Transient(f"{name} broke off after {len(data)} of {stop - start} bytes")
        return data

    def tail(self, name: str, count: int) -> tuple[bytes, int]:
        return self._call(name, lambda: self._get(name, count, Range=f"bytes=-{count}"))

    def whole(self, name: str, limit: int) -> bytes:
        data, size = self._call(name, lambda: self._get(name, limit))
        if len(data) != size:
            raise Transient(f"{name} broke off after {len(data)} of {size} bytes")
        return data

    def put(self, name: str, content: bytes) -> None:
        where, md5 = self._object(name), md5_of(content)
        self._call(name, lambda: self._s3.put_object(**where, Body=content, ContentMD5=md5))

    def remove(self, name: str) -> None:
        self._call(name, lambda: self._s3.delete_object(**self._object(name)))

    def close(self) -> None:
        self._connection.close()

    def _get(self, name: str, limit: int, **asked: str) -> tuple[bytes, int]:
        """The bytes of one answer, and the size of the object."""
        found = self._s3.get_object(**self._object(name), **asked)
        told = str(found["ContentRange"]).rpartition("/")[2] if asked else found["ContentLength"]
        if found["ContentLength"] > limit:
            raise SourceUnavailable(f"{self._place.url}/{name} is larger than the {limit} bytes it may have")
        content, deadline = bytearray(), self._clock.monotonic() + self._timeouts.answer
        with closing(found["Body"]) as body:
            for chunk in body.iter_chunks(_CHUNK):
                content += chunk
                if self._clock.monotonic() > deadline:
                    raise Transient(f"{name} took longer than {self._timeouts.answer:g} s")
        return bytes(content), int(told)

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self._place.bucket, "Key": self._place.key(name)}

    def _call(self, name: str, function: Callable[[], T]) -> T:
        return self._connection.call(function, self._refused, f"{self._place.url}/{name}")

    def _refused(self, refusal: Refusal) -> SourceUnavailable:
        if refusal.status == 404:
            return Absent(f"{refusal.reason}: check the address")
        return SourceUnavailable(f"{self._place.url}: {refusal.reason}: check the address, and the right to it")
