"""The blocking calls to an S3 bucket (Amazon, R2, any other) that a release needs, and where its errors are translated.

Every call is one try. It returns, or raises `Transient` (worth another try), or a HubError (another try gives the
same). Writing and listing go through boto3. Reading is plain HTTP, signed if there are credentials: so it is bounded
in size and time, resumed where it broke off, and works on a public address that knows nothing of S3.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) or a profile
(AWS_PROFILE, ~/.aws); nothing else is asked, no metadata service. Without any, requests are anonymous. What is sent
carries Content-MD5, so that a body damaged on its way is refused and never stored.
"""

from __future__ import annotations

import base64
import hashlib
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from distributed_training.hub.attempts import Transient
from distributed_training.hub.download import Body, Receiver, Timeouts
from distributed_training.hub.hub import FileDigest
from distributed_training.hub.retry import retry_after
from template.clock import Clock
from template.errors import ConfigurationError, HubError

if TYPE_CHECKING:
    import httpx

P = ParamSpec("P")
T = TypeVar("T")

_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
# a body that did not arrive as it was sent: S3 says 400, and the next try may arrive
_TRANSIENT_CODES = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"})
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_REASON_CHARACTERS = 300
_ERROR_BYTES = 8192
_DIGEST = "sha256"  # the name of an object's metadata
Stored = tuple[int, str | None]  # bytes, sha256


class Absent(HubError):
    """There is no such object or upload."""


class Denied(HubError):
    """These credentials, or none, have no right to this. S3 also says so of an object that is not there to somebody
    who may not list.
    """


@dataclass(frozen=True, kw_only=True)
class S3Address:
    """Where a hub's objects lie.

    `endpoint`: address of the S3 API, None for Amazon's own; `region`: None for that of profile or environment;
    `public_url`: where anybody reads `<prefix>/<key>` over plain HTTP, None if that is the S3 API itself.
    """

    bucket: str
    prefix: str
    endpoint: str | None
    region: str | None
    public_url: str | None

    @property
    def url(self) -> str:
        """The hub's name."""
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    def key(self, name: str) -> str:
        """The object that the hub calls `name`."""
        return f"{self.prefix}/{name}" if self.prefix else name


