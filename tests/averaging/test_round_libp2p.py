"""Rounds over real libp2p daemons: the same results as in memory, no leaks, and members that die or hang."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from distributed_training.averaging.codec import Floats
from distributed_training.averaging.frames import Answer, Hello, read_message, write_message
from distributed_training.averaging.outcome import RoundResult, RoundState
from distributed_training.averaging.peer import Peer
from distributed_training.averaging.plan import Participant, RoundPlan, StateDeadlines
from distributed_training.averaging.round import PROTOCOL
from tests.averaging import member_process
from tests.averaging.conftest import peer_config
from tests.averaging.groups import contributions, exact_mean, group_on, make_plan, member, weights

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

ROOT = Path(__file__).parents[2]


LONG = StateDeadlines(connect=6.0, exchange=9.0, commit=9.0)


def require_one_average(
    plan: RoundPlan,
    values: Mapping[int, Floats | None],
    results: Mapping[int, RoundResult],
    tolerance: float = 1e-6,
) -> None:
    """Done at everybody, with the weighted mean and the same bits."""
    assert {r.outcome.state for r in results.values()} == {RoundState.DONE}
    assert len({r.average.tobytes() for r in results.values() if r.average is not None}) == 1
    average = results[0].average
    assert average is not None
    np.testing.assert_allclose(average, exact_mean(values, weights(plan)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("n", "auxiliary", "codec", "libp2p_only"),
    [
        (2, [], "none", []),
        (4, [3], "none", []),
        (4, [3], "fp16", [0, 1, 2, 3]),
        (4, [], "none", [2]),
        (4, [1], "fp16", [2]),
    ],
)
async def test_everybody_gets_the_weighted_mean(
    peers: dict[int, Peer], n: int, auxiliary: list[int], codec: str, libp2p_only: list[int]
) -> None:
    """To float32 rounding (half precision with fp16), the same bits at everybody, on either plane and on both."""
    async with group_on({uid: peers[uid] for uid in range(n)}, libp2p_only=libp2p_only) as group:
        plan = make_plan(group.members(auxiliary=auxiliary), 300_001, codec=codec, chunk=50_000)
        values = contributions(plan)
        results = await group.run(plan, values)
    require_one_average(plan, values, results, 1e-6 if codec == "none" else 2e-3)
    for uid, result in results.items():
        for other, plane in result.outcome.planes.items():
            assert plane == ("libp2p" if {uid, other} & set(libp2p_only) else "direct")


def hide(peer: Peer, trouble: str, other: Peer, silent: socket.socket) -> None:
    """Let the peer offer direct connections that cannot be made."""
    transport = peer.direct
    if trouble == "another's certificate":
        transport._trust.certificate = other.direct.certificate
    else:
        port = 1 if trouble == "closed" else silent.getsockname()[1]
        transport._config = dataclasses.replace(transport._config, public_port=port)


@pytest.mark.parametrize("trouble", ["closed", "silent", "another's certificate"])
async def test_a_member_that_cannot_be_reached_directly_gets_its_data_over_libp2p(
    peers: dict[int, Peer], tmp_path: Path, trouble: str
) -> None:
    """Its port is closed or filtered, or it shows what proves nothing: found out within the share of CONNECT.

    The next round does not try again.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        async with Peer(peer_config(tmp_path, "hidden", peers[0].addresses)) as hidden:
            hide(hidden, trouble, peers[3], silent)
            async with group_on({0: peers[0], 1: peers[1], 2: hidden}) as group:
                for limit in (2.5, 1.0):
                    plan = make_plan(group.members(), 10_000, deadlines=LONG)
                    values = contributions(plan)
                    results = await group.run(plan, values)
                    require_one_average(plan, values, results)
                    for uid in (0, 1):
                        assert results[uid].outcome.planes == {1 - uid: "direct", 2: "libp2p"}
                        assert results[uid].outcome.seconds[RoundState.CONNECT] < limit


async def test_a_late_member_is_waited_for(peers: dict[int, Peer]) -> None:
    """It begins a second after the others, within CONNECT."""
    async with group_on({uid: peers[uid] for uid in range(3)}) as group:
        plan = make_plan(group.members(), 1000)
        values, by = contributions(plan), weights(plan)
        others = asyncio.create_task(group.run(plan, values, without=[2]))
        await asyncio.sleep(1.0)
        late = await group.averagers[2].run(plan, values[2], by[2])
        assert late.outcome.completed
        assert all(r.outcome.completed for r in (await others).values())


async def test_a_peer_outside_the_group_is_refused(peers: dict[int, Peer]) -> None:
    """By its authenticated peer id, whatever uid it claims; the round goes on undisturbed."""
    async with group_on(peers) as group:
        plan = make_plan(group.members()[:2], 1000)
        values, by = contributions(plan), weights(plan)
        running = asyncio.create_task(group.averagers[0].run(plan, values[0], by[0]))
        await asyncio.sleep(0.1)
        stream = await peers[3].open(peers[0].peer_id, peers[0].addresses, PROTOCOL)
        hello = {"run_id": plan.run_id, "round_id": plan.round_id, "kind": "control", "uid": 1, "weight": 1.0}
        await write_message(stream, Hello.model_validate(hello))
        assert (await read_message(stream, Answer)).code == "stranger"
        await stream.close()
        assert (await group.averagers[1].run(plan, values[1], by[1])).outcome.completed
        assert (await running).outcome.completed


