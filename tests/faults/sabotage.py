"""What a member of a fault test does wrong, put into its round from outside: by state, after bytes, on either plane.

Only the processes of members (member.py) import this. `Sabotage` says what; `install` changes the classes of a round
so that each consults the one active sabotage, which is none for an honest member.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distributed_training.averaging import round
from distributed_training.averaging.board import Board, Link
from distributed_training.averaging.codec import Floats
from distributed_training.averaging.exchange import Exchange
from distributed_training.averaging.frames import Vote
from distributed_training.averaging.outcome import RoundState
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.reducer import Reducer
from distributed_training.averaging.streams import Lane
from template.errors import AveragingError

Kind = Literal["kill", "stop", "slow", "nothing", "much", "long", "nan part", "nan average"]


@dataclass(frozen=True, kw_only=True)
class Sabotage:
    """`kill` and `stop` strike in `state`, in EXCHANGE once `after` bytes of data were sent; `slow` waits `seconds`
    before each chunk; `nothing` sends no chunk; `much` sends one more; `long` announces longer ones.
    """

    kind: Kind
    state: str = "EXCHANGE"
    after: int = 0
    seconds: float = 0.0


class Saboteur:
    """Carries out the active sabotage; `tell` says when it strikes."""

    def __init__(self, tell: Callable[[], None], daemon: int) -> None:
        self.active: Sabotage | None = None
        self._tell = tell
        self._daemon = daemon
        self._told = False
        self._sent = 0

    @contextlib.contextmanager
    def during(self, sabotage: Sabotage | None) -> Iterator[None]:
        """Active in this block."""
        self.active, self._told, self._sent = sabotage, False, 0
        try:
            self.strike_in("PREPARE")
            yield
        finally:
            self.active = None

    def is_(self, *kinds: Kind) -> bool:
        return self.active is not None and self.active.kind in kinds

    def tell(self) -> None:
        """Say, once, that it happens now."""
        if not self._told:
            self._told = True
            self._tell()

    def due_in(self, state: str) -> bool:
        return self.active is not None and self.is_("kill", "stop") and self.active.state == state

    def strike_in(self, state: str) -> None:
        """Kill or stop this process if that is due in this state; stopped, its daemon hangs with it."""
        if not self.due_in(state):
            return
        self.tell()
        if self.is_("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(self._daemon, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)

    def before_chunk(self, count: int, gone: Callable[[], bool]) -> None:
        """In a thread, before `count` bytes of data are sent."""
        if self.active is None:
            return
        if self._sent + count > self.active.after:
            self.strike_in("EXCHANGE")
        self._sent += count
        if self.is_("slow"):
            self.tell()
            _wait(self.active.seconds, gone)
        if self.is_("nothing"):
            self.tell()
            _wait(3600.0, gone)


def _wait(seconds: float, gone: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if gone():
            raise AveragingError("the round is over")
        time.sleep(0.02)


def install(saboteur: Saboteur) -> None:
    """Let every round of this process consult the saboteur."""
    _in_connect(saboteur)
    _in_exchange(saboteur)
    _in_commit(saboteur)
    _with_nan(saboteur)


def _in_connect(saboteur: Saboteur) -> None:
    ring, enter = Board.ring, Board.enter

    def ringing(self: Board) -> None:
        if self.state is RoundState.CONNECT:  # something was connected just now, and not everything
            saboteur.strike_in("CONNECT")
        ring(self)

    def entering(self: Board, state: RoundState) -> None:
        if state is RoundState.EXCHANGE:
            saboteur.strike_in("CONNECT")
        enter(self, state)

    Board.ring, Board.enter = ringing, entering  # type: ignore[method-assign]  # the fault is the purpose


def _in_exchange(saboteur: Saboteur) -> None:
    send_chunk, send_part = Exchange._send_chunk, Exchange._send_part

    def sending(self: Exchange, link: Link, lane: Lane, data: bytes | memoryview, values: int) -> None:
        saboteur.before_chunk(len(data), lambda: self._board.closed)
        if saboteur.is_("long"):
            saboteur.tell()
            data = bytes(data) + bytes(4)
        send_chunk(self, link, lane, data, values)

    def sending_part(self: Exchange, link: Link, lane: Lane) -> None:
        send_part(self, link, lane)
        if saboteur.is_("much"):
            saboteur.tell()
            send_chunk(self, link, lane, bytes(4000), 1000)

    Exchange._send_chunk, Exchange._send_part = sending, sending_part  # type: ignore[method-assign]


def _in_commit(saboteur: Saboteur) -> None:
    cast = round.Round._cast

    def casting(self: round.Round, vote: Vote) -> list[asyncio.Task[None]]:
        if vote.average_hash is None or not saboteur.due_in("COMMIT"):
            return cast(self, vote)
        return [self._board.spawn(strike(self))]

    async def strike(of: round.Round) -> None:
        """Once everybody has what this member reduced: before that, it would be a fault in EXCHANGE."""
        while any(link.data_live for link in of._board.links.values()):  # noqa: ASYNC110 - rings no bell of its own
            await asyncio.sleep(0.002)
        saboteur.strike_in("COMMIT")

    round.Round._cast = casting  # type: ignore[method-assign]


def _with_nan(saboteur: Saboteur) -> None:
    require_fit, encode = round._require_fit, Reducer._encode

    def requiring(*arguments: Any) -> None:
        if not saboteur.is_("nan part"):
            require_fit(*arguments)

    def encoding(self: Reducer, mean: Floats) -> memoryview:
        if saboteur.is_("nan average"):
            saboteur.tell()
            mean[:1] = np.nan
        return encode(self, mean)

    round._require_fit = requiring  # type: ignore[assignment]
    Reducer._encode = encoding  # type: ignore[method-assign]


def spoil(plan: RoundPlan, uid: int, values: Floats) -> None:
    """One NaN in everybody's share but its own."""
    for reducer, (start, stop) in plan.ranges().items():
        if reducer != uid and stop > start:
            values[start] = np.nan
