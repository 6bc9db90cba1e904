"""The side that answers: an HTTP server in which every request passes the same gates in the same order.

    connection limit, rate of the address, size cap, signature, registration, permit, replay, rate of the hotkey,
    synapse, body, run id, handler

A request that fails a gate is refused with `{"reason": word, "detail": text}` and an HTTP status, and reaches nothing
behind that gate. From the signature on, refusals are signed like answers are.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from fastapi import FastAPI
from pydantic import ValidationError

from template.clock import Clock, SystemClock
from template.errors import ConfigurationError, Refused
from template.telemetry import Event, Telemetry
from template.transport.envelope import (
    ALLOWED_SKEW_S,
    MAX_AGE_S,
    SignedRequest,
    Signer,
    require_sr25519,
    sign_answer,
    verify_request,
)
from template.transport.policy import NANO, Buckets, Caller, Directory, NonceStore, Policy, Rate
from template.transport.refusal import STATUS, Reason, printable, refuse
from template.transport.server import Bounds, Receive, Scope, Send, Server, bind
from template.transport.synapse import Request, Response

logger = logging.getLogger(__name__)

MAX_NAME = 64
LINGER_S = 0.5
LINGER_BYTES = 256 * 1024
OF_THE_VIEW = frozenset({Reason.UNREGISTERED, Reason.NO_PERMIT})  # refusals that a newer view of the subnet may lift

AnyRequest = TypeVar("AnyRequest", bound=Request)
Handler = Callable[[AnyRequest, Caller], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class AxonConfig:
    """Where to listen, what to publish on the chain, and what one caller may use.

    `ip`, `port`: where to listen; port 0 takes a free one. `external_ip`, `external_port`: what others can reach,
    where that differs. Rates are requests per second with a burst; `*_s` are seconds; `max_body_bytes` one request.
    """

    ip: str = "0.0.0.0"
    port: int = 8091
    external_ip: str | None = None
    external_port: int | None = None
    max_body_bytes: int = 2 * 1024 * 1024
    address_rate: float = 100.0
    address_burst: float = 200.0
    hotkey_rate: float = 20.0
    hotkey_burst: float = 40.0
    max_connections: int = 256
    max_connections_per_address: int = 64
    header_s: float = 5.0
    body_s: float = 10.0
    write_s: float = 60.0
    idle_s: float = 30.0
    close_s: float = 1.0

    def __post_init__(self) -> None:
        for name, port in (("port", self.port), ("external_port", self.external_port)):
            if port is not None and not 0 <= port <= 65535:
                raise ConfigurationError(f"--axon.{name} is {port}: use a port between 0 and 65535")
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, int | float) and not name.endswith("port") and value <= 0:
                raise ConfigurationError(f"--axon.{name} is {value}: use a number above 0")

    @property
    def bounds(self) -> Bounds:
        return Bounds(
            connections=self.max_connections,
            connections_per_address=self.max_connections_per_address,
            header_s=self.header_s,
            write_s=self.write_s,
            idle_s=self.idle_s,
            close_s=self.close_s,
        )

    def nonce_store(self, started_ns: int) -> NonceStore:
        """Room for all nonces that the hotkey's rate lets through while they are fresh."""
        retention = MAX_AGE_S + ALLOWED_SKEW_S + self.body_s
        return NonceStore(
            started_ns=started_ns,
            retention_s=retention,
            per_hotkey=2 * int(self.hotkey_burst + self.hotkey_rate * retention),
            max_hotkeys=65536,
        )


@dataclass(frozen=True, kw_only=True)
class RequestServed(Event):
    """A handler answered."""

    synapse: str
    caller: str
    uid: int
    seconds: float
    request_bytes: int
    response_bytes: int


@dataclass(frozen=True, kw_only=True)
class RequestRefused(Event):
    """A request was turned down. `caller` and `uid` are None as long as they were not verified."""

    reason: str
    status: int
    synapse: str
    caller: str | None
    uid: int | None
    address: str
    detail: str


@dataclass(frozen=True)
class _Route:
    request: type[Request]
    handler: Handler[Any]
    validators_only: bool


