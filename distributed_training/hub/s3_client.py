"""The blocking calls to an S3 bucket (Amazon, R2, any other) that a release needs, and where its errors are translated.

Every call is one try. It returns, or raises `Transient` (worth another try), or a HubError (another try gives the
same). Writing and listing go through boto3. Reading is plain HTTP, signed if there are credentials: so it is bounded
in size and time, resumed where it broke off, and works on a public address that knows nothing of S3.

Whose bucket it is, and what its errors mean, is in services/s3.py.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import httpx

from distributed_training.hub.download import Body, Receiver, Timeouts
from distributed_training.hub.hub import FileDigest
from distributed_training.services.s3 import Place, Refusal, S3Connection, md5_of, status_of
from template.clock import Clock
from template.errors import HubError

P = ParamSpec("P")
T = TypeVar("T")

_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
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
class S3Address(Place):
    """Where a hub's objects lie.

    `endpoint`: address of the S3 API, None for Amazon's own; `region`: None for that of profile or environment;
    `public_url`: where anybody reads `<prefix>/<key>` over plain HTTP, None if that is the S3 API itself.
    """

    endpoint: str | None
    region: str | None
    public_url: str | None


class S3Client:
    """One prefix of one bucket.

    Raises:
        ConfigurationError: a profile that is not there, or no region.
    """

    def __init__(self, address: S3Address, *, timeouts: Timeouts, clock: Clock) -> None:
        import botocore.exceptions  # only where this hub is used

        self._address = address
        self._errors = botocore.exceptions
        self._receiver = Receiver(timeouts.download, clock)
        self._connection = S3Connection(
            address.url,
            endpoint=address.endpoint,
            region=address.region,
            connect=timeouts.connect,
            idle=timeouts.idle,
            clock=clock,
        )
        self._s3 = self._connection.client
        # nothing that was signed follows a redirect to another host
        self._reader = httpx.Client(
            timeout=httpx.Timeout(timeouts.idle, connect=timeouts.connect), follow_redirects=self.anonymous
        )
        for connections in (self._connection, self._reader):  # a hub lives as long as its neuron
            weakref.finalize(self, connections.close)

    @property
    def anonymous(self) -> bool:
        """Whether there are no credentials."""
        return self._connection.anonymous

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
        response = self._reader.send(self._request(name, offset), stream=True)
        try:
            if response.status_code not in (200, 206):
                raise self._connection.failure_of(response, self._refused)
            yield Body(response.iter_raw(), resumed=response.status_code == 206)
        finally:
            response.close()

    def _request(self, name: str, offset: int) -> httpx.Request:
        address, headers = self._public_address(name), {"accept-encoding": "identity"}  # the bytes as they lie there
        if offset:
            headers["range"] = f"bytes={offset}-"
        if address is None:
            address = f"{self._connection.base(self._address)}{name}"
            headers |= self._connection.signature(address)
        return self._reader.build_request("GET", address, headers=headers)

    def _public_address(self, name: str) -> str | None:
        """Where anybody may read an object, None if only the S3 API is known or this neuron may use it."""
        if self._address.public_url is None or not self.anonymous:
            return None
        return f"{self._address.public_url}/{self._address.key(name)}"

    def _stored(self, key: str) -> Stored | None:
        try:
            found = self._s3.head_object(Bucket=self._address.bucket, Key=key)
        except self._errors.ClientError as error:
            if status_of(error) == 404:
                return None
            raise
        return int(found["ContentLength"]), found.get("Metadata", {}).get(_DIGEST)

    def _put(self, name: str, content: bytes, **more: Any) -> None:
        key = self._address.key(name)
        self._s3.put_object(Bucket=self._address.bucket, Key=key, Body=content, ContentMD5=md5_of(content), **more)

    def _put_new(self, name: str, content: bytes, content_type: str) -> bool:
        try:
            self._put(name, content, ContentType=content_type, IfNoneMatch="*")
        except self._errors.ClientError as error:
            if status_of(error) != 412:
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
            ContentMD5=md5_of(content),
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
            if status_of(error) != 404:
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
        return self._connection.call(lambda: function(*args, **kwargs), self._refused)

    def _refused(self, refusal: Refusal) -> HubError:
        status, code, reason = refusal.status, refusal.code, refusal.reason
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
