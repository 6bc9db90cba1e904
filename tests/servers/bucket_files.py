"""A public bucket of files on the disk, lean enough to measure readers with: GET with ranges, and nothing else.

    python -m tests.servers.bucket_files FOLDER      # prints its address; FOLDER/bucket/key is at /bucket/key

It speaks what S3's GetObject says to somebody without credentials (status, headers, XML of an error), keeps connections
open, and is one process with one thread. Faults, rights and writing are in s3.py, whose moto answers some 300 requests
a second.
"""

from __future__ import annotations

import asyncio
import re
import sys
import urllib.parse
from email.utils import formatdate
from pathlib import Path

_RANGE = re.compile(rb"\r\n[Rr]ange: *bytes=(\d*)-(\d*)\r\n")
_ERROR = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{}</Code><Message>{}</Message></Error>'
_REASONS = {200: "OK", 206: "Partial Content", 400: "Bad Request", 404: "Not Found", 416: "Range Not Satisfiable"}
_LONGEST_REQUEST = 1 << 14


class _Connection(asyncio.Protocol):
    """Answers the requests of one connection in their order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            request, self._received = self._received[: end + 2], self._received[end + 4 :]
            self._answer(request)
        if len(self._received) > _LONGEST_REQUEST:
            self._transport.close()

    def _answer(self, request: bytes) -> None:
        method, target, _ = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        path = self._folder / urllib.parse.unquote(target.partition("?")[0]).lstrip("/")
        if method != "GET":
            return self._refuse(400, "NotImplemented", method)
        if ".." in path.parts or not path.is_file():
            return self._refuse(404, "NoSuchKey", "The specified key does not exist.")
        size, asked = path.stat().st_size, _RANGE.search(request)
        first, last = _limits(size, *asked.groups()) if asked else (0, size - 1)
        if first > last and size:
            return self._refuse(416, "InvalidRange", "The requested range is not satisfiable")
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last + 1 - first)
        headers = (
            f'ETag: "{path.stat().st_mtime_ns:x}"\r\nLast-Modified: {formatdate(path.stat().st_mtime, usegmt=True)}\r\n'
        )
        headers += f"Content-Range: bytes {first}-{last}/{size}\r\n" if asked else ""
        self._send(206 if asked else 200, "binary/octet-stream", headers, content)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, "application/xml", "", _ERROR.format(code, message).encode())

    def _send(self, status: int, kind: str, headers: str, content: bytes) -> None:
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
        self._transport.write(f"{head}{headers}Accept-Ranges: bytes\r\n\r\n".encode() + content)


def _limits(size: int, first: bytes, last: bytes) -> tuple[int, int]:
    """The first and the last byte of `bytes=first-last`, `first-` or `-count` (RFC 9110, 14.1.2)."""
    if not first:
        return max(0, size - int(last or b"0")), size - 1
    return int(first), min(int(last or size), size - 1)


async def serve(folder: Path) -> None:
    """Until the process is ended."""
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(folder), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201  # whoever started this reads it
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
