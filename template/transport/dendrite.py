"""The side that asks: signed requests, verified answers, one deadline, and an outcome for each target.

A failure is a value here. `Outcome.error` says what went wrong, `Outcome.reason` says it in one word; whatever one
target does, the others' outcomes are not touched. Deadlines and durations go by the clock that was given.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

import httpx
from pydantic import BaseModel, StringConstraints, ValidationError

from template.clock import Clock, SystemClock
from template.errors import BadResponse, ConfigurationError, DeadlineExceeded, Refused, Unreachable, WireError
from template.telemetry import Event, Telemetry
from template.transport.envelope import (
    Evidence,
    SignedRequest,
    Signer,
    is_signed,
    require_sr25519,
    sign_request,
    verify_answer,
)
from template.transport.lines import Lines
from template.transport.policy import NANO
from template.transport.refusal import printable
from template.transport.synapse import Request, Response

AnyResponse = TypeVar("AnyResponse", bound=Response)

MAX_LINES = 1024

OK = "ok"
UNREACHABLE = "unreachable"
DEADLINE = "deadline"
NOT_SENT = "not_sent"
BAD_RESPONSE = "bad_response"
UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Target:
    """A neuron to ask, as the metagraph publishes it."""

    uid: int
    hotkey: str
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one request.

    Either `response` is set or `error` is. `status` is the HTTP status, None if none came. `reason` is one word: `ok`;
    the refusing neuron's word; or `unreachable`, `deadline`, `bad_response`, `unexplained` (an error status with no
    reason), `not_sent` (the deadline passed while the request waited for its turn here: not the target's fault).
    `seconds` runs from sending to the last byte, `bytes` counts the body received. `evidence` is there whenever the
    target signed what it answered, refusals included.
    """

    uid: int
    response: Response | None
    error: WireError | None
    status: int | None
    reason: str
    seconds: float
    bytes: int
    evidence: Evidence | None

    def expect(self, kind: type[AnyResponse]) -> AnyResponse:
        """The response, known to be of this kind; raises the outcome's error if there is none."""
        if self.error is not None:
            raise self.error
        if not isinstance(self.response, kind):
            raise TypeError(f"the response is {type(self.response).__name__}, not {kind.__name__}")
        return self.response


@dataclass(frozen=True, kw_only=True)
class CallEnded(Event):
    """A request of ours ended, well or not."""

    synapse: str
    uid: int
    hotkey: str
    status: int | None
    reason: str
    seconds: float
    bytes: int
    detail: str


@dataclass(frozen=True, kw_only=True)
class DendriteConfig:
    """`concurrency`: requests under way at once, and so `max_response_bytes` times as much memory at most.

    `connect_s`: seconds for a connection; `idle_s`: seconds an unused connection is kept, less than axons keep it.
    """

    concurrency: int = 64
    max_response_bytes: int = 16 * 1024 * 1024
    connect_s: float = 5.0
    idle_s: float = 15.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ConfigurationError(f"--dendrite.{field.name} must be above 0")


class _Refusal(BaseModel):
    reason: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}$")]
    detail: str


@dataclass
class _Progress:
    """How far one call has come; what is left of it if it is cut short."""

    sent_at: float | None = None
    ended_at: float | None = None
    status: int | None = None
    bytes: int = 0
    evidence: Evidence | None = None

    def seconds(self, now_s: float) -> float:
        """From sending to the end; 0 if it was never sent."""
        if self.sent_at is None:
            return 0.0
        return (now_s if self.ended_at is None else self.ended_at) - self.sent_at


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: httpx.Headers
    body: bytes


