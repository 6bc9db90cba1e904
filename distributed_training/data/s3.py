"""Files below a prefix of an S3 bucket (Amazon, R2, any other), read by ranges and written whole.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) or a profile
(AWS_PROFILE, ~/.aws) and from nowhere else; without any, requests are anonymous, which is all that a bucket with public
read needs. Tries are counted in one place (store.py), so the client makes one a call. What is sent carries Content-MD5:
a body damaged on its way is refused and never stored.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar

from distributed_training.data.http import ReadTimeouts
from distributed_training.data.store import Absent, NotNow
from distributed_training.hub.retry import retry_after
from template.clock import Clock, SystemClock
from template.errors import ConfigurationError, SourceUnavailable

T = TypeVar("T")

_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*?))?/?")
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
_TRANSIENT_CODES = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"})
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
        import boto3  # with botocore only where a bucket is used
        import botocore.exceptions

        found = _ADDRESS.fullmatch(address)
        if not found:
            raise ConfigurationError(f"{address} is no address of a bucket: s3://bucket/prefix")
        self._bucket, prefix = found[1], found[2]
        self._prefix = f"{prefix}/" if prefix else ""
        self._address = f"s3://{self._bucket}/{prefix or ''}".rstrip("/")
        self._timeouts = timeouts or ReadTimeouts()
        self._clock = clock or SystemClock()
        self._errors = botocore.exceptions
        try:
            self._s3 = _client(boto3, endpoint, self._timeouts)
        except (self._errors.BotoCoreError, ValueError) as error:
            raise ConfigurationError(f"{self._address}: {error}; set AWS_PROFILE and AWS_REGION right") from None

    @property
    def where(self) -> str:
        return self._address

    def read(self, name: str, start: int, stop: int) -> bytes:
        data, _ = self._call(name, lambda: self._get(name, stop - start, Range=f"bytes={start}-{stop - 1}"))
        if len(data) != stop - start:
            raise NotNow(f"{name} broke off after {len(data)} of {stop - start} bytes")
        return data

    def tail(self, name: str, count: int) -> tuple[bytes, int]:
        return self._call(name, lambda: self._get(name, count, Range=f"bytes=-{count}"))

    def whole(self, name: str, limit: int) -> bytes:
        data, size = self._call(name, lambda: self._get(name, limit))
        if len(data) != size:
            raise NotNow(f"{name} broke off after {len(data)} of {size} bytes")
        return data

    def put(self, name: str, content: bytes) -> None:
        md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        self._call(
            name,
            lambda: self._s3.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content, ContentMD5=md5),
        )

    def remove(self, name: str) -> None:
        self._call(name, lambda: self._s3.delete_object(Bucket=self._bucket, Key=self._prefix + name))

    def close(self) -> None:
        self._s3.close()

    def _get(self, name: str, limit: int, **asked: str) -> tuple[bytes, int]:
        """The bytes of one answer, and the size of the object."""
        found = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + name, **asked)
        told = str(found["ContentRange"]).rpartition("/")[2] if asked else found["ContentLength"]
        if found["ContentLength"] > limit:
            raise SourceUnavailable(f"{self._address}/{name} is larger than the {limit} bytes it may have")
        content, deadline = bytearray(), self._clock.monotonic() + self._timeouts.answer
        with closing(found["Body"]) as body:
            for chunk in body.iter_chunks(_CHUNK):
                content += chunk
                if self._clock.monotonic() > deadline:
                    raise NotNow(f"{name} took longer than {self._timeouts.answer:g} s")
        return bytes(content), int(told)

    def _call(self, name: str, function: Callable[[], T]) -> T:
        from botocore.parsers import ResponseParserError

        try:
            return function()
        except self._errors.ClientError as error:
            failure = self._translate(error.response, name)
        except (
            self._errors.HTTPClientError,
            self._errors.ConnectionError,
            self._errors.IncompleteReadError,
            ResponseParserError,  # a proxy's HTML page
        ) as error:
            failure = NotNow(f"{type(error).__name__}: {error}"[:300])
        except self._errors.BotoCoreError as error:
            failure = SourceUnavailable(f"{self._address}: {error}"[:300])
        raise failure  # outside the handler: a client's error holds the request, and with it its signature

    def _translate(self, response: dict[str, Any], name: str) -> NotNow | SourceUnavailable:
        said, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
        status, code = int(meta.get("HTTPStatusCode", 0)), str(said.get("Code", ""))
        reason = f"HTTP {status} {code} for {self._address}/{name}"
        if status in _TRANSIENT_STATUS or status >= 500 or code in _TRANSIENT_CODES:
            return NotNow(reason, retry_after(meta.get("HTTPHeaders", {}), self._clock.time()))
        if status == 404:
            return Absent(f"{reason}: check the address")
        return SourceUnavailable(f"{reason}: check the address, and the right to it")


def _client(boto3: Any, endpoint: str | None, timeouts: ReadTimeouts) -> Any:
    import botocore
    from botocore.config import Config

    session = boto3.session.Session()
    providers = session._session.get_component("credential_provider")
    for service in ("container-role", "iam-role"):
        providers.remove(service)  # no metadata service is asked
    config = Config(
        connect_timeout=timeouts.connect,
        read_timeout=timeouts.idle,
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path" if endpoint else "auto"},
        request_checksum_calculation="when_required",  # not every S3 knows the newer ones
        response_checksum_validation="when_required",
        signature_version=None if session.get_credentials() else botocore.UNSIGNED,
        max_pool_connections=16,
    )
    region = session.region_name or ("auto" if endpoint else "us-east-1")
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
