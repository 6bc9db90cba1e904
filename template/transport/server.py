"""uvicorn on one socket, inside the neuron's event loop: bounded connections, slow peers cut off, no signal handlers.

uvicorn bounds how long a connection may be idle between requests. What it leaves open is bounded here: connections in
all and from one place, the time until a request's headers are complete, and the time a peer may refuse to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from template.errors import ConfigurationError
from template.transport.policy import address_key
from template.transport.refusal import STATUS, Reason

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_HEADER_BYTES = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one server grants its peers: numbers of connections, and seconds."""

    connections: int
    connections_per_address: int
    header_s: float
    write_s: float
    idle_s: float
    close_s: float


class Crowd:
    """Counts open connections, in all and by place. Pure."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._by_place: Counter[str] = Counter()

    def enter(self, place: str) -> bool:
        """Count one more connection; False, and not counted, if that would be too many."""
        if self._by_place.total() >= self._bounds.connections:
            return False
        if self._by_place[place] >= self._bounds.connections_per_address:
            return False
        self._by_place[place] += 1
        return True

    def leave(self, place: str) -> None:
        self._by_place[place] -= 1
        if self._by_place[place] <= 0:
            del self._by_place[place]


class _Connection(H11Protocol):  # type: ignore[misc]  # mypy does not follow uvicorn (pyproject.toml)
    """One peer. Closed when its headers, or its reading of our answer, take too long."""

    def __init__(self, *, crowd: Crowd, bounds: Bounds, turned_away: Callable[[str], None], **uvicorn_arguments: Any):
        super().__init__(**uvicorn_arguments)
        self._crowd = crowd
        self._bounds = bounds
        self._turned_away = turned_away
        self._place: str | None = None
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        peer = transport.get_extra_info("peername")
        host = peer[0] if peer else "unknown"
        place = address_key(host)
        if not self._crowd.enter(place):
            self._turned_away(host)
            transport.write(_canned(Reason.TOO_MANY_CONNECTIONS, "too many connections"))
            transport.close()
            return
        self._place = place
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._place is None:
            return
        self._crowd.leave(self._place)
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_request():
            self._cancel_header_timer()
        elif self._header_timer is None and not self.transport.is_closing():
            self._await_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._bounds.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_headers(self) -> None:
        self._header_timer = self.loop.call_later(self._bounds.header_s, self._headers_late)

    def _headers_late(self) -> None:
        self._header_timer = None
        if not self._in_request():
            self.transport.abort()

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _cancel_timers(self) -> None:
        self._cancel_header_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _canned(reason: Reason, detail: str) -> bytes:
    """An answer for a connection that is not let in: nothing of it was read."""
    body = json.dumps({"reason": reason, "detail": detail}).encode()
    head = (
        f"HTTP/1.1 {STATUS[reason]} Service Unavailable\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


class _Uvicorn(uvicorn.Server):  # type: ignore[misc]  # mypy does not follow uvicorn (pyproject.toml)
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the neuron."""
        yield


def bind(ip: str, port: int) -> socket.socket:
    """A listening address; `ConfigurationError` naming the flag if it cannot be had."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol number is given; with it on, each answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ip, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigurationError(_why_not(ip, port, error)) from error
    return listener


def _why_not(ip: str, port: int, error: OSError | OverflowError) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is in use: choose another one with --axon.port, "
            f"or see who holds it with: ss -ltnp 'sport = :{port}'"
        )
    if isinstance(error, OSError) and error.errno == errno.EACCES:
        return f"no right to listen on port {port}: choose one above 1023 with --axon.port"
    return f"cannot listen on {ip} port {port} ({error}): set --axon.ip to an address of this machine, or --axon.port"


class Server:
    """Serves `app` from `start` to `close`, which takes about `bounds.close_s` at most."""

    def __init__(self, app: App, bounds: Bounds, turned_away: Callable[[str], None]) -> None:
        """`turned_away` is called with the address of each connection that is over the limits."""
        self._bounds = bounds
        protocol = functools.partial(_Connection, crowd=Crowd(bounds), bounds=bounds, turned_away=turned_away)
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_keep_alive=bounds.idle_s,
                timeout_graceful_shutdown=bounds.close_s,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self, listener: socket.socket) -> None:
        """Take over a bound socket; returns once connections are accepted."""
        self._task = asyncio.create_task(self._uvicorn.serve(sockets=[listener]), name="axon")
        while not self._uvicorn.started:
            if self._task.done():
                await self._task
                raise RuntimeError("uvicorn ended before it began to serve")
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Stop accepting, let running requests end for `close_s`, then cut them off. Idempotent."""
        if self._task is None:
            return
        self._uvicorn.should_exit = True
        try:
            await self._task
        finally:
            self._task = None
            state = self._uvicorn.server_state
            if state.tasks:  # those that uvicorn cancelled: let them say so to their peers
                await asyncio.wait(set(state.tasks), timeout=self._bounds.close_s)
            for connection in list(state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)