class S3Client:
    """One prefix of one bucket.

    Raises:
        ConfigurationError: a profile that is not there, or no region.
    """

    def __init__(self, address: S3Address, *, timeouts: Timeouts, clock: Clock) -> None:
        import boto3  # with httpx and botocore only where this hub is used
        import botocore.exceptions
        import httpx

        self._address = address
        self._errors = botocore.exceptions
        self._http = httpx
        self._clock = clock
        self._receiver = Receiver(timeouts.download, clock)
        try:
            self._session = _local_session(boto3)
            self._credentials = self._session.get_credentials()
            self._region = address.region or self._session.region_name or ("auto" if address.endpoint else "us-east-1")
            self._s3 = self._make_client(timeouts, signed=self._credentials is not None)
            self._addresses = self._make_client(timeouts, signed=False)
        except (self._errors.BotoCoreError, ValueError) as error:
            raise ConfigurationError(f"{address.url}: {error}; set AWS_PROFILE and AWS_REGION right") from None
        # nothing that was signed follows a redirect to another host
        self._reader = httpx.Client(
            timeout=httpx.Timeout(timeouts.idle, connect=timeouts.connect), follow_redirects=self._credentials is None
        )
        for connections in (self._s3, self._reader):  # a hub lives as long as its neuron and has no end of its own
            weakref.finalize(self, connections.close)

    @property
    def anonymous(self) -> bool:
        """Whether there are no credentials."""
        return self._credentials is None

    def names(self, folder: str) -> list[str]:
        """The objects directly in `folder` ("releases/"), without the folder's name, and its folders, with a slash.

        Raises Denied.
        """
        return self._call(self._names, self._address.key(folder))

    def small(self, name: str) -> bytes:
        """An object of at most 1 MiB. Raises Absent or Denied."""
        return self._call(self._receiver.small, f"{self._address.url}/{name}", partial(self._stream, name))

    def download(self, name: str, file: FileDigest, folder: Path) -> None:
        """Download and verify an object. A partial file stays for the next try, a wrong one does not."""
        self._call(self._receiver.file, file, folder / file.name, partial(self._stream, name))

    def stored(self, name: str) -> Stored | None:
        """Bytes and sha256 of an object as its writer stated them, None if it is not there."""
        return self._call(self._stored, self._address.key(name))

    def put(self, name: str, content: bytes, content_type: str, sha256: str | None = None) -> None:
        """Write an object whole; whatever is there is replaced."""
        metadata = {_DIGEST: sha256} if sha256 else {}
        self._call(self._put, name, content, ContentType=content_type, Metadata=metadata)

    def put_new(self, name: str, content: bytes, content_type: str) -> bool:
        """Write an object that must not be there yet; false if it is. Of any number at once, one gets true."""
        return self._call(self._put_new, name, content, content_type)

    def begin(self, name: str, sha256: str) -> str:
        """Begin to upload an object in parts; what to call the upload."""
        return self._call(self._begin, self._address.key(name), sha256)

    def part(self, name: str, upload: str, number: int, content: bytes) -> str:
        """Upload a part (from 1 on); its tag."""
        return self._call(self._part, self._address.key(name), upload, number, content)

    def complete(self, name: str, upload: str, tags: list[str]) -> None:
        """Let an object of these parts appear. Raises Absent if the upload is gone: done before, or aborted."""
        self._call(self._complete, self._address.key(name), upload, tags)

    def abort(self, name: str, upload: str) -> None:
        """Forget an upload; that it is gone is fine."""
        self._call(self._abort, self._address.key(name), upload)

    def remove(self, name: str) -> None:
        """Remove an object; that it is not there is fine."""
        self._call(self._s3.delete_object, Bucket=self._address.bucket, Key=self._address.key(name))

    def remove_folder(self, folder: str) -> None:
        """Remove all objects whose name begins with `folder` ("models/7/"), and uploads begun and never ended."""
        self._call(self._remove_folder, self._address.key(folder))

    # -- how each is done

    def _make_client(self, timeouts: Timeouts, signed: bool) -> Any:
        import botocore
        from botocore.config import Config

        config = Config(
            connect_timeout=timeouts.connect,
            read_timeout=timeouts.idle,
            retries={"total_max_attempts": 1},  # tries are counted in one place
            s3={"addressing_style": "path" if self._address.endpoint else "auto"},
            request_checksum_calculation="when_required",  # not every S3 knows the newer ones; Content-MD5 it does
            response_checksum_validation="when_required",
            signature_version=None if signed else botocore.UNSIGNED,
        )
        return self._session.client("s3", endpoint_url=self._address.endpoint, region_name=self._region, config=config)

    def _names(self, prefix: str) -> list[str]:
        names: list[str] = []
        pages = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._address.bucket, Prefix=prefix, Delimiter="/"
        )
        for page in pages:
            names += [item["Key"][len(prefix) :] for item in page.get("Contents", ())]
            names += [item["Prefix"][len(prefix) :] for item in page.get("CommonPrefixes", ())]
        return names

    @contextmanager
    def _stream(self, name: str, offset: int) -> Iterator[Body]:
        response = self._reader.send(self._request(self._address.key(name), offset), stream=True)
        try:
            if response.status_code not in (200, 206):
                raise self._refused(response)
            yield Body(response.iter_raw(), resumed=response.status_code == 206)
        finally:
            response.close()

    def _request(self, key: str, offset: int) -> httpx.Request:
        address, headers = self._public_address(key), {"accept-encoding": "identity"}  # the bytes as they lie there
        if offset:
            headers["range"] = f"bytes={offset}-"
        if address is None:
            parameters = {"Bucket": self._address.bucket, "Key": key}
            address = str(self._addresses.generate_presigned_url("get_object", Params=parameters))
            headers |= self._signature(address)
        return self._reader.build_request("GET", address, headers=headers)

    def _public_address(self, key: str) -> str | None:
        """Where anybody may read an object, None if only the S3 API is known or this neuron may use it."""
        if self._address.public_url is None or self._credentials is not None:
            return None
        return f"{self._address.public_url}/{key}"

    def _signature(self, address: str) -> dict[str, str]:
        """The headers that show who asks."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        if self._credentials is None:
            return {}
        request = AWSRequest(method="GET", url=address)
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(request)
        return dict(request.headers.items())

    def _stored(self, key: str) -> Stored | None:
        try:
            found = self._s3.head_object(Bucket=self._address.bucket, Key=key)
        except self._errors.ClientError as error:
            if _status(error) == 404:
                return None
            raise
        return int(found["ContentLength"]), found.get("Metadata", {}).get(_DIGEST)

    def _put(self, name: str, content: bytes, **more: Any) -> None:
        key = self._address.key(name)
        self._s3.put_object(Bucket=self._address.bucket, Key=key, Body=content, ContentMD5=_md5(content), **more)

    def _put_new(self, name: str, content: bytes, content_type: str) -> bool:
        try:
            self._put(name, content, ContentType=content_type, IfNoneMatch="*")
        except self._errors.ClientError as error:
            if _status(error) != 412:
                raise
            return False
        return True

    def _begin(self, key: str, sha256: str) -> str:
        begun = self._s3.create_multipart_upload(Bucket=self._address.bucket, Key=key, Metadata={_DIGEST: sha256})
        return str(begun["UploadId"])

    def _part(self, key: str, upload: str, number: int, content: bytes) -> str:
        done = self._s3.upload_part(
            Bucket=self._address.bucket,
            Key=key,
            UploadId=upload,
            PartNumber=number,
            Body=content,
            ContentMD5=_md5(content),
        )
        return str(done["ETag"])

    def _complete(self, key: str, upload: str, tags: list[str]) -> None:
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, start=1)]
        self._s3.complete_multipart_upload(
            Bucket=self._address.bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._s3.abort_multipart_upload(Bucket=self._address.bucket, Key=key, UploadId=upload)
        except self._errors.ClientError as error:
            if _status(error) != 404:
                raise

    def _remove_folder(self, prefix: str) -> None:
        bucket = self._address.bucket
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                self._s3.delete_object(Bucket=bucket, Key=item["Key"])
        for page in self._s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for upload in page.get("Uploads", ()):
                self._abort(upload["Key"], upload["UploadId"])

    # -- errors

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        from botocore.parsers import ResponseParserError

        try:
            return function(*args, **kwargs)
        except self._errors.ClientError as error:
            said = error.response.get("Error", {})
            headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            failure = self._translate(_status(error), str(said.get("Code", "")), str(said.get("Message", "")), headers)
        except (
            self._errors.HTTPClientError,
            self._errors.ConnectionError,
            ResponseParserError,  # a proxy's HTML page
            self._http.RequestError,
        ) as error:
            failure = Transient(f"{self._address.url}: {self._reason(f'{type(error).__name__}: {error}')}")
        except (self._errors.BotoCoreError, self._http.InvalidURL) as error:
            failure = HubError(f"{self._address.url}: {self._reason(f'{type(error).__name__}: {error}')}")
        raise failure  # outside the handler, so that nothing is chained

    def _refused(self, response: httpx.Response) -> Transient | HubError:
        """What an answer to a reader means; of its body only the beginning is read."""
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > _ERROR_BYTES:
                break
        code = _CODE.search(content)
        return self._translate(response.status_code, code[1].decode() if code else "", "", response.headers)

    def _translate(self, status: int, code: str, message: str, headers: Mapping[str, str]) -> Transient | HubError:
        reason = self._reason(f"HTTP {status} {code} {message}")
        if status in _TRANSIENT_STATUS or status >= 500 or code in _TRANSIENT_CODES:
            return Transient(reason, retry_after(headers, self._clock.time()))
        if code == "NoSuchBucket":
            return HubError(f"there is no bucket {self._address.bucket} at {self._where}: make it, or check the name")
        if status == 404:
            return Absent(f"{self._address.url}: {reason}")
        if status in (401, 403):
            whose = "anonymous access (no AWS credentials are set)" if self.anonymous else "the AWS credentials"
            return Denied(
                f"{whose} are refused by {self._address.url}: publishing needs the rights to list, read, write and "
                f"delete below that prefix, reading a bucket that is not public the right to read ({reason})"
            )
        if status in (301, 307, 400) and code in ("PermanentRedirect", "AuthorizationHeaderMalformed", ""):
            return HubError(
                f"{self._address.url}: {reason}: set --hub.region and --hub.endpoint to where the bucket is"
            )
        return HubError(f"{self._address.url}: {reason}")

    @property
    def _where(self) -> str:
        return self._address.endpoint or "Amazon S3"

    def _reason(self, text: str) -> str:
        """One line, without a credential."""
        line = " ".join(text.split())
        if self._credentials is not None:
            held = self._credentials.get_frozen_credentials()
            for secret in (held.access_key, held.secret_key, held.token):
                line = line.replace(secret, "***") if secret else line
        return line[:_REASON_CHARACTERS]


def _local_session(boto3: Any) -> Any:
    """A session that knows the credentials of environment and profile, and asks no metadata service for others."""
    session = boto3.session.Session()
    providers = session._session.get_component("credential_provider")
    for service in ("container-role", "iam-role"):
        providers.remove(service)
    return session


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
