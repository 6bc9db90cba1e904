"""Members of rounds, each a process with its own libp2p daemon, started, ordered about, watched and replaced.

The one who uses it plays the leader: it makes the plans and hears the reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distributed_training.averaging import leader
from distributed_training.averaging.plan import Participant, RoundPlan, StateDeadlines
from distributed_training.protocol import Failure, Member, PeerBinding
from tests.faults.member import RUN_ID, contribution_of, sampled, weight_of
from tests.faults.sabotage import Sabotage

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
REST_SECONDS = 30.0  # more than the deadlines of a round together
LINE = 1 << 20  # bytes of one report at most
_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What one member is told: the plan as it gets it, whom it lets in, the plane, and what it does wrong."""

    plan: RoundPlan
    direct: bool = True
    sabotage: Sabotage | None = None
    allow: frozenset[str] | None = None  # None: all of the plan
    after: float = 0.0  # seconds to wait before it is told

    def as_json(self) -> dict[str, Any]:
        allow = self.allow if self.allow is not None else {m.peer_id for m in self.plan.members}
        return {
            "plan": dataclasses.asdict(self.plan),
            "allow": sorted(allow),
            "direct": self.direct,
            "seed": self.plan.attempt,
            "sabotage": None if self.sabotage is None else dataclasses.asdict(self.sabotage),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a member said its round ended. Times are of the monotonic clock."""

    began: float
    ended: float
    state: str
    failures: tuple[Failure, ...]
    agreed: tuple[int, ...]
    average: str | None
    samples: np.ndarray | None
    kept: bool
    seconds: Mapping[str, float]
    first_byte: float | None
    planes: Mapping[int, str]
    usage: Mapping[str, int]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        return cls(
            began=data["began"],
            ended=data["ended"],
            state=data["state"],
            failures=tuple(Failure.model_validate(failure) for failure in data["failures"]),
            agreed=tuple(data["agreed"]),
            average=data["average"],
            samples=None if data["samples"] is None else np.array(data["samples"], dtype=np.float32),
            kept=data["kept"],
            seconds=data["seconds"],
            first_byte=data["first_byte"],
            planes={int(uid): plane for uid, plane in data["planes"].items()},
            usage=data["usage"],
        )

    @property
    def completed(self) -> bool:
        return self.state == "DONE"

    @property
    def named(self) -> frozenset[int]:
        return frozenset(failure.uid for failure in self.failures)


@dataclass(kw_only=True)
class Heard:
    """What the members said of one round: by uid, and when the sabotage struck."""

    reports: dict[int, Report] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    busy: set[int] = field(default_factory=set)
    struck: float | None = None


class MemberProcess:
    """One member's process."""

    def __init__(self, uid: int, process: asyncio.subprocess.Process) -> None:
        self.uid = uid
        self.process = process
        self.peer_id = ""
        self.addresses: tuple[str, ...] = ()
        self.daemon = 0
        self.fit = True  # False once it was ordered to do wrong to itself
        self._pending: set[str] = set()  # rounds that it was told to take part in and has not ended yet
        self._said: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def meet(self, identity: Path, initial_peers: tuple[str, ...]) -> None:
        """Tell it who it is and wait until it is ready."""
        await self._tell({"uid": self.uid, "identity": str(identity), "initial_peers": initial_peers})
        async with asyncio.timeout(START_SECONDS):
            ready = (await self._read())["ready"]
        self.peer_id, self.addresses, self.daemon = ready["peer_id"], tuple(ready["addresses"]), ready["daemon"]
        self._listening = asyncio.create_task(self._listen())

    async def order(self, order: Order) -> None:
        if order.sabotage is not None and order.sabotage.kind in ("kill", "stop"):
            self.fit = False
        self._pending.add(order.plan.round_id)
        await self._tell(order.as_json())

    async def rest(self) -> None:
        """Wait until it takes part in no round, or is not to be waited for; the caller bounds it."""
        while self._pending and self.fit and self._listening is not None and not self._listening.done():
            self._changed.clear()
            await self._changed.wait()

    async def hear(self, round_id: str, heard: Heard) -> None:
        """Wait for its word on a round; the caller bounds it.

        Raises:
            RuntimeError: the process has ended without it.
        """
        while not self.take(round_id, heard):
            if self._listening is None or self._listening.done():
                raise RuntimeError(f"member {self.uid} ended before its round did: see what it wrote")
            self._changed.clear()
            await self._changed.wait()

    def take(self, round_id: str, heard: Heard) -> bool:
        """Whether what it has said so far ends the matter."""
        for said in self._said:
            if said.get("round_id") == round_id:
                heard.struck = said["struck"]
            if said.get("busy") == round_id:
                heard.busy.add(self.uid)
                return True
            ended = said.get("ended", {})
            if ended.get("round_id") == round_id and ended["error"] is not None:
                heard.errors[self.uid] = ended["error"]
                return True
            if ended.get("round_id") == round_id:
                heard.reports[self.uid] = Report.from_json(ended)
                return True
        return False

    async def end(self) -> None:
        """End it and its daemon, whatever state they are in."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended between the look and the signal
                self.process.send_signal(signal.SIGKILL)
        await self.process.wait()  # the daemon is killed with its parent, stopped or not
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _tell(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        await self.process.stdin.drain()

    async def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line else {}
        return said

    async def _listen(self) -> None:
        while said := await self._read():
            self._said.append(said)
            self._pending -= {said.get("busy"), said.get("ended", {}).get("round_id")}
            del self._said[:-8]
            self._changed.set()
        asyncio.get_running_loop().call_soon(self._changed.set)  # when this task has ended


class Crowd:
    """The members by uid. Use as an async context manager."""

    def __init__(self, folder: Path, uids: Collection[int]) -> None:
        self.members: dict[int, MemberProcess] = {}
        self._folder = folder
        self._uids = sorted(uids)

    async def __aenter__(self) -> Crowd:
        try:
            first, *others = self._uids
            await self._start(first, ())
            await asyncio.gather(*(self._start(uid, self.members[first].addresses) for uid in others))
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        await asyncio.gather(*(member.end() for member in self.members.values()))

    async def _start(self, uid: int, initial_peers: tuple[str, ...]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.member",
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE,
        )
        self.members[uid] = MemberProcess(uid, process)
        await self.members[uid].meet(self._folder / f"identity-{uid}", initial_peers)

    async def replace(self, uids: Iterable[int]) -> None:
        """End these members and start them again, under the same identities."""
        uids = set(uids)
        initial = tuple(a for uid, m in self.members.items() if uid not in uids and m.fit for a in m.addresses[:1])
        await asyncio.gather(*(self.members[uid].end() for uid in uids))
        await asyncio.gather(*(self._start(uid, initial) for uid in uids))

    async def mend(self) -> None:
        """Replace those that died or hang; the others have ended their rounds when this returns.

        Who did wrong may still be at it when the honest ones have ended: it would be busy in the next round.

        Raises:
            TimeoutError: one of them has not.
        """
        async with asyncio.timeout(REST_SECONDS):
            await asyncio.gather(*(member.rest() for member in self.members.values()))
        await self.replace([uid for uid, member in self.members.items() if not member.fit])

    def plan(
        self,
        uids: Iterable[int],
        *,
        size: int,
        deadlines: StateDeadlines,
        shares: Mapping[int, float] | None = None,
        codec: str = "none",
        quorum: float = 0.67,
        chunk: int = 50_000,
    ) -> RoundPlan:
        """A new round of these members; who has no share given has 1."""
        number = next(_numbers)
        members = tuple(
            Participant(
                uid=uid,
                peer_id=self.members[uid].peer_id,
                addresses=self.members[uid].addresses,
                share=(shares or {}).get(uid, 1.0),
                contributes=True,
            )
            for uid in sorted(uids)
        )
        return RoundPlan(
            round_id=f"{number:032x}",
            run_id=RUN_ID,
            epoch=0,
            attempt=number,
            members=members,
            size=size,
            codec=codec,
            deadlines=deadlines,
            quorum=quorum,
            max_weight=100.0,
            chunk=chunk,
        )

    async def run(self, orders: Mapping[int, Order], wait_for: Collection[int], seconds: float) -> Heard:
        """Tell the members to take part in one round, and hear those waited for.

        Raises:
            TimeoutError: one of them has not ended within `seconds`.
        """
        round_id = next(iter(orders.values())).plan.round_id
        heard = Heard()
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for uid, order in orders.items():
                group.create_task(self._order(uid, order))
            for uid in wait_for:
                group.create_task(self.members[uid].hear(round_id, heard))
        for uid in orders.keys() - set(wait_for):
            self.members[uid].take(round_id, heard)  # whatever it said before it fell silent
        return heard

    async def _order(self, uid: int, order: Order) -> None:
        await asyncio.sleep(order.after)
        await self.members[uid].order(order)


def expected(plan: RoundPlan, participants: Collection[int]) -> np.ndarray:
    """The weighted mean by numpy in float64 at the coordinates that are reported."""
    at = sampled(plan.size)
    values = [contribution_of(plan, uid, plan.attempt)[at].astype(np.float64) for uid in sorted(participants)]
    return np.average(np.stack(values), axis=0, weights=[weight_of(uid) for uid in sorted(participants)])


def next_group(plan: RoundPlan, answers: Mapping[int, Report]) -> tuple[int, ...]:
    """The uids that the leader would take into the next attempt, by what was answered."""
    trust = {m.uid: 1.0 for m in plan.members}
    attempt = leader.Attempt(members=as_members(plan.members), reports={u: r.failures for u, r in answers.items()})
    return tuple(m.uid for m in leader.surviving_group([attempt], trust))


def as_members(participants: Sequence[Participant]) -> tuple[Member, ...]:
    """Participants as the leader holds them; what their bindings say does not matter here."""
    total = sum(m.share for m in participants)
    binding = {"hotkey": "5" * 48, "addresses": ("/ip4/127.0.0.1/tcp/1",), "signature": "0x" + "0" * 128}
    return tuple(
        Member(
            uid=m.uid,
            peer=PeerBinding.model_validate({**binding, "peer_id": m.peer_id}),
            share=m.share / total,
            contributes=m.contributes,
        )
        for m in participants
    )
