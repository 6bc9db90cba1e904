"""The averager of a neuron: takes part in rounds, one after another, and sorts the streams that arrive for them.

Members start a round at slightly different times, so a control stream may arrive for a round that does not exist here
yet. It waits in the lobby: bounded in number, a peer and in all, and in time; nothing but its first frame is read, so
it holds no memory. Streams of peers that are not allowed, not in the group, or too late are answered and dropped.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from distributed_training.averaging.buffers import Buffers
from distributed_training.averaging.codec import Floats
from distributed_training.averaging.direct import DirectTransport
from distributed_training.averaging.feedback import Attempt
from distributed_training.averaging.frames import Answer, Hello, read_message, write_message
from distributed_training.averaging.outcome import RoundResult
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.round import PROTOCOL, Round, RoundConfig
from distributed_training.averaging.streams import Stream, Transport
from distributed_training.averaging.wire_exhibits import PROTOCOL as SHOWN
from distributed_training.averaging.wire_exhibits import Showcase
from distributed_training.averaging.witness import Watch
from template.errors import AveragingError
from template.telemetry import Event, Telemetry

MAX_HELLO = 8192  # bytes; most of it is a certificate


@dataclass(frozen=True, kw_only=True)
class StreamRefused(Event):
    """A stream of that peer was dropped before it belonged to a round."""

    peer_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LobbyLimits:
    """How many streams may wait for a round to begin here, of one peer and in all, and for how many seconds.

    A stream may take `hello_seconds` for its first frame; that many ended rounds are `remembered`.
    """

    per_peer: int = 4
    total: int = 2048
    seconds: float = 60.0
    remembered: int = 64
    hello_seconds: float = 5.0


@dataclass(frozen=True, kw_only=True)
class AveragerConfig:
    round: RoundConfig = field(default_factory=RoundConfig)
    lobby: LobbyLimits = field(default_factory=LobbyLimits)


class Averager:
    """Takes part in rounds as member `uid` of `run_id`. Use as an async context manager around its life.

    `allow` says whether a peer id belongs to a neuron of the metagraph; nobody else is even read from. With `direct`,
    data goes over direct connections where they can be made, else over `transport`.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        uid: int,
        run_id: str,
        allow: Callable[[str], bool],
        direct: DirectTransport | None = None,
        config: AveragerConfig | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._transport = transport
        self._direct = direct
        self._uid = uid
        self._run_id = run_id
        self._allow = allow
        self._config = config or AveragerConfig()
        self._telemetry = telemetry or Telemetry()
        self._buffers = Buffers()
        self._showcase = Showcase()
        self._rounds: dict[str, Round] = {}
        self._ended: OrderedDict[str, Answer] = OrderedDict()
        self._lobby: dict[str, set[asyncio.Event]] = {}  # round id -> streams that wait for it
        self._unplaced: Counter[str] = Counter()  # peer id -> its streams that belong to no round yet

    async def __aenter__(self) -> Self:
        await self._transport.serve(PROTOCOL, self._accept)
        await self._transport.serve(SHOWN, self._show)
        if self._direct is not None:
            await self._direct.serve(PROTOCOL, self._accept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._direct is not None:
            await self._direct.unserve(PROTOCOL)
        await self._transport.unserve(SHOWN)
        await self._transport.unserve(PROTOCOL)

    async def run(
        self,
        plan: RoundPlan,
        contribution: Floats | None,
        weight: float,
        attempt: Attempt | None = None,
        *,
        records: str | None = None,
        watch: Watch | None = None,
    ) -> RoundResult:
        """Take part in one round.

        Args:
            plan: the round; this member's uid and peer id are in its group.
            contribution: float32 [plan.size], not to be changed any more: it is kept, to be shown to validators, until
                a round of a later epoch completes; None for an auxiliary member.
            weight: of the contribution, in (0, plan.max_weight]; 0 for an auxiliary member.
            attempt: error feedback of the contribution, to be committed by the caller if the round is and we took part.
            records: hash of the records that the contribution is made of; told to all members before anything moves.
            watch: what to keep of the others' parts in our share.

        Returns:
            What happened, and the average if the round completed. A failed round is an outcome, not an error.

        Raises:
            AveragingError: the plan is not for us or was run already, or our own contribution is not fit to be sent.
        """
        self._require_ours(plan)
        round_ = Round(
            plan,
            self._uid,
            self._transport,
            self._direct,
            self._config.round,
            contribution,
            weight,
            self._buffers,
            attempt,
            records,
            watch,
            self._showcase,
        )
        self._rounds[plan.round_id] = round_
        for begun in self._lobby.get(plan.round_id, ()):
            begun.set()
        why = Answer(code="ended")  # an error of our own: nobody else's fault
        try:
            result = await round_.run()
            why = round_.why()
            if result.outcome.completed:
                self._showcase.completed(plan.epoch)
        finally:
            del self._rounds[plan.round_id]
            self._remember(plan.round_id, why)
        return result

    def _require_ours(self, plan: RoundPlan) -> None:
        if plan.run_id != self._run_id:
            raise AveragingError(f"a round of run {plan.run_id!r} was given to run {self._run_id!r}")
        if not any(m.uid == self._uid and m.peer_id == self._transport.peer_id for m in plan.members):
            raise AveragingError(f"uid {self._uid} with this peer id is not in the group of the round")
        if plan.round_id in self._rounds or plan.round_id in self._ended:
            raise AveragingError(f"round {plan.round_id} was run already; a new attempt needs a new round id")

    def _remember(self, round_id: str, why: Answer) -> None:
        self._ended[round_id] = why
        while len(self._ended) > self._config.lobby.remembered:
            self._ended.popitem(last=False)

    async def _show(self, stream: Stream) -> None:
        """What we sent, to a validator that asks for it."""
        if self._allow(stream.peer_id):
            await self._showcase.serve(stream)

    async def _accept(self, stream: Stream) -> None:
        """One stream, from its first frame to its end. A stream that breaks here concerns nobody but its opener."""
        peer_id = stream.peer_id
        if not self._allow(peer_id):
            self._refused(peer_id, "stranger")
            return
        limits = self._config.lobby
        if self._unplaced[peer_id] >= limits.per_peer or self._unplaced.total() >= limits.total:
            self._refused(peer_id, "too many streams")
            return
        self._unplaced[peer_id] += 1
        try:
            place = await self._receive(stream)
        finally:
            self._unplaced[peer_id] -= 1
            self._unplaced += Counter()  # drops zeros
        if place is not None:
            await place[0].accept(stream, place[1])

    async def _receive(self, stream: Stream) -> tuple[Round, Hello] | None:
        """The first frame and the round that it is for; None when there is none, which the opener was told."""
        limits = self._config.lobby
        try:
            async with asyncio.timeout(limits.hello_seconds):
                hello = await read_message(stream, Hello, MAX_HELLO)
            place = await self._place(stream, hello)
            if isinstance(place, Round):
                return place, hello
            self._refused(stream.peer_id, place.code)
            async with asyncio.timeout(limits.hello_seconds):
                await write_message(stream, place)
                await stream.read(1)  # the opener closes first
        except (AveragingError, TimeoutError) as error:
            self._refused(stream.peer_id, f"lost: {error}")
        return None

    async def _place(self, stream: Stream, hello: Hello) -> Round | Answer:
        """The round that a stream belongs to, waiting for it to begin, or why there is none."""
        if hello.run_id != self._run_id:
            return Answer(code="unknown")
        if hello.round_id not in self._rounds and hello.round_id not in self._ended:
            if hello.kind != "control":  # its opener has no "ready" of ours, so it has no business here
                return Answer(code="unknown")
            if not await self._wait_for(hello.round_id, stream):
                return Answer(code="busy")
        round_ = self._rounds.get(hello.round_id)
        if round_ is None:
            return self._ended.get(hello.round_id, Answer(code="ended"))
        in_group = any(m.uid == hello.uid and m.peer_id == stream.peer_id for m in round_.plan.members)
        return round_ if in_group else Answer(code="stranger")

    async def _wait_for(self, round_id: str, stream: Stream) -> bool:
        """Wait in the lobby for a round to begin here; False if it does not, or if the stream ends before.

        Its opener is silent until it is answered. Who left must not keep the place that it needs when it comes again.
        """
        begun = asyncio.Event()
        self._lobby.setdefault(round_id, set()).add(begun)
        waits = (asyncio.create_task(begun.wait()), asyncio.create_task(stream.read(1)))
        try:
            await asyncio.wait(waits, timeout=self._config.lobby.seconds, return_when=asyncio.FIRST_COMPLETED)
            return begun.is_set() and not waits[1].done()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            waiting = self._lobby.get(round_id, set())
            waiting.discard(begun)
            if not waiting:
                self._lobby.pop(round_id, None)

    def _refused(self, peer_id: str, reason: str) -> None:
        self._telemetry.emit(StreamRefused(peer_id=peer_id, reason=reason))
