"""A connection to S3 (Amazon, R2, any other): whose it is, the clients made for it, and what its errors mean.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) or a profile
(AWS_PROFILE, ~/.aws); nothing else is asked, no metadata service. Without any, requests are anonymous. No credential
stands in an error or, by boto3's own loggers, in a log. Tries are counted by those who call (retry.py), so a client
makes one a call. What is sent should carry Content-MD5 (`md5_of`): a body damaged on its way is then never stored.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from distributed_training.services.retry import Transient, is_transient, retry_after
from template.clock import Clock
from template.errors import ConfigurationError, SubnetError

T = TypeVar("T")

_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*?))?/?")
_CONFLICT = 409  # somebody else's request for the same object is being carried out
# a body that did not arrive as it was sent: S3 says 400, and the next try may arrive
_TRANSIENT_CODES = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"})
_ELSEWHERE = frozenset({301, 307})  # a bucket of another region
_WRONG_REGION = "AuthorizationHeaderMalformed"  # in the signature, among other things
_REGION = re.compile(r"[a-z0-9-]{1,32}")
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_ERROR_BYTES = 8192
_REASON_CHARACTERS = 300
_CONNECTIONS = 16


@dataclass(frozen=True)
class Place:
    """A prefix of a bucket; no slash at its ends, empty for the whole bucket."""

    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        """s3://bucket/prefix"""
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    def key(self, name: str) -> str:
        """The object that is called `name` here."""
        return f"{self.prefix}/{name}" if self.prefix else name


def read_place(address: str) -> Place | None:
    """The place that s3://bucket/prefix names, None if it names none."""
    found = _ADDRESS.fullmatch(address)
    return Place(found[1], found[2] or "") if found else None


@dataclass(frozen=True)
class Refusal:
    """What another try would give as well. `status`: of HTTP, 0 if there was no answer; `code`: S3's word for it;
    `reason`: one line.
    """

    status: int
    code: str
    reason: str


Refused = Callable[[Refusal], SubnetError]  # what a refusal is to whoever called


