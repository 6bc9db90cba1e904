"""An S3 server for tests: moto's S3 over real sockets, with rights, checked bodies and injected faults.

    with S3Server(keys={"AKIAWRITER": "write"}) as server:
        server.inject(Fault("PUT", r"/model.safetensors", status=503, times=2))
        ...  # boto3 client with endpoint_url=server.url
        server.requests  # what was asked, in order

    python -m tests.servers.s3 [PORT]        # by hand; any key may write to the bucket "models"

A fault's pattern is matched with `/bucket/key?query`. What moto lacks and S3 has is added here: a body that is not
what Content-MD5 or x-amz-checksum-sha256 says is refused (BadDigest), a request without credentials may read objects
of a public server (and list them if `listing` is set), and an unknown key id is refused. Signatures are not checked.

moto keeps its buckets in the process: one server at a time, which starts empty. A range read copies the whole
object, so keep objects under some 20 MB.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
import urllib.parse
from types import TracebackType
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.test import run_wsgi_app

from tests.servers.faults import Fault, Handler, Listener, Refusal, Request, State, serve_until_interrupted

__all__ = ["Fault", "Request", "S3Server"]

REGION = "us-east-1"
_KEY_ID = re.compile(r"Credential=([^/]+)/")
_CODES = {500: "InternalError", 503: "SlowDown", 429: "TooManyRequests", 403: "AccessDenied"}
_DUMMY = "AWS4-HMAC-SHA256 Credential=dummy/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class S3Server(State):
    """The server, its faults and its buckets.

    `keys` maps an access key id to the right it gives, `read` or `write`; None lets any key write. Whoever has no
    credentials may read if `public`, and list if `listing`.
    """

    def __init__(
        self,
        keys: dict[str, str] | None = None,
        buckets: tuple[str, ...] = ("models",),
        public: bool = True,
        listing: bool = True,
        port: int = 0,
    ) -> None:
        super().__init__()
        self.keys, self.public, self.listing = keys, public, listing
        self.app: Any = DomainDispatcherApplication(create_backend_app)
        self._buckets = buckets
        self._listener = Listener(self, _Handler, port=port)

    @property
    def url(self) -> str:
        return self._listener.url

    def client(self, key_id: str = "AKIATEST", secret: str = "secret") -> Any:
        """A boto3 client of this server, without retries."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def objects(self, bucket: str = "models") -> dict[str, bytes]:
        """What the bucket holds, by key."""
        held = self._backend.buckets[bucket].keys
        return {key: held[key].value for key in sorted(held)}

    def put(self, key: str, content: bytes, bucket: str = "models") -> None:
        """Place an object past all rights and faults."""
        self._backend.put_object(bucket, key, content)

    def remove(self, key: str, bucket: str = "models") -> None:
        """Take an object away past all rights and faults."""
        self._backend.delete_object(bucket, key)

    def unfinished(self, bucket: str = "models") -> list[str]:
        """The keys of multipart uploads that were begun and neither completed nor aborted."""
        return [upload.key_name for upload in self._backend.buckets[bucket].multiparts.values()]

    @property
    def _backend(self) -> Any:
        return s3_backends["123456789012"]["aws"]

    def __enter__(self) -> S3Server:
        self._backend.reset()
        for bucket in self._buckets:
            self._backend.create_bucket(bucket, REGION)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        self._listener.stop()
        self._backend.reset()


class _Handler(Handler):
    def who(self) -> str | None:
        found = _KEY_ID.search(self.headers.get("Authorization") or "") or re.search(
            r"X-Amz-Credential=([^%/&]+)", self.query
        )
        return found[1] if found else None

    def target(self) -> str:
        path = urllib.parse.unquote(self.path)
        return f"{path}?{self.query}" if self.query else path

    def carry_out(self) -> None:
        self._require_right()
        self._require_sound()
        with self.server.hub.lock:  # so that a conditional write is one step
            body, status, headers = run_wsgi_app(self.server.hub.app, self._environ(), buffered=True)
        content = b"".join(body)
        answer = {_header(name): value for name, value in headers.items() if name.lower() not in ("connection", "date")}
        if self.command != "HEAD":
            answer["Content-Length"] = str(len(content))
        self.send(content, int(status.split()[0]), answer)

    def refuse(self, refusal: Refusal) -> None:
        code = _CODES.get(refusal.status, "InvalidRequest") if refusal.code == "Injected" else refusal.code
        xml = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{refusal}</Message></Error>'
        self.send(xml.encode(), refusal.status, {"Content-Type": "application/xml", **refusal.headers})

    def _require_right(self) -> None:
        state: S3Server = self.server.hub
        reading = self.command in ("GET", "HEAD")
        if self.token is None:
            listing = reading and self.path.strip("/").count("/") == 0
            if reading and state.public and (state.listing or not listing):
                return
            raise Refusal(403, "AccessDenied", "Access Denied")
        right = "write" if state.keys is None else state.keys.get(self.token)
        if right is None:
            # S3 repeats the key id in a field of its own; a proxy may repeat more
            raise Refusal(403, "InvalidAccessKeyId", f"The AWS Access Key Id {self.token} does not exist")
        if not reading and right != "write":
            raise Refusal(403, "AccessDenied", "Access Denied")

    def _require_sound(self) -> None:
        """Refuse a body that is not what its sender hashed."""
        md5 = base64.b64encode(hashlib.md5(self.raw).digest()).decode()
        sha256 = base64.b64encode(hashlib.sha256(self.raw).digest()).decode()
        for header, found in (("Content-MD5", md5), ("x-amz-checksum-sha256", sha256)):
            stated = self.headers.get(header)
            if stated is not None and stated != found:
                raise Refusal(400, "BadDigest", f"The {header} you specified did not match what we received.")

    def _environ(self) -> dict[str, Any]:
        host, port = self.server.server_address[:2]
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": urllib.parse.unquote(self.path, "latin-1"),
            "QUERY_STRING": self.query,
            "RAW_URI": f"{self.path}?{self.query}" if self.query else self.path,
            "SERVER_NAME": str(host),
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(self.raw)),
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(self.raw),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in self.headers.items():
            if name.lower() not in ("content-length", "content-type", "transfer-encoding", "expect"):
                environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
        environ.setdefault("HTTP_AUTHORIZATION", _DUMMY)  # rights were decided above
        return environ


def _header(name: str) -> str:
    return name.title() if name.lower().startswith("content-") else name


def main() -> None:
    """Serve until Ctrl-C."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with S3Server(port=port) as server:
        serve_until_interrupted(server.url, "s3://models")


if __name__ == "__main__":
    main()