async def test_twenty_rounds_leave_nothing_behind(peers: dict[int, Peer]) -> None:
    """All complete, on connections that are used again, and neither descriptors, tasks nor threads grow."""
    async with group_on({uid: peers[uid] for uid in range(3)}) as group:
        counts = []
        for attempt in range(21):
            plan = make_plan(group.members(), 5000)
            results = await group.run(plan, contributions(plan, seed=attempt))
            assert all(r.outcome.completed for r in results.values()), [r.outcome for r in results.values()]
            await asyncio.sleep(0.05)
            assert all(plane == "direct" for r in results.values() for plane in r.outcome.planes.values())
            counts.append(
                (len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), len(os.listdir("/proc/self/task")))
            )
    assert all(last <= first + 2 for first, last in zip(counts[1], counts[-1], strict=True)), counts


class MemberProcess:
    """A member in its own process, which fails as ordered."""

    def __init__(self, process: asyncio.subprocess.Process, place: dict[str, Any]) -> None:
        self.process = process
        self.daemon: int = place["daemon"]
        self.peer_id: str = place["peer_id"]
        self.addresses = tuple(place["addresses"])

    async def order(self, plan: RoundPlan, uid: int, fault: str, after_bytes: int, *, direct: bool) -> None:
        """Run the plan as `uid`, with the fault."""
        allow = [m.peer_id for m in plan.members]
        data = {
            "plan": dataclasses.asdict(plan),
            "allow": allow,
            "uid": uid,
            "fault": fault,
            "after_bytes": after_bytes,
            "direct": direct,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(data).encode() + b"\n")
        await self.process.stdin.drain()


@contextlib.asynccontextmanager
async def member_in_process(folder: Path, initial_peers: tuple[str, ...]) -> AsyncIterator[MemberProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(member_process.__file__),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        start = {"identity": str(folder / "identity"), "initial_peers": initial_peers}
        process.stdin.write(json.dumps(start).encode() + b"\n")
        async with asyncio.timeout(30):
            yield MemberProcess(process, json.loads(await process.stdout.readline()))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def require_end(pid: int, seconds: float) -> None:
    """The process is gone within that time."""
    async with asyncio.timeout(seconds):
        while not ended(pid):  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("plane", ["direct", "libp2p"])
@pytest.mark.parametrize("fault", ["kill", "stop"])
async def test_a_process_that_fails_in_exchange(peers: dict[int, Peer], tmp_path: Path, fault: str, plane: str) -> None:
    """SIGKILL or SIGSTOP: the others end in time, all name it and nobody else, keep all, and go on without it.

    The daemon of a killed process dies with it.
    """
    deadlines = StateDeadlines(connect=10.0, exchange=4.0, commit=4.0)
    async with member_in_process(tmp_path, peers[0].addresses) as victim:
        transports = {uid: peers[uid] for uid in range(3)}
        async with group_on(transports) as group:
            for averager in group.averagers.values():
                averager._allow = lambda _: True
            odd = Participant(uid=3, peer_id=victim.peer_id, addresses=victim.addresses, share=1.0, contributes=True)
            plan = make_plan([*group.members(), odd], 2_000_000, deadlines=deadlines, chunk=50_000)
            values = contributions(plan)
            # a part has 2 MB: when it fails everybody is in EXCHANGE and has begun to send
            await victim.order(plan, 3, fault, 4_500_000, direct=plane == "direct")
            began = time.monotonic()
            results = await group.run(plan, values, without=[3])
            took = time.monotonic() - began
            for result in results.values():
                assert result.outcome.state is RoundState.ABORTED
                assert result.average is None
                assert [(f.uid, f.state) for f in result.outcome.failures] == [(3, "EXCHANGE")], result.outcome.failures
                connect = result.outcome.seconds[RoundState.CONNECT]
                assert took < connect + deadlines.exchange + 1.0
            # who had not begun its stream when the victim died tried the other plane, too
            assert plane in {result.outcome.planes[3] for result in results.values()}
            assert fault == "stop" or took < deadlines.exchange
            again = make_plan([member(uid, peer) for uid, peer in transports.items()], 1000)
            assert all(r.outcome.completed for r in (await group.run(again, contributions(again))).values())
        if fault == "kill":
            await require_end(victim.daemon, 3)
    await require_end(victim.daemon, 3)


async def test_the_daemon_does_not_outlive_the_neuron(peers: dict[int, Peer], tmp_path: Path) -> None:
    """Not even when the neuron is killed without a chance to clean up."""
    async with member_in_process(tmp_path, peers[0].addresses) as neuron:
        assert not ended(neuron.daemon)
        neuron.process.send_signal(signal.SIGKILL)
        await require_end(neuron.daemon, 3)