class Dendrite:
    """Asks other neurons in the name of one hotkey. An async context manager; use after close raises."""

    def __init__(
        self,
        hotkey: Signer,
        config: DendriteConfig | None = None,
        telemetry: Telemetry | None = None,
        clock: Clock | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`transport` replaces the network, see `memory.MemoryNetwork`."""
        self._hotkey = require_sr25519(hotkey)
        self._config = config or DendriteConfig()
        self._telemetry = telemetry or Telemetry()
        self._clock = clock or SystemClock()
        self._turns = asyncio.Semaphore(self._config.concurrency)
        self._last_nonce = 0
        self._transport = transport
        self._tls = httpx.create_ssl_context(verify=False)  # made once; httpx wants one even for plain HTTP
        self._lines = Lines(self._client, self._clock, idle_s=self._config.idle_s, capacity=MAX_LINES)

    def _client(self) -> httpx.AsyncClient:
        """A client for one address: no redirects, nothing from the environment."""
        limits = httpx.Limits(max_connections=None, keepalive_expiry=self._config.idle_s)
        return httpx.AsyncClient(
            transport=self._transport or httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False, limits=limits),
            timeout=httpx.Timeout(None, connect=self._config.connect_s),
            follow_redirects=False,
            trust_env=False,
        )

    @property
    def hotkey(self) -> str:
        """The ss58 address that asks."""
        return self._hotkey.ss58_address

    async def __aenter__(self) -> Self:
        self._require_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._lines.close()

    async def call(self, target: Target, request: Request, deadline_s: float) -> Outcome:
        """Ask one neuron. Never raises for what the target does."""
        outcomes = await self.fan_out({target.uid: (target, request)}, deadline_s)
        return outcomes[target.uid]

    async def broadcast(self, targets: Iterable[Target], request: Request, deadline_s: float) -> dict[int, Outcome]:
        """Ask the same of many neurons; `ValueError` if two targets have one uid."""
        calls: dict[int, tuple[Target, Request]] = {}
        for target in targets:
            if target.uid in calls:
                raise ValueError(f"uid {target.uid} is among the targets twice")
            calls[target.uid] = (target, request)
        return await self.fan_out(calls, deadline_s)

    async def fan_out(self, calls: Mapping[int, tuple[Target, Request]], deadline_s: float) -> dict[int, Outcome]:
        """Ask many neurons at once; all answer within `deadline_s` seconds from now or get `DeadlineExceeded`.

        `calls` is by uid. An outcome for each uid, in the order of `calls`.
        """
        self._require_open()
        for uid, (target, _) in calls.items():
            if uid != target.uid:
                raise ValueError(f"target of uid {target.uid} under key {uid}")
        progress = {uid: _Progress() for uid in calls}
        tasks = {
            uid: asyncio.create_task(self._ask(target, request, progress[uid]))
            for uid, (target, request) in calls.items()
        }
        await self._by_deadline(tasks.values(), deadline_s)
        return {uid: self._ended(calls[uid], task, progress[uid]) for uid, task in tasks.items()}

    async def _by_deadline(self, tasks: Collection[asyncio.Task[Response]], deadline_s: float) -> None:
        """Returns when all tasks have ended, by themselves or cancelled at the deadline."""
        alarm = asyncio.create_task(self._clock.sleep(deadline_s))
        everything: asyncio.Future[Any] = asyncio.gather(*tasks, return_exceptions=True)
        try:
            if deadline_s > 0:  # else nothing is sent at all
                await asyncio.wait((everything, alarm), return_when=asyncio.FIRST_COMPLETED)
        finally:
            everyone: list[asyncio.Task[Any]] = [*tasks, alarm]
            for task in everyone:
                task.cancel()
            await asyncio.wait(everyone)

    async def _ask(self, target: Target, request: Request, progress: _Progress) -> Response:
        """The verified response; `WireError` for whatever else happens."""
        async with self._turns:
            progress.sent_at = self._clock.monotonic()
            try:
                signed = self._signed(target, request)
                answer = await self._post(target, signed, progress)
            finally:
                progress.ended_at = self._clock.monotonic()
        return _judged(request, signed, answer, progress)

    def _signed(self, target: Target, request: Request) -> SignedRequest:
        self._last_nonce = max(self._last_nonce + 1, int(self._clock.time() * NANO))
        return sign_request(
            self._hotkey,
            target=f"/{type(request).__name__}",
            body=request.model_dump_json().encode(),
            receiver=target.hotkey,
            nonce=self._last_nonce,
        )

    async def _post(self, target: Target, signed: SignedRequest, progress: _Progress) -> _Answer:
        url = _url(target, signed.target)
        headers = signed.headers | {"content-type": "application/json", "accept-encoding": "identity"}
        try:
            async with (
                self._lines.to((target.host, target.port)) as client,
                client.stream("POST", url, content=signed.body, headers=headers) as response,
            ):
                progress.status = response.status_code
                body = await self._limited(response, progress)
                return _Answer(response.status_code, response.headers, body)
        except (httpx.ProtocolError, httpx.DecodingError) as error:
            raise BadResponse(f"uid {target.uid} does not speak HTTP properly: {error}") from error
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise Unreachable(f"uid {target.uid} at {target.host}:{target.port}: {why}") from error

    async def _limited(self, response: httpx.Response, progress: _Progress) -> bytes:
        """The body as it came, read no further than the limit."""
        limit = self._config.max_response_bytes
        body = bytearray()
        async for chunk in response.aiter_raw():
            progress.bytes += len(chunk)
            if progress.bytes > limit:
                raise BadResponse(f"the answer has more than {limit} bytes")
            body += chunk
        return bytes(body)

    def _ended(self, call: tuple[Target, Request], task: asyncio.Task[Response], progress: _Progress) -> Outcome:
        target, request = call
        response, error = None, _error(task, progress)
        if error is None:
            response = task.result()
        outcome = Outcome(
            uid=target.uid,
            response=response,
            error=error,
            status=progress.status,
            reason=_reason(error, progress),
            seconds=progress.seconds(self._clock.monotonic()),
            bytes=progress.bytes,
            evidence=progress.evidence,
        )
        self._telemetry.emit(_event(target, request, outcome))
        return outcome

    def _require_open(self) -> None:
        if self._lines.closed:
            raise RuntimeError("the dendrite is closed")


def _url(target: Target, path: str) -> httpx.URL:
    """`Unreachable` if what the metagraph says is no address: port 0 is what a neuron without an axon publishes."""
    if not target.host or not 0 < target.port <= 65535:
        raise Unreachable(f"uid {target.uid} publishes no axon")
    try:
        return httpx.URL(scheme="http", host=target.host, port=target.port, path=path)
    except (httpx.InvalidURL, ValueError) as error:
        raise Unreachable(f"uid {target.uid} publishes a host that is no address: {printable(target.host)}") from error


def _judged(request: Request, signed: SignedRequest, answer: _Answer, progress: _Progress) -> Response:
    """The response in the answer, if it is one and the right neuron signed it."""
    if answer.status != httpx.codes.OK:
        if is_signed(answer.headers):
            progress.evidence = verify_answer(signed, answer.status, answer.headers, answer.body)
        raise _refusal(answer)
    progress.evidence = verify_answer(signed, answer.status, answer.headers, answer.body)
    try:
        return request.Answer.model_validate_json(answer.body)
    except ValidationError as error:
        raise BadResponse(f"the answer is not a {request.Answer.__name__}: {error.error_count()} wrong") from error


def _refusal(answer: _Answer) -> WireError:
    if not 400 <= answer.status <= 599:
        return BadResponse(f"status {answer.status} is neither an answer nor a refusal")
    try:
        refusal = _Refusal.model_validate_json(answer.body)
    except ValidationError:
        return Refused(f"status {answer.status} without a reason", status=answer.status, reason=UNEXPLAINED)
    return Refused(printable(refusal.detail), status=answer.status, reason=refusal.reason)


def _error(task: asyncio.Task[Response], progress: _Progress) -> WireError | None:
    """What the ended call failed with; anything but a `WireError` is a bug of ours and is raised."""
    if task.cancelled():
        waiting = progress.sent_at is None
        return DeadlineExceeded("the request was not sent in time" if waiting else "no complete answer in time")
    error = task.exception()
    if error is None or isinstance(error, WireError):
        return error
    raise error


def _reason(error: WireError | None, progress: _Progress) -> str:
    match error:
        case None:
            return OK
        case Refused():
            return error.reason
        case DeadlineExceeded():
            return NOT_SENT if progress.sent_at is None else DEADLINE
        case Unreachable():
            return UNREACHABLE
        case _:
            return BAD_RESPONSE


def _event(target: Target, request: Request, outcome: Outcome) -> CallEnded:
    return CallEnded(
        synapse=type(request).__name__,
        uid=target.uid,
        hotkey=target.hotkey,
        status=outcome.status,
        reason=outcome.reason,
        seconds=outcome.seconds,
        bytes=outcome.bytes,
        detail=printable(str(outcome.error)) if outcome.error else "",
    )
