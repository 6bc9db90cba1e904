"""A member of rounds in a process of its own, with its own libp2p daemon, honest or not; driven by JSON lines.

stdin:  {"uid", "identity", "initial_peers"}, then for each round {"plan", "allow", "direct", "seed", "sabotage"}
stdout: {"ready": {"peer_id", "addresses", "daemon"}}, then {"busy": round id}, {"struck": seconds, "round_id"} and
        {"ended": {...}} as they happen. Seconds are of the system's monotonic clock, the same in all processes.

It takes part in one round at a time, as a neuron does. Run it by crowd.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from distributed_training.averaging.averager import Averager
from distributed_training.averaging.codec import Floats
from distributed_training.averaging.outcome import RoundResult
from distributed_training.averaging.peer import Peer, PeerConfig
from distributed_training.averaging.plan import Participant, RoundPlan, StateDeadlines
from template.errors import AveragingError
from tests.faults.sabotage import Sabotage, Saboteur, install, spoil

RUN_ID = "faults-000000000000"
SAMPLES = 64  # coordinates of an average that are reported

Order = dict[str, Any]


def say(message: dict[str, Any]) -> None:
    """In one call: what follows may be our death."""
    os.write(1, json.dumps(message).encode() + b"\n")


def plan_from_json(data: dict[str, Any]) -> RoundPlan:
    members = tuple(Participant(**{**m, "addresses": tuple(m["addresses"])}) for m in data["members"])
    return RoundPlan(**{**data, "members": members, "deadlines": StateDeadlines(**data["deadlines"])})


def contribution_of(plan: RoundPlan, uid: int, seed: int) -> Floats:
    """Random values [plan.size], the same wherever they are computed."""
    return np.random.default_rng([seed, uid]).standard_normal(plan.size, dtype=np.float32)


def weight_of(uid: int) -> float:
    return 1.0 + uid / 7


def sampled(size: int) -> np.ndarray:
    """The coordinates of an average that are reported: over all shares, first and last included."""
    return np.linspace(0, size - 1, SAMPLES, dtype=np.int64)


class Member:
    """Runs the rounds that it is told to, each against the saboteur's will."""

    def __init__(self, uid: int, peer: Peer) -> None:
        self.allowed: frozenset[str] = frozenset()
        self._uid = uid
        self._peer = peer
        self._round_id = ""
        self._saboteur = Saboteur(
            lambda: say({"struck": time.monotonic(), "round_id": self._round_id}), peer.daemon_pid
        )
        install(self._saboteur)

    def allow(self, peer_id: str) -> bool:
        return peer_id in self.allowed

    async def take_part(self, averager: Averager, order: Order) -> None:
        """One round from the order to the report."""
        plan = plan_from_json(order["plan"])
        self.allowed, self._round_id = frozenset(order["allow"]), plan.round_id
        averager._direct = self._peer.direct if order["direct"] else None
        sabotage = None if order["sabotage"] is None else Sabotage(**order["sabotage"])
        contributes = next(m.contributes for m in plan.members if m.uid == self._uid)
        values = contribution_of(plan, self._uid, order["seed"]) if contributes else None
        with self._saboteur.during(sabotage), _dying_of_bugs():
            if self._saboteur.is_("nan part") and values is not None:
                self._saboteur.tell()
                spoil(plan, self._uid, values)
            say({"ended": await self._run(averager, plan, values)})

    async def _run(self, averager: Averager, plan: RoundPlan, values: Floats | None) -> dict[str, Any]:
        before = None if values is None else digest(values)
        began = time.monotonic()
        try:
            result = await averager.run(plan, values, 0.0 if values is None else weight_of(self._uid))
        except AveragingError as error:
            return {"round_id": plan.round_id, "began": began, "ended": time.monotonic(), "error": str(error)}
        report = {"began": began, "ended": time.monotonic(), "error": None, **_told(result)}
        kept = values is None or digest(values) == before
        del result, values
        return {**report, "kept": kept, "usage": usage()}


@contextlib.contextmanager
def _dying_of_bugs() -> Iterator[None]:
    """End the process at once: the loop's own end would wait for the thread that reads the next order."""
    try:
        yield
    except Exception:  # noqa: BLE001 - written out, and the end of this process
        traceback.print_exc()
        os._exit(1)


def digest(values: Floats) -> str:
    return hashlib.sha256(values.data).hexdigest()


def _told(result: RoundResult) -> dict[str, Any]:
    outcome, average = result.outcome, result.average
    return {
        "round_id": outcome.round_id,
        "state": outcome.state.value,
        "participants": outcome.participants,
        "agreed": outcome.agreed,
        "failures": [failure.model_dump() for failure in outcome.failures],
        "average": None if average is None else digest(average),
        "samples": None if average is None else average[sampled(average.size)].tolist(),
        "seconds": {state.value: seconds for state, seconds in outcome.seconds.items()},
        "first_byte": outcome.first_byte,
        "planes": {str(uid): plane for uid, plane in outcome.planes.items()},
    }


def usage() -> dict[str, int]:
    """What this process holds now."""
    gc.collect()
    process = psutil.Process()
    return {
        "rss": process.memory_info().rss,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "tasks": len(asyncio.all_tasks()),
    }


async def read_line() -> Order:
    line = await asyncio.to_thread(sys.stdin.readline)
    return json.loads(line) if line else {}


async def main() -> None:
    start = await read_line()
    config = PeerConfig(
        host="127.0.0.1",
        port=0,
        identity_path=Path(start["identity"]),
        initial_peers=tuple(start["initial_peers"]),
    )
    async with Peer(config) as peer, asyncio.TaskGroup() as running:
        member = Member(start["uid"], peer)
        async with Averager(peer, uid=start["uid"], run_id=RUN_ID, allow=member.allow, direct=peer.direct) as averager:
            say({"ready": {"peer_id": peer.peer_id, "addresses": peer.addresses, "daemon": peer.daemon_pid}})
            turn: asyncio.Task[None] | None = None
            while order := await read_line():
                if turn is not None and not turn.done():
                    say({"busy": order["plan"]["round_id"]})
                    continue
                turn = running.create_task(member.take_part(averager, order))
            if turn is not None:
                turn.cancel()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
