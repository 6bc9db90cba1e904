"""Rounds in memory: the average, and what happens when a member is late, wrong, silent or dead."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distributed_training.averaging import exchange, round
from distributed_training.averaging.board import Board, Link
from distributed_training.averaging.codec import Floats
from distributed_training.averaging.codecs.floating import Float32
from distributed_training.averaging.frames import Answer, Hello, Vote, read_message, write_message
from distributed_training.averaging.memory import MemoryNetwork, MemoryStream, MemoryTransport
from distributed_training.averaging.outcome import RoundResult, RoundState
from distributed_training.averaging.plan import RoundPlan, StateDeadlines
from distributed_training.averaging.reducer import Reducer
from distributed_training.averaging.round import PROTOCOL
from distributed_training.averaging.streams import Lane, Stream
from template.errors import AveragingError
from tests.averaging.groups import contributions, exact_mean, make_plan, member, memory_group, weights

SHORT = StateDeadlines(connect=1.2, exchange=1.2, commit=1.2)


def require_average(plan: RoundPlan, values: Mapping[int, Floats | None], results: Mapping[int, RoundResult]) -> None:
    """Done at everybody, with the weighted mean and the same bits."""
    assert {r.outcome.state for r in results.values()} == {RoundState.DONE}
    first = next(iter(results.values()))
    assert first.average is not None
    np.testing.assert_allclose(first.average, exact_mean(values, weights(plan)), rtol=1e-5, atol=1e-6)
    for result in results.values():
        assert result.average is not None
        assert result.average.tobytes() == first.average.tobytes()
        assert result.outcome.average_hash == first.outcome.average_hash
        assert result.outcome.participants == plan.contributors
        assert result.outcome.failures == ()


def require_abort(results: Mapping[int, RoundResult], culprit: int) -> None:
    """Nobody has an average, somebody names the culprit, and nobody names anybody else."""
    for uid, result in results.items():
        assert result.outcome.state is RoundState.ABORTED, uid
        assert result.average is None
        assert {f.uid for f in result.outcome.failures} <= {culprit}, (uid, result.outcome.failures)
    assert any(result.outcome.failures for result in results.values())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), n=st.integers(1, 5), size=st.integers(1, 3000), chunk=st.integers(1, 700))
async def test_everybody_gets_the_weighted_mean(data: st.DataObject, n: int, size: int, chunk: int) -> None:
    """Any size, any chunks, any members that only reduce or only contribute."""
    auxiliary = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    idle = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    async with memory_group(n) as (group, _):
        plan = make_plan(
            group.members(auxiliary=sorted(auxiliary), idle=sorted(idle)), size, chunk=max(chunk, size // 9)
        )
        values = contributions(plan)
        require_average(plan, values, await group.run(plan, values))


async def test_half_precision_is_the_same_for_everybody() -> None:
    """A lossy codec costs precision, never agreement."""
    async with memory_group(4) as (group, _):
        plan = make_plan(group.members(auxiliary=[3]), 5000, codec="fp16")
        values = contributions(plan)
        results = await group.run(plan, values)
        assert len({r.outcome.average_hash for r in results.values()}) == 1
        assert results[0].average is not None
        np.testing.assert_allclose(results[0].average, exact_mean(values, weights(plan)), rtol=2e-3, atol=2e-3)


async def test_traffic_is_counted_to_the_byte() -> None:
    """Two members, equal shares: each sends its part of the other's share and the average of its own."""
    async with memory_group(2) as (group, _):
        plan = make_plan(group.members(), 4000, chunk=1000)
        results = await group.run(plan, contributions(plan))
        for uid, result in results.items():
            (transfer,) = result.outcome.transfers
            assert transfer.uid == 1 - uid
            assert transfer.bytes_sent == transfer.bytes_received == 2 * 2000 * 4 + 4 * 4
            assert transfer.seconds_receiving > 0
            assert result.outcome.bits_per_parameter == 8 * (2 * 2000 * 4 + 4 * 4) / 4000


