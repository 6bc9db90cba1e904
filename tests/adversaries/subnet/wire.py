"""Axons and dendrites without bytes: a request is a call of the handler, with the caller that the wire knows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from template.chain.metagraph import AxonInfo
from template.errors import DeadlineExceeded, Refused, Unreachable, WireError
from template.transport.dendrite import DEADLINE, OK, UNREACHABLE, Outcome, Target
from template.transport.policy import Caller
from template.transport.synapse import Request, Response

HOST = "memory.invalid"
Handler = Callable[[Any, Caller], Awaitable[Response]]
MayAsk = Callable[[int], bool]  # whether a uid is a validator


def address(uid: int) -> AxonInfo:
    """Where the neuron of that uid serves."""
    return AxonInfo(HOST, uid + 1)


class Axon:
    """The handlers of one neuron."""

    def __init__(self, may_ask: MayAsk) -> None:
        self._may_ask = may_ask
        self._routes: dict[type[Request], tuple[Handler, bool]] = {}

    def attach(self, request: type[Request], handler: Handler, *, validators_only: bool) -> None:
        """As `template.transport.axon.Axon.attach`."""
        self._routes[request] = (handler, validators_only)

    def replace(self, request: type[Request], change: Callable[[Handler], Handler]) -> None:
        """Put another handler in front of the one that is attached: what a cheat answers."""
        handler, validators_only = self._routes[request]
        self._routes[request] = (change(handler), validators_only)

    async def answer(self, request: Request, caller: Caller) -> Response:
        """What the handler answers; raises Refused as the policy or the handler does."""
        handler, validators_only = self._routes[type(request)]
        if validators_only and not self._may_ask(caller.uid):
            raise Refused("validators only", status=403, reason="not_a_validator")
        return await handler(request, caller)


class Wire:
    """All axons, by uid. `cut`: the uids that nobody can reach."""

    def __init__(self) -> None:
        self.axons: dict[int, Axon] = {}
        self.cut: set[int] = set()


class Dendrite:
    """Asks in the name of one neuron."""

    def __init__(self, wire: Wire, caller: Caller) -> None:
        self._wire = wire
        self._caller = caller

    async def call(self, target: Target, request: Request, deadline_s: float) -> Outcome:
        """As `template.transport.dendrite.Dendrite.call`."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        response: Response | None = None
        error: WireError | None = None
        try:
            axon = self._wire.axons.get(target.uid)
            if axon is None or target.uid in self._wire.cut or self._caller.uid in self._wire.cut:
                raise Unreachable(f"uid {target.uid} cannot be reached")
            async with asyncio.timeout(deadline_s):
                response = await axon.answer(request, self._caller)
        except TimeoutError:
            error = DeadlineExceeded("no complete answer in time")
        except WireError as refusal:
            error = refusal
        return Outcome(
            uid=target.uid,
            response=response,
            error=error,
            status=None,
            reason=_reason(error),
            seconds=loop.time() - started,
            bytes=0,
            evidence=None,
        )

    async def broadcast(self, targets: Iterable[Target], request: Request, deadline_s: float) -> dict[int, Outcome]:
        """As the real one's: all at once."""
        return await self.fan_out({target.uid: (target, request) for target in targets}, deadline_s)

    async def fan_out(self, calls: Mapping[int, tuple[Target, Request]], deadline_s: float) -> dict[int, Outcome]:
        """As the real one's."""
        outcomes = await asyncio.gather(*(self.call(*call, deadline_s) for call in calls.values()))
        return dict(zip(calls, outcomes, strict=True))


def _reason(error: WireError | None) -> str:
    match error:
        case None:
            return OK
        case Refused():
            return error.reason
        case DeadlineExceeded():
            return DEADLINE
        case _:
            return UNREACHABLE