class S3Connection:
    """One S3 API. `endpoint`: its address, None for Amazon's own or what AWS_ENDPOINT_URL says; `region`: None for that
    of environment or profile; `where` names the place in messages; `connect` and `idle` in seconds.

    Raises:
        ConfigurationError: a profile that is not there, or no region.
    """

    def __init__(
        self, where: str, *, endpoint: str | None, region: str | None, connect: float, idle: float, clock: Clock
    ) -> None:
        import boto3  # with botocore only where a bucket is used
        import botocore.exceptions

        self._where = where
        self._endpoint = endpoint
        self._timeouts = {"connect_timeout": connect, "read_timeout": idle}
        self._clock = clock
        self._errors = botocore.exceptions
        self._bases: dict[Place, str] = {}
        self._lock = threading.Lock()
        try:
            self._session = _local_session(boto3)
            self._credentials = self._session.get_credentials()
            self._region = region or self._session.region_name or ("auto" if endpoint else "us-east-1")
            self.client = self._make_client(signed=not self.anonymous)
            self._unsigned = self.client if self.anonymous else self._make_client(signed=False)
        except (self._errors.BotoCoreError, ValueError) as error:
            raise ConfigurationError(f"{where}: {error}; set AWS_PROFILE and AWS_REGION right") from None

    @property
    def anonymous(self) -> bool:
        """Whether there are no credentials."""
        return self._credentials is None

    def close(self) -> None:
        """Give connections back."""
        self.client.close()
        self._unsigned.close()

    def base(self, place: Place) -> str:
        """The address below which plain HTTP finds the objects of a place, with a slash at its end; not signed."""
        with self._lock:
            if place not in self._bases:
                parameters = {"Bucket": place.bucket, "Key": place.key("x")}
                address = str(self._unsigned.generate_presigned_url("get_object", Params=parameters))
                self._bases[place] = address.removesuffix("x")
            return self._bases[place]

    def signature(self, address: str) -> dict[str, str]:
        """The headers of a GET that show who asks; none without credentials."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        if self._credentials is None:
            return {}
        request = AWSRequest(method="GET", url=address)
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(request)
        return dict(request.headers.items())

    def call(self, function: Callable[[], T], refused: Refused, name: str = "") -> T:
        """The function's result; its errors are boto3's or httpx's, and `name` stands in what becomes of them. Nothing
        is chained to what is raised: a client's error holds the request, and with it its signature.

        Raises:
            Transient: another try may help.
            SubnetError: what `refused` makes of anything else.
        """
        from botocore.parsers import ResponseParserError

        try:
            return function()
        except self._errors.ClientError as error:
            said, headers = error.response.get("Error", {}), _headers(error)
            message = f"{said.get('Message', '')} {f'for {name}' if name else ''}"
            failure = self._failure(status_of(error), str(said.get("Code", "")), message, headers, refused)
        except (
            self._errors.HTTPClientError,
            self._errors.ConnectionError,
            self._errors.IncompleteReadError,
            ResponseParserError,  # a proxy's HTML page
            httpx.RequestError,
        ) as error:
            failure = Transient(self.line(f"{self._where}: {type(error).__name__}: {error}"))
        except (self._errors.BotoCoreError, httpx.InvalidURL) as error:
            failure = refused(Refusal(0, "", self.line(f"{type(error).__name__}: {error}")))
        raise failure

    def failure_of(self, response: httpx.Response, refused: Refused, name: str = "") -> Transient | SubnetError:
        """What an answer to plain HTTP that is an error means; of its body only the beginning is read."""
        status, code = response.status_code, _code_of(response)
        region = response.headers.get("x-amz-bucket-region", "")
        if (status in _ELSEWHERE or code == _WRONG_REGION) and _REGION.fullmatch(region):
            self._move(region)
            return Transient(f"the bucket lies in {region}")
        return self._failure(status, code, f"for {name}" if name else "", response.headers, refused)

    def _move(self, region: str) -> None:
        """Go on in another region; several threads may learn of it at once."""
        with self._lock:
            if region != self._region:
                self._region = region
                self._unsigned = self._make_client(signed=False)
                self._bases.clear()

    def _failure(
        self, status: int, code: str, message: str, headers: Mapping[str, str], refused: Refused
    ) -> Transient | SubnetError:
        reason = self.line(f"HTTP {status} {code} {message}")
        if is_transient(status) or status == _CONFLICT or code in _TRANSIENT_CODES:
            return Transient(reason, retry_after(headers, self._clock.time()))
        return refused(Refusal(status, code, reason))

    def line(self, text: str) -> str:
        """The text as one line, without a credential."""
        line = " ".join(text.split())
        if self._credentials is not None:
            held = self._credentials.get_frozen_credentials()
            for secret in (held.access_key, held.secret_key, held.token):
                line = line.replace(secret, "***") if secret else line
        return line[:_REASON_CHARACTERS]

    def _make_client(self, *, signed: bool) -> Any:
        import botocore
        from botocore.config import Config

        config = Config(
            **self._timeouts,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path" if self._endpoint else "auto"},
            request_checksum_calculation="when_required",  # not every S3 knows the newer ones; Content-MD5 it does
            response_checksum_validation="when_required",
            signature_version=None if signed else botocore.UNSIGNED,
            max_pool_connections=_CONNECTIONS,
        )
        return self._session.client("s3", endpoint_url=self._endpoint, region_name=self._region, config=config)


def _code_of(response: httpx.Response) -> str:
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > _ERROR_BYTES:
            break
    found = _CODE.search(content)
    return found[1].decode() if found else ""


def status_of(error: Any) -> int:
    """The HTTP status of a ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _headers(error: Any) -> dict[str, str]:
    found: dict[str, str] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return found


def md5_of(content: bytes) -> str:
    """The value of Content-MD5."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def _local_session(boto3: Any) -> Any:
    """A session that knows the credentials of environment and profile, and asks no metadata service for others.

    At level DEBUG its library would write signatures and session tokens to a neuron's log.
    """
    library = logging.getLogger("botocore")
    library.setLevel(max(library.level, logging.INFO))
    session = boto3.session.Session()
    providers = session._session.get_component("credential_provider")
    for service in ("container-role", "iam-role"):
        providers.remove(service)
    return session