async def test_the_contribution_is_left_alone() -> None:
    """The average is a new array; it cannot be written to."""
    async with memory_group(2) as (group, _):
        plan = make_plan(group.members(), 100)
        values = contributions(plan)
        before = {uid: np.copy(value) for uid, value in values.items() if value is not None}
        results = await group.run(plan, values)
        for uid in before:
            np.testing.assert_array_equal(values[uid], before[uid])
        assert results[0].average is not None
        with pytest.raises(ValueError, match="read-only"):
            results[0].average[0] = 0


async def test_a_late_member_is_waited_for() -> None:
    """Its streams' counterparts wait in its lobby until it begins."""
    async with memory_group(3) as (group, _):
        plan = make_plan(group.members(), 100)
        values, by = contributions(plan), weights(plan)
        others = asyncio.create_task(group.run(plan, values, without=[2]))
        await asyncio.sleep(0.3)
        late = await group.averagers[2].run(plan, values[2], by[2])
        require_average(plan, values, {**await others, 2: late})


async def test_an_absent_member_is_named_at_the_connect_deadline() -> None:
    """The others end together, and go on without it."""
    async with memory_group(3) as (group, _):
        plan = make_plan(group.members(), 100, deadlines=SHORT)
        values = contributions(plan)
        results = await group.run(plan, values, without=[2])
        require_abort(results, 2)
        assert {f.state for r in results.values() for f in r.outcome.failures} == {"CONNECT"}
        again = make_plan([m for m in plan.members if m.uid != 2], 100)
        values.pop(2)
        require_average(again, values, await group.run(again, values))


