"""Rounds over real libp2p daemons: the same results as in memory, and no leaks. Members that fail: tests/faults."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from distributed_training.averaging import wire_exhibits
from distributed_training.averaging.codec import Floats
from distributed_training.averaging.exhibits import Wanted
from distributed_training.averaging.frames import Answer, Hello, read_message, write_message
from distributed_training.averaging.outcome import RoundResult, RoundState
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.peer import Peer
from distributed_training.averaging.plan import RoundPlan, StateDeadlines
from distributed_training.averaging.round import PROTOCOL
from distributed_training.averaging.wire_exhibits import WireExhibits
from template.clock import SystemClock
from tests.averaging.conftest import peer_config
from tests.averaging.groups import contributions, exact_mean, group_on, make_plan, member, weights

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


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


@pytest.mark.parametrize("codec", ["none", "int8-block256"])
async def test_unequal_shares_move_what_they_should(peers: dict[int, Peer], codec: str) -> None:
    """A fast member, a slow one, a validator with a little and a client with none: each sends what its share says."""
    shares, size = {0: 0.05, 1: 0.7, 2: 0.25, 3: 0.0}, 400_000
    async with group_on(peers) as group:
        members = [member(uid, peer, shares[uid], contributes=uid > 0) for uid, peer in peers.items()]
        plan = make_plan(members, size, codec=codec, chunk=50_000, reduction="clip")
        values = contributions(plan)
        results = await group.run(plan, values)
    require_one_average(plan, values, results, 1e-6 if codec == "none" else 0.05)
    bits = 32 if codec == "none" else 8.1
    for uid, result in results.items():
        moved = (uid > 0) * (1 - shares[uid]) + 3 * shares[uid]  # its parts of the others' shares, its own average
        sent = sum(transfer.bytes_sent for transfer in result.outcome.transfers)
        assert sent == pytest.approx(moved * size * bits / 8, rel=0.01, abs=100)
        assert result.outcome.bits_per_parameter == pytest.approx(bits, rel=0.01)
        assert set(result.outcome.planes) == {0, 1, 2} - {uid}


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


async def test_what_was_sent_is_shown_to_a_validator(peers: dict[int, Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, though the parts themselves went over direct connections; and to no contributor."""
    monkeypatch.setattr(wire_exhibits, "PAUSE_SECONDS", 0.01)
    async with group_on(peers) as group:
        plan = make_plan(group.members(auxiliary=[3]), 300_001, chunk=50_000)
        values = contributions(plan)
        results = await group.run(plan, values)
        wanted = Wanted(plan=plan, uid=1, root=results[3].outcome.parts[1], reducer=2, chunk=1)
        shown = await WireExhibits(peers[3], SystemClock()).show(wanted)
        assert await WireExhibits(peers[0], SystemClock()).show(wanted) is None
    start, stop = plan.ranges()[2]
    low, high = chunks(stop - start, plan.chunk)[1]
    assert shown is not None
    assert values[1] is not None
    assert shown.tobytes() == values[1][start + low : start + high].tobytes()
