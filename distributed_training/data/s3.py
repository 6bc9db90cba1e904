"""Files below a prefix of an S3 bucket (Amazon, R2, any other), read by ranges and written whole.

Whose bucket it is, and what its errors mean, is in services/s3.py. Reading is plain HTTP, signed if there are
credentials, which takes two thirds of the time of boto3's own call. Tries are counted in one place (store.py).
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from typing import TypeVar

from distributed_training.data.http import RangeReader, ReadTimeouts, parsed
from distributed_training.data.store import Absent
from distributed_training.services.s3 import Refusal, S3Connection, md5_of, read_place
from template.clock import Clock
from template.errors import ConfigurationError, SourceUnavailable

T = TypeVar("T")


class S3Store(RangeReader):
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
        # nothing that was signed follows a redirect to another host
        super().__init__(timeouts, clock, follow_redirects=False)
        self._place = place
        self._connection = S3Connection(
            place.url,
            endpoint=endpoint,
            region=None,
            connect=self._timeouts.connect,
            idle=self._timeouts.idle,
            clock=self._clock,
        )

    @property
    def where(self) -> str:
        return self._place.url

    def put(self, name: str, content: bytes) -> None:
        """Write a file whole; whatever is there is replaced."""
        where, md5 = self._object(name), md5_of(content)
        self._call(name, lambda: self._connection.client.put_object(**where, Body=content, ContentMD5=md5))

    def remove(self, name: str) -> None:
        """Remove a file; that it is not there is fine."""
        self._call(name, lambda: self._connection.client.delete_object(**self._object(name)))

    def close(self) -> None:
        super().close()
        self._connection.close()

    def _get(self, name: str, asked: str | None, limit: int) -> tuple[bytes, int]:
        return self._call(name, lambda: self._fetch(name, asked, limit))

    def _fetch(self, name: str, asked: str | None, limit: int) -> tuple[bytes, int]:
        url = f"{self._connection.base(self._place)}{urllib.parse.quote(name)}"
        headers = self._connection.signature(url) | ({"range": asked} if asked else {})
        with self._client.stream("GET", parsed(url), headers=headers) as response:
            if response.status_code not in (200, 206):
                raise self._connection.failure_of(response, self._refused, self._named(name))
            return self._received(response, name, asked, limit)

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self._place.bucket, "Key": self._place.key(name)}

    def _named(self, name: str) -> str:
        return f"{self._place.url}/{name}"

    def _call(self, name: str, function: Callable[[], T]) -> T:
        return self._connection.call(function, self._refused, self._named(name))

    def _refused(self, refusal: Refusal) -> SourceUnavailable:
        if refusal.status == 404:
            return Absent(f"{refusal.reason}: check the address")
        return SourceUnavailable(f"{self._place.url}: {refusal.reason}: check the address, and the right to it")