@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_a_sender_of_nan_is_named_to_every_reducer(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """One bad number anywhere spoils the round for nobody's state."""
    monkeypatch.setattr(round, "_require_fit", lambda *_: None)  # the sender does not check itself
    monkeypatch.setattr(Float32, "encode", lambda _, values: values.view(np.uint8).data)
    async with memory_group(4) as (group, _):
        plan = make_plan(group.members(), 4000, chunk=300)
        values = contributions(plan)
        assert values[2] is not None
        values[2][[start for uid, (start, _) in plan.ranges().items() if uid != 2]] = value
        results = await group.run(plan, values)
        results.pop(2)
        require_abort(results, 2)
        assert all([f.uid for f in r.outcome.failures] == [2] for r in results.values())  # as sender or as reducer


@pytest.mark.parametrize("n", [3, 6])
async def test_who_leaves_before_anybody_is_connected_is_the_only_one_named(n: int) -> None:
    """The others give up one after another because of it, and must not take each other for the cause."""
    async with memory_group(n) as (group, _):
        plan = make_plan(group.members(), 10, deadlines=SHORT)
        with pytest.raises(AveragingError, match="NaN"):
            await group.averagers[1].run(plan, np.full(10, np.nan, dtype=np.float32), weights(plan)[1])
        results = await group.run(plan, contributions(plan), without=[1])
        require_abort(results, 1)


async def test_our_own_nan_is_not_sent() -> None:
    """A member that would be refused says so itself; the others see it leave."""
    async with memory_group(3) as (group, _):
        plan = make_plan(group.members(), 10, deadlines=SHORT)
        values, by = contributions(plan), weights(plan)
        others = asyncio.create_task(group.run(plan, values, without=[1]))
        with pytest.raises(AveragingError, match="NaN"):
            await group.averagers[1].run(plan, np.full(10, np.nan, dtype=np.float32), by[1])
        results = await others
        assert all(r.outcome.state is RoundState.ABORTED and r.average is None for r in results.values())


@pytest.mark.parametrize("weight", [2e6, 1e308])
async def test_a_weight_beyond_the_bound_is_named(weight: float) -> None:
    """A member with a more generous idea of the bound is refused by the others."""
    async with memory_group(3) as (group, _):
        plan = make_plan(group.members(), 100, deadlines=SHORT)
        generous = dataclasses.replace(plan, max_weight=1e308)
        values = contributions(plan)
        greedy = asyncio.create_task(group.averagers[1].run(generous, values[1], weight))
        results = await group.run(plan, values, without=[1])
        await greedy
        require_abort(results, 1)


async def test_a_part_of_the_wrong_size_is_named() -> None:
    """A member that thinks the vector is longer does not spoil it."""
    async with memory_group(3) as (group, _):
        plan = make_plan(group.members(), 3000, chunk=5000)
        longer = dataclasses.replace(plan, size=3300)
        values = contributions(plan)
        odd = asyncio.create_task(group.averagers[1].run(longer, contributions(longer)[1], 1.0))
        results = await group.run(plan, values, without=[1])
        await odd
        require_abort(results, 1)


async def test_who_gives_up_because_another_did_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only member 0 can see what member 3 does wrong; the others follow it, and must not take each other for mute."""
    monkeypatch.setattr(round, "_require_fit", lambda *_: None)  # the sender does not check itself
    for _ in range(5):
        async with memory_group(4) as (group, _network):
            plan = make_plan(group.members(), 4000)
            values = contributions(plan)
            assert values[3] is not None
            values[3][plan.ranges()[0][0]] = np.nan
            results = await group.run(plan, values)
            results.pop(3)
            require_abort(results, 3)


@pytest.mark.parametrize(
    "change", [{"size": 3300}, {"chunk": 77}, {"codec": "fp16"}, {"quorum": 0.51}, {"members": "without 0"}]
)
async def test_who_has_another_plan_is_named_before_anything_moves(change: dict[str, Any]) -> None:
    """By everybody that it meets, at once, instead of when its bytes do not fit."""
    async with memory_group(4) as (group, _):
        plan = make_plan(group.members(), 3000, deadlines=SHORT)
        if "members" in change:
            change = {"members": tuple(m for m in plan.members if m.uid != 0)}
        odd = dataclasses.replace(plan, **change)
        alone = asyncio.create_task(group.averagers[3].run(odd, contributions(odd)[3], 1.0))
        results = await group.run(plan, contributions(plan), without=[3])
        await alone
        require_abort(results, 3)
        assert {f.state for r in results.values() for f in r.outcome.failures} <= {"PREPARE", "CONNECT"}


async def test_a_sender_that_gives_up_at_the_deadline_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It owes its part; that it suspects others, whom nobody else saw fail, does not excuse it."""

    def nothing(self: exchange.Exchange, link: Link, lane: Lane) -> None:
        while self._uid == 3 and not self._board.closed:
            time.sleep(0.01)
        if self._uid != 3:
            send(self, link, lane)

    send = exchange.Exchange._send_part
    monkeypatch.setattr(exchange.Exchange, "_send_part", nothing)
    for early in (0.0, 0.3):
        async with memory_group(4) as (group, _):
            plan = make_plan(group.members(idle=[3]), 3000, deadlines=SHORT)
            hurried = dataclasses.replace(SHORT, exchange=SHORT.exchange - early)
            values, by = contributions(plan), weights(plan)
            mine = dataclasses.replace(plan, deadlines=hurried)
            lazy = asyncio.create_task(group.averagers[3].run(mine, values[3], by[3]))
            results = await group.run(plan, values, without=[3])
            await lazy
            assert all([f.uid for f in r.outcome.failures] == [3] for r in results.values()), [
                r.outcome.failures for r in results.values()
            ]


async def test_more_than_its_part_is_named_and_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The average is whole and right, and may be committed. Nobody but who cannot count is named."""
    send = exchange.Exchange._send_part

    def more(self: exchange.Exchange, link: Link, lane: Lane) -> None:
        send(self, link, lane)
        if self._uid == 0:  # the lightest one: its vote is not needed
            self._send_chunk(link, lane, bytes(100), 25)

    monkeypatch.setattr(exchange.Exchange, "_send_part", more)
    async with memory_group(3) as (group, _):
        plan = make_plan(group.members(), 3000)
        results = await group.run(plan, contributions(plan))
        assert {r.outcome.state for r in results.values()} == {RoundState.DONE}
        assert len({r.average.tobytes() for r in results.values() if r.average is not None}) == 1
        results.pop(0)
        assert all({f.uid for f in r.outcome.failures} == {0} for r in results.values())


async def test_who_says_that_it_follows_somebody_that_went_on_is_named() -> None:
    """By the one that knows better: a member cannot spoil a round and put that on another one."""
    async with memory_group(2) as (group, _):
        board = Board(make_plan(group.members(), 10), 0)
        board.hear(1, Vote(average_hash=None, followed=(0,)))
        assert [f.uid for f in board.failures.values()] == [1]
        board = Board(make_plan(group.members(), 10), 0)
        board.give_up()
        board.hear(1, Vote(average_hash=None, followed=(0,)))
        board.name_the_mute()
        assert not board.failures


async def test_a_member_that_waits_in_exchange_for_one_in_connect_does_not_name_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """EXCHANGE may be shorter than CONNECT: members 1 and 2 never meet and name each other, 0 names neither."""
    async with memory_group(3) as (group, _):
        dial = MemoryNetwork.dial

        def torn(self: MemoryNetwork, caller: str, peer_id: str, protocol: str) -> MemoryStream:
            if {caller, peer_id} == {"peer-1", "peer-2"}:
                raise AveragingError("no way")
            return dial(self, caller, peer_id, protocol)

        monkeypatch.setattr(MemoryNetwork, "dial", torn)
        hurried = StateDeadlines(connect=0.8, exchange=0.2, commit=0.2)
        plan = make_plan(group.members(), 1000, deadlines=hurried)
        results = await group.run(plan, contributions(plan))
        named = {uid: {f.uid for f in r.outcome.failures} for uid, r in results.items()}
        assert named in ({0: set(), 1: {2}, 2: {1}}, {0: set(), 1: {2}, 2: set()}, {0: set(), 1: set(), 2: {1}})


class _TwoFaced(Reducer):
    """A reducer that sends everybody other bytes."""

    asked = 0

    def encoded(self, index: int, gone: Callable[[], bool]) -> bytes | memoryview:
        data = np.frombuffer(super().encoded(index, gone), dtype=np.float32)
        _TwoFaced.asked += 1
        return bytes((data + np.float32(_TwoFaced.asked)).data)


async def test_a_reducer_that_sends_different_bytes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two members may end with different values: the vote fails, and the digests tell whose share it was."""

    def build(out: Floats, *rest: object) -> Reducer:
        return (_TwoFaced if out.size == 2000 else Reducer)(out, *rest)  # type: ignore[arg-type]  # passes all on

    monkeypatch.setattr(exchange, "Reducer", build)
    async with memory_group(4) as (group, _):
        members = [member(uid, t, 2.0 if uid == 1 else 1.0) for uid, t in group.transports.items()]
        plan = make_plan(members, 5000, chunk=5000)
        results = await group.run(plan, contributions(plan))
        results.pop(1)
        require_abort(results, 1)


async def _when_data_flows(network: MemoryNetwork, n: int) -> None:
    """Returns in EXCHANGE: the control streams are open and data streams begin."""
    while len(network.streams) <= n * (n - 1):  # noqa: ASYNC110 - the network has no event for it
        await asyncio.sleep(0)


@pytest.mark.parametrize("fault", ["stall", "kill"])
async def test_a_member_that_fails_in_exchange_is_named_by_all(fault: str) -> None:
    """Hanging costs one deadline, dying costs nothing; nobody blames anybody else; the next round goes without it."""
    async with memory_group(4) as (group, network):
        plan = make_plan(group.members(), 400_000, chunk=10_000, deadlines=SHORT)
        values, by = contributions(plan), weights(plan)
        victim = asyncio.create_task(group.averagers[3].run(plan, values[3], by[3]))
        others = asyncio.create_task(group.run(plan, values, without=[3]))
        await _when_data_flows(network, 4)
        began = time.monotonic()
        (network.stall if fault == "stall" else network.kill)("peer-3")
        if fault == "kill":
            victim.cancel()
        results = await others
        assert time.monotonic() - began < SHORT.exchange + 4  # a busy machine; the fault table looks closer
        require_abort(results, 3)
        assert all(r.outcome.failures for r in results.values())
        await asyncio.gather(victim, return_exceptions=True)
        again = make_plan(plan.members[:3], 1000)
        values = contributions(again)
        require_average(again, values, await group.run(again, values))


async def test_a_member_that_dies_before_its_vote_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the quorum there, the vote of one is not needed."""
    async with memory_group(4) as (group, network):
        cast = round.Round._cast

        def die_instead(self: round.Round, vote: Vote) -> list[asyncio.Task[None]]:
            if self._uid == 0:
                self._board.spawn(die())
                return []
            return cast(self, vote)

        async def die() -> None:
            running = [r for averager in group.averagers.values() for r in averager._rounds.values()]
            async with asyncio.timeout(5):
                # before that it would stop everybody
                while any(r._board.state is not RoundState.COMMIT for r in running):  # noqa: ASYNC110 - rings no bell
                    await asyncio.sleep(0.01)
            network.kill("peer-0")

        monkeypatch.setattr(round.Round, "_cast", die_instead)
        plan = make_plan(group.members(idle=[0]), 1000, quorum=0.67)
        results = await group.run(plan, contributions(plan))
        results.pop(0)
        assert {r.outcome.state for r in results.values()} == {RoundState.DONE}
        assert {r.outcome.agreed for r in results.values()} == {(1, 2, 3)}


@pytest.mark.parametrize("arrives", [True, False])
async def test_what_a_member_sent_before_it_died_may_come_after_the_news(
    monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """Its average lies in the others' sockets when they see its control streams end: they commit. If it does not come,
    they do not wait for the deadline."""
    async with memory_group(4) as (group, _):
        commit, lose, receive = round.Round._commit, round.Round._lose, exchange.Exchange._receive_average
        news = {uid: asyncio.Event() for uid in range(3)}

        async def die_instead(self: round.Round, exchange_end: float) -> RoundResult:
            if self._uid == 3:
                for link in self._board.links.values():
                    for stream in (link.voting, link.greeting):
                        assert stream is not None
                        stream.abort()
                await asyncio.sleep(3600)  # what it wrote stays where it is
            return await commit(self, exchange_end)

        def hear(self: round.Round, link: Link, stream: Stream, error: AveragingError) -> None:
            lose(self, link, stream, error)
            if arrives and self._uid != 3:
                news[self._uid].set()

        async def read_late(self: exchange.Exchange, link: Link, stream: Stream, lane: Lane) -> None:
            if link.member.uid == 3:
                await news[self._uid].wait()
            await receive(self, link, stream, lane)

        monkeypatch.setattr(round.Round, "_commit", die_instead)
        monkeypatch.setattr(round.Round, "_lose", hear)
        monkeypatch.setattr(exchange.Exchange, "_receive_average", read_late)
        plan = make_plan(group.members(auxiliary=[3]), 1000, quorum=0.67)
        values, began = contributions(plan), time.monotonic()
        victim = asyncio.create_task(group.averagers[3].run(plan, None, 0.0))
        results = await group.run(plan, values, without=[3])
        assert not victim.done()
        victim.cancel()
        await asyncio.wait({victim})
        assert {f.uid for r in results.values() for f in r.outcome.failures} == {3}
        assert {r.outcome.state for r in results.values()} == {RoundState.DONE if arrives else RoundState.ABORTED}
        assert time.monotonic() - began < plan.deadlines.exchange


async def test_without_a_quorum_everybody_keeps_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that hold the whole average still drop it when one that hangs could hold another one."""
    async with memory_group(3) as (group, _):
        cast = round.Round._cast
        monkeypatch.setattr(round.Round, "_cast", lambda self, vote: [] if self._uid == 0 else cast(self, vote))
        plan = make_plan(group.members(), 1000, quorum=1.0, deadlines=SHORT)
        results = await group.run(plan, contributions(plan))
        results.pop(0)
        require_abort(results, 0), [r.outcome for r in results.values()]
        assert {(f.state, f.role) for r in results.values() for f in r.outcome.failures} == {("COMMIT", "voter")}


@pytest.mark.parametrize("quorum", [0.67, 1.0])
async def test_a_member_that_hangs_before_its_vote_costs_one_deadline(
    monkeypatch: pytest.MonkeyPatch, quorum: float
) -> None:
    """Not EXCHANGE and COMMIT one after the other; it is named whether the others need its vote or not."""
    async with memory_group(4) as (group, _):
        cast = round.Round._cast
        monkeypatch.setattr(round.Round, "_cast", lambda self, vote: [] if self._uid == 0 else cast(self, vote))
        deadlines = StateDeadlines(connect=0.6, exchange=2.0, commit=2.0)
        plan = make_plan(group.members(), 1000, quorum=quorum, deadlines=deadlines)
        began = time.monotonic()
        results = await group.run(plan, contributions(plan))
        assert time.monotonic() - began < 4.0  # one after the other they would take longer
        results.pop(0)
        assert {r.outcome.completed for r in results.values()} == {quorum < 1}
        assert {f.uid for r in results.values() for f in r.outcome.failures} == {0}


async def test_rounds_one_after_another_do_not_mix() -> None:
    """Twenty rounds of one epoch, each with its own values; no stream is left open."""
    async with memory_group(3) as (group, network):
        for attempt in range(20):
            plan = make_plan(group.members(), 500)
            values = contributions(plan, seed=attempt)
            require_average(plan, values, await group.run(plan, values))
        assert all(near._closed and far._closed for _, _, near, far in network.streams)


async def test_an_old_round_cannot_be_run_again() -> None:
    """A retry needs a round id of its own; a plan without us or for another run is refused."""
    async with memory_group(2) as (group, _):
        plan = make_plan(group.members(), 10)
        values = contributions(plan)
        await group.run(plan, values)
        for bad in (plan, dataclasses.replace(plan, run_id="other"), make_plan(plan.members[1:], 10)):
            with pytest.raises(AveragingError):
                await group.averagers[0].run(bad, values[0], 1.0)


async def _ask(network: MemoryNetwork, name: str, plan: RoundPlan, uid: int, kind: str = "control") -> str:
    """Knock as `uid` from the peer `name`; the code of the answer."""
    stream = await network.transport(name).open("peer-0", (), PROTOCOL)
    place = {"run_id": plan.run_id, "round_id": plan.round_id, "kind": kind, "uid": uid, "weight": 1.0}
    try:
        await write_message(stream, Hello.model_validate(place))
        return (await read_message(stream, Answer)).code
    except AveragingError:
        return "dropped"
    finally:
        await stream.close()


async def test_strangers_are_refused() -> None:
    """A peer that is not allowed is dropped; an allowed one under another's uid, or for an old round, is told."""
    async with memory_group(3) as (group, network):
        plan = make_plan(group.members()[:2], 10, deadlines=SHORT)
        values = contributions(plan)
        running = asyncio.create_task(group.averagers[0].run(plan, values[0], 1.0))
        await asyncio.sleep(0.05)
        assert await _ask(network, "nobody", plan, 1) == "dropped"
        assert await _ask(network, "peer-2", plan, 1) == "stranger"
        assert await _ask(network, "peer-2", make_plan(plan.members, 10), 2, "data") == "unknown"
        await running
        assert await _ask(network, "peer-1", plan, 1) == "ended"


async def test_the_lobby_is_bounded() -> None:
    """A peer that knocks for rounds that do not exist is turned away after a few."""
    async with memory_group(2) as (group, network):
        transport = network.transport("peer-1")
        streams = [await _knock(transport, make_plan(group.members(), 10)) for _ in range(4)]
        with pytest.raises(AveragingError):
            await read_message(await _knock(transport, make_plan(group.members(), 10)), Answer)
        for stream in streams:
            stream.abort()


async def _knock(transport: MemoryTransport, plan: RoundPlan) -> MemoryStream:
    stream = await transport.open("peer-0", (), PROTOCOL)
    place = {"run_id": plan.run_id, "round_id": plan.round_id, "kind": "control", "uid": 1, "weight": 1.0}
    await write_message(stream, Hello.model_validate(place))
    await asyncio.sleep(0.01)
    return stream


async def test_a_giant_frame_is_not_read() -> None:
    """Four gigabytes announced, none taken."""
    async with memory_group(2) as (_, network):
        stream = await network.transport("peer-1").open("peer-0", (), PROTOCOL)
        await stream.write(b"\xff\xff\xff\xff")
        async with asyncio.timeout(2):
            with pytest.raises(AveragingError):
                await stream.readexactly(1)


async def test_other_tasks_keep_running() -> None:
    """The loop's thread never works for long at a stretch while a few million values are averaged."""
    stretches = []

    async def tick() -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            stretches.append(time.thread_time() - began)

    async with memory_group(2) as (group, _):
        first = make_plan(group.members(), 10)
        await group.run(first, contributions(first))  # what is loaded once is not a round's work
        plan = make_plan(group.members(), 4_000_000, chunk=1 << 18)
        values = contributions(plan)
        ticking = asyncio.create_task(tick())
        await group.run(plan, values)
        ticking.cancel()
    assert len(stretches) > 20
    assert max(stretches) < 0.05