@dataclass
class _Visit:
    """One request on its way through the gates."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    address: str
    arrived_ns: int
    arrived_s: float
    body: bytes | None = None
    request: SignedRequest | None = None
    caller: Caller | None = None

    @property
    def synapse(self) -> str:
        return printable(self.target.removeprefix("/"), MAX_NAME)


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    close: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class _Gone(Exception):
    """The peer left before its request was complete."""


class Axon:
    """Answers the synapses attached to it, for one hotkey and one run.

    An async context manager: the socket is open inside. `app` is the ASGI application, without a socket; routes that an
    operator adds to it himself are served as they are, with no signature asked.
    """

    def __init__(
        self,
        hotkey: Signer,
        run_id: str,
        directory: Directory,
        config: AxonConfig | None = None,
        telemetry: Telemetry | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._hotkey = require_sr25519(hotkey)
        self._run_id = run_id
        self._config = config or AxonConfig()
        self._telemetry = telemetry or Telemetry()
        self._clock = clock or SystemClock()
        self._routes: dict[str, _Route] = {}
        self._directory = directory
        self._policy = Policy(
            directory,
            self._config.nonce_store(self._now_ns()),
            Buckets(Rate(per_second=self._config.address_rate, burst=self._config.address_burst), 65536),
            Buckets(Rate(per_second=self._config.hotkey_rate, burst=self._config.hotkey_burst), 65536),
        )
        self._server: Server | None = None
        self._port: int | None = None
        self._closed = False
        self.app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        self.app.router.default = self._serve

    @property
    def hotkey(self) -> str:
        """The ss58 address that answers."""
        return self._hotkey.ss58_address

    @property
    def port(self) -> int:
        """The port listened on; known once started."""
        if self._port is None:
            raise RuntimeError("the axon is not listening")
        return self._port

    @property
    def published(self) -> tuple[str | None, int]:
        """The address (None: not configured) and port to publish on the chain."""
        return self._config.external_ip, self._config.external_port or self.port

    def attach(self, request: type[AnyRequest], handler: Handler[AnyRequest], *, validators_only: bool) -> None:
        """Answer `POST /<class name>` with `handler(message, caller)`, which returns a `request.Answer`.

        The handler may raise `Refused(status, reason)`; anything else it raises is a bug, answered with status 500.
        """
        path = f"/{request.__name__}"
        if path in self._routes:
            raise ValueError(f"{path} is attached already")
        self._routes[path] = _Route(request, handler, validators_only)

    async def start(self) -> None:
        """Listen. `ConfigurationError` if the port or address cannot be had."""
        if self._closed or self._server is not None:
            raise RuntimeError("an axon is started once; make a new one")
        listener = bind(self._config.ip, self._config.port)
        self._port = listener.getsockname()[1]
        self._policy.restart(self._config.nonce_store(self._now_ns()))
        self._server = Server(self.app, self._config.bounds, self._turned_away)
        await self._server.start(listener)

    async def close(self) -> None:
        """Stop listening and end running requests; callers still waiting are told so. Idempotent."""
        self._closed = True
        if self._server is not None:
            await self._server.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _now_ns(self) -> int:
        return int(self._clock.time() * NANO)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application: one request, one answer."""
        visit = self._visit(scope)
        try:
            answer = await self._answer(visit, receive)
        except _Gone:
            return
        except asyncio.CancelledError:
            if not self._closed:
                raise
            answer = self._refused(visit, refuse(Reason.CLOSING, "this neuron is stopping"))
        await self._send(visit, answer, receive, send)

    def _visit(self, scope: Scope) -> _Visit:
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        client = scope.get("client")
        return _Visit(
            method=scope["method"],
            target=target.decode("latin-1"),
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
            address=client[0] if client else "unknown",
            arrived_ns=self._now_ns(),
            arrived_s=self._clock.monotonic(),
        )

    async def _answer(self, visit: _Visit, receive: Receive) -> _Answer:
        try:
            return await self._pass_gates(visit, receive)
        except Refused as refusal:
            return self._refused(visit, refusal)
        except _Gone:
            raise
        except Exception:  # the edge: a bug behind this line is ours, and must not stop the server
            logger.exception("the handler of %s failed", visit.synapse)
            return self._refused(
                visit, refuse(Reason.INTERNAL, "the neuron failed to answer; its operator can see why")
            )

    async def _pass_gates(self, visit: _Visit, receive: Receive) -> _Answer:
        self._policy.admit_address(visit.address, visit.arrived_s)
        body = await _read_body(receive, visit.headers, self._config.max_body_bytes, self._config.body_s)
        visit.body = body
        visit.request = self._verified(visit, body)
        route = self._routes.get(visit.target)
        visit.caller = await self._admitted(visit, visit.request, route is not None and route.validators_only)
        if route is None:
            raise refuse(Reason.UNKNOWN_SYNAPSE, f"no such synapse; this neuron answers {sorted(self._routes)}")
        if visit.method != "POST":
            raise refuse(Reason.NOT_POST, "synapses are sent with POST")
        message = _parse(route.request, body)
        if message.run_id != self._run_id:
            raise refuse(Reason.WRONG_RUN, f"this neuron trains run {self._run_id}, you asked for run {message.run_id}")
        return await self._handled(visit, visit.caller, route, message)

    async def _admitted(self, visit: _Visit, request: SignedRequest, validators_only: bool) -> Caller:
        """Who asks. Nobody is refused by an old view of the subnet: it is looked at again first."""

        def admit() -> Caller:
            return self._policy.admit(
                request.sender,
                request.nonce,
                validators_only=validators_only,
                now_ns=visit.arrived_ns,
                now_s=visit.arrived_s,
            )

        try:
            return admit()
        except Refused as refusal:
            if refusal.reason not in OF_THE_VIEW or not await self._directory.look_again():
                raise
        return admit()

    def _verified(self, visit: _Visit, body: bytes) -> SignedRequest:
        """Freshness counts from the arrival of the headers: a slow line must not make a large body stale."""
        return verify_request(
            visit.headers,
            body,
            method=visit.method,
            target=visit.target,
            receiver=self.hotkey,
            now_ns=visit.arrived_ns,
        )

    async def _handled(self, visit: _Visit, caller: Caller, route: _Route, message: Request) -> _Answer:
        response = await route.handler(message, caller)
        if not isinstance(response, route.request.Answer):
            raise TypeError(f"the handler of {visit.synapse} returned {type(response).__name__}")
        body = response.model_dump_json().encode()
        self._telemetry.emit(
            RequestServed(
                synapse=visit.synapse,
                caller=caller.hotkey,
                uid=caller.uid,
                seconds=self._clock.monotonic() - visit.arrived_s,
                request_bytes=len(visit.body or b""),
                response_bytes=len(body),
            )
        )
        return _Answer(200, body)

    def _refused(self, visit: _Visit, refusal: Refused) -> _Answer:
        if not 400 <= refusal.status <= 599:
            logger.error("the handler of %s refused with status %d", visit.synapse, refusal.status)
            refusal = _internal()
        detail = printable(str(refusal))
        self._telemetry.emit(
            RequestRefused(
                reason=refusal.reason,
                status=refusal.status,
                synapse=visit.synapse,
                caller=visit.request.sender if visit.request else None,
                uid=visit.caller.uid if visit.caller else None,
                address=visit.address,
                detail=detail,
            )
        )
        body = json.dumps({"reason": refusal.reason, "detail": detail}).encode()
        return _Answer(refusal.status, body, close=visit.body is None)

    def _turned_away(self, address: str) -> None:
        """A connection over the limit: nothing of it was read."""
        self._telemetry.emit(
            RequestRefused(
                reason=Reason.TOO_MANY_CONNECTIONS,
                status=STATUS[Reason.TOO_MANY_CONNECTIONS],
                synapse="",
                caller=None,
                uid=None,
                address=address,
                detail="too many connections",
            )
        )

    async def _send(self, visit: _Visit, answer: _Answer, receive: Receive, send: Send) -> None:
        headers = {"content-type": "application/json", "content-length": str(len(answer.body))}
        if visit.request is not None:
            headers |= sign_answer(self._hotkey, visit.request, answer.status, answer.body)
        if answer.close:
            headers["connection"] = "close"
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        await send({"type": "http.response.body", "body": answer.body, "more_body": answer.close})
        if answer.close:
            await _linger(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _read_body(receive: Receive, headers: Sequence[tuple[str, str]], limit: int, seconds: float) -> bytes:
    """The whole body, at most `limit` bytes of it, within `seconds` of real time."""
    declared = next((value for name, value in headers if name.lower() == "content-length"), "0")
    if declared.isdecimal() and (len(declared) > 20 or int(declared) > limit):
        raise refuse(Reason.TOO_LARGE, f"the body has more than {limit} bytes")
    body = bytearray()
    more = True
    try:
        async with asyncio.timeout(seconds):
            while more:
                chunk, more = await _next_chunk(receive)
                body += chunk
                if len(body) > limit:
                    raise refuse(Reason.TOO_LARGE, f"the body has more than {limit} bytes")
    except TimeoutError as error:
        raise refuse(Reason.BODY_TIMEOUT, f"the body was not complete after {seconds:g} s") from error
    return bytes(body)


async def _next_chunk(receive: Receive) -> tuple[bytes, bool]:
    """The next piece of the body, and whether there is more."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise _Gone
    return message.get("body", b""), message.get("more_body", False)


async def _linger(receive: Receive) -> None:
    """Read on for a moment after an early refusal: closing on a peer that still writes would lose the answer to it."""
    left, more = LINGER_BYTES, True
    try:
        async with asyncio.timeout(LINGER_S):
            while more and left > 0:
                chunk, more = await _next_chunk(receive)
                left -= len(chunk)
    except (TimeoutError, _Gone):
        return


def _internal() -> Refused:
    return refuse(Reason.INTERNAL, "the neuron failed to answer; its operator can see why")


def _parse(kind: type[Request], body: bytes) -> Request:
    """The message; 422 naming the first wrong fields, without repeating the sender's values."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)[:3]
        text = "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}" for problem in problems)
        raise refuse(Reason.BAD_REQUEST, f"{error.error_count()} wrong: {text}") from error
