"""What the HTTP servers for tests have in common: a record of what was asked, injected faults, and a clean stop.

A server is a `State` (what it keeps, and its faults), one `Listener` a port, and a `Handler` that carries out one
request; see `hub.py` and `s3.py`.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

HELD_SECONDS = 10.0  # at most; a test that forgets to let go must not hang


@dataclass
class Fault:
    """What goes wrong with the next `times` requests, after the first `skip`, whose method and path (a regular
    expression) match.

    The request waits until the event `hold` is set (at most ten seconds), if there is one; then `status` (with
    `headers`) instead of an answer; or `close` the connection, `before` the request is carried out or `after` it; or
    `flip` one bit of the answer's body; or `cut` the body after so many bytes; or `stall` after so many bytes of the
    body, until `hold` is set. Of a request's own body: `cut_request` reads so many bytes and closes the connection,
    `flip_request` changes one bit of what arrives. `reached` is set when it happens.
    """

    method: str
    path: str
    times: int = 1
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "injected fault"
    close: Literal["before", "after"] | None = None
    flip: bool = False
    cut: int | None = None
    stall: int | None = None
    cut_request: int | None = None
    flip_request: bool = False
    hold: threading.Event | None = None
    reached: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Request:
    """One request that arrived; `token` is who it said it was (None: it did not say)."""

    method: str
    path: str
    token: str | None
    headers: dict[str, str]
    query: str = ""


class Refusal(Exception):
    """An error answer with the headers that the client goes by."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


class State:
    """What was asked, in order, and what is to go wrong."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def inject(self, fault: Fault) -> None:
        with self.lock:
            self.faults.append(fault)

    def fault_for(self, method: str, path: str) -> Fault | None:
        """The first fault in force for a request, used up by one."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def heal(self) -> None:
        """No more faults; whoever is held goes on."""
        with self.lock:
            for fault in self.faults:
                if fault.hold:
                    fault.hold.set()
            self.faults.clear()

    def asked(self, method: str, path: str) -> int:
        """How many requests matched."""
        return sum(r.method == method and re.search(path, r.path) is not None for r in self.requests)


class Listener(ThreadingHTTPServer):
    """One port. Stopping it closes every connection, so that no thread is left."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, hub: Any, handler: type[Handler], role: str = "", port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.hub, self.role = hub, role
        self.open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in tuple(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client was first
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is printed."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request: its body is read, its fault found, then it is carried out by a subclass."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def carry_out(self) -> None:
        """Answer a request that nothing is wrong with; raise Refusal to refuse it."""
        raise NotImplementedError

    def who(self) -> str | None:
        """Who the request says it is."""
        raise NotImplementedError

    def target(self) -> str:
        """What a fault's pattern is matched with."""
        return self.path

    def refuse(self, refusal: Refusal) -> None:
        """Send an error in the server's own form."""
        raise NotImplementedError

    def log_message(self, format: str, *args: Any) -> None:
        return

    def handle_one(self) -> None:
        self.path, _, self.query = self.path.partition("?")
        state: State = self.server.hub
        self.fault = state.fault_for(self.command, self.target())
        self.token = self.who()
        headers = {name.lower(): value for name, value in self.headers.items()}
        state.requests.append(Request(self.command, self.path, self.token, headers, self.query))
        try:
            if self._read_body():
                self._answer()
        except Refusal as refusal:
            self.fault = None
            self.refuse(refusal)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has gone

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one  # noqa: N815  # names that http.server wants

    def _read_body(self) -> bool:
        """Whether the request arrived."""
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.fault
        if fault and fault.cut_request is not None:
            fault.reached.set()
            self.rfile.read(min(length, fault.cut_request))
            self.hang_up()
            return False
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            self.raw = self._chunks()
        else:
            self.raw = self.rfile.read(length) if length else b""
        if fault and fault.flip_request:
            self.raw = bytes([self.raw[0] ^ 1]) + self.raw[1:]
        return True

    def _chunks(self) -> bytes:
        content = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(content)

    def _answer(self) -> None:
        fault = self.fault
        if fault:
            fault.reached.set()
        if fault and fault.hold and fault.stall is None:
            fault.hold.wait(HELD_SECONDS)
        if fault and fault.status is not None:
            raise Refusal(fault.status, "Injected", fault.message, fault.headers)
        if fault and fault.close == "before":
            return self.hang_up()
        self.carry_out()

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with bytes, or with anything else as JSON; this is where an answer's faults happen."""
        fault = self.fault
        if fault and fault.close == "after":
            return self.hang_up()
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        if fault and fault.flip:
            content = bytes([content[0] ^ 1]) + content[1:]
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.cut is not None:
            self.wfile.write(content[: fault.cut])
            return self.hang_up()
        if fault and fault.stall is not None:
            return self._stall(content, fault)
        self.wfile.write(content)

    def _stall(self, content: bytes, fault: Fault) -> None:
        """Go silent in the middle of the body."""
        assert fault.stall is not None
        self.wfile.write(content[: fault.stall])
        self.wfile.flush()
        if fault.hold:
            fault.hold.wait(HELD_SECONDS)
        self.hang_up()


def serve_until_interrupted(*addresses: str) -> None:
    """Print the addresses of servers that run, and wait for Ctrl-C."""
    print(*addresses, flush=True)  # noqa: T201  # whoever started this reads it
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
