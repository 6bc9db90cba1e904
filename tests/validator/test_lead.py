"""Leading: counting the answers, the next attempt's group, and an end within the allowed attempts."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from distributed_training.averaging.binding import sign_binding
from distributed_training.averaging.board import Link
from distributed_training.averaging.deadlines import ENOUGH
from distributed_training.averaging.exchange import Exchange
from distributed_training.averaging.frames import Hello
from distributed_training.averaging.streams import Stream
from distributed_training.protocol import AllReduce, AllReduceResponse, Failure, Member, StateSeconds
from distributed_training.schedule import group
from distributed_training.validator.lead import Attempt, RoundLeader, count
from template.clock import SystemClock
from tests.roles import AVERAGING, EPOCH, Subnet, key_of, subnet

NEW, OTHER = "a" * 64, "b" * 64


def members(size: int) -> tuple[Member, ...]:
    """Uid 0 only reduces."""
    return tuple(
        Member(
            uid=uid,
            peer=sign_binding(key_of(uid), "run-1", f"peer{uid}", ("/memory",)),
            share=1 / size,
            contributes=uid > 0,
        )
        for uid in range(size)
    )


def answer(state_hash: str = NEW, *, completed: bool = True, names: tuple[int, ...] = ()) -> AllReduceResponse:
    return AllReduceResponse(
        completed=completed,
        epoch=1,
        state_hash=state_hash,
        samples=1,
        records_hash=NEW,
        seconds=1.0,
        failures=tuple(Failure(uid=uid, state="EXCHANGE", role="sender", reason="late") for uid in names),
        transfers=(),
        states=StateSeconds(connect=0.1, exchange=0.2, commit=0.1),
    )


def failed(*names: int, state: str = "EXCHANGE") -> AllReduceResponse:
    response = answer(completed=False, names=names)
    failures = tuple(failure.model_copy(update={"state": state}) for failure in response.failures)
    return response.model_copy(update={"failures": failures})


@pytest.mark.parametrize(
    ("contributors", "confirming", "completed"), [(1, 1, True), (3, 2, False), (3, 3, True), (10, 7, True)]
)
def test_a_round_counts_when_the_quorum_of_contributors_holds_one_state(
    contributors: int, confirming: int, completed: bool
) -> None:
    """0.67 of them by number; the validator's own answer is no contributor's."""
    answers = {uid: answer() for uid in range(confirming + 1)}
    attempt = count([], members(contributors + 1), answers, 0.67)
    assert attempt.completed is completed
    assert attempt.confirmed == frozenset(range(confirming + 1))


def test_different_states_are_not_added_up() -> None:
    """Two halves that both say completed are no agreement."""
    answers = {1: answer(), 2: answer(), 3: answer(OTHER), 4: answer(OTHER)}
    attempt = count([], members(5), answers, 0.67)
    assert not attempt.completed
    assert attempt.silent == {0}


def test_who_was_named_by_two_is_left_out() -> None:
    """It spoiled the attempt; the shares of the others sum to one again."""
    answers = {0: failed(2), 1: failed(2), 2: failed(), 3: failed(2)}
    attempt = count([], members(4), answers, 0.67)
    assert (attempt.spoilers, attempt.silent) == ({2}, set())
    assert [m.uid for m in attempt.survivors] == [0, 1, 3]
    assert sum(m.share for m in attempt.survivors) == pytest.approx(1)


def test_one_accuser_convicts_nobody() -> None:
    """It stays in, as does the accused, but reduces nothing any more."""
    attempt = count([], members(4), {0: failed(), 1: failed(2), 2: failed(), 3: failed()}, 0.67)
    assert attempt.spoilers == frozenset()
    assert [(m.uid, m.share > 0) for m in attempt.survivors] == [(0, True), (1, False), (2, True), (3, True)]


def test_who_was_silent_spoiled_the_attempt_unless_it_is_excused() -> None:
    """Who was asked and said nothing is left out; who is in another round, or only reduces, spoiled nothing."""
    attempt = count([], members(4), {0: failed(3), 1: failed(3), 2: failed(3)}, 0.67)
    assert (attempt.spoilers, attempt.silent) == ({3}, {3})
    assert dataclasses.replace(attempt, excused=frozenset({3})).spoilers == frozenset()
    assert count([], members(4), {uid: failed(0) for uid in (1, 2, 3)}, 0.67).spoilers == frozenset()
    assert [m.uid for m in attempt.survivors] == [0, 1, 2]


def test_hanging_up_because_another_did_not_come_is_no_fault() -> None:
    """One refuses; those who notice give up, and those who still connect to them see lost connections everywhere."""
    answers = {0: failed(1, 2, state="CONNECT"), 1: failed(2, state="PREPARE"), 2: failed(1, state="CONNECT")}
    attempt = count([], members(4), answers, 0.67)
    assert (attempt.spoilers, attempt.silent) == ({3}, {3})
    assert [(m.uid, m.share > 0) for m in attempt.survivors] == [(0, True), (1, True), (2, True)]
    everybody_came = count([], members(4), {**answers, 3: failed()}, 0.67)
    assert everybody_came.spoilers >= {2}


def leader_of(net: Subnet, uid: int = 0) -> RoundLeader:
    neuron = net.neurons[uid]
    return RoundLeader(
        spec=net.spec, node=neuron.node, dendrite=neuron.dendrite, telemetry=neuron.telemetry, clock=SystemClock()
    )


async def lead_by(leader: RoundLeader, net: Subnet) -> list[Attempt]:
    state = net.neurons[0].state
    return list(await leader.lead(net.chain.metagraph, state, group(net.views(), state)))


async def lead(net: Subnet, made: int = 0) -> list[Attempt]:
    state = net.neurons[0].state
    return list(await leader_of(net).lead(net.chain.metagraph, state, group(net.views(), state), made))


async def test_a_sound_group_completes_at_once(tmp_path: Path) -> None:
    """One attempt; the leader is one of those who confirm."""
    async with subnet(tmp_path) as net:
        await net.train(1)
        await net.train(2)
        (attempt,) = await lead(net)
        assert attempt.completed
        assert attempt.confirmed == {0, 1, 2}
        assert {neuron.engine.epoch for neuron in net.neurons.values()} == {1}
        assert net.neurons[0].told("RoundLed")[0]["refusals"] == {}


async def test_the_second_attempt_leaves_out_who_did_not_answer(tmp_path: Path) -> None:
    """A miner that is gone costs one attempt; the leader is told why."""
    short = dataclasses.replace(AVERAGING, connect_seconds=2.0)
    async with subnet(tmp_path, miners=4, averaging=short) as net:
        for uid in (1, 2, 3, 4):
            await net.train(uid)
        group_before = net.views()
        axon = net.neurons[3].axon
        net.wire.remove(axon.hotkey)
        state = net.neurons[0].state
        first, second = await leader_of(net).lead(net.chain.metagraph, state, group(group_before, state))
        net.wire.add(axon)
        assert (first.completed, first.silent, first.spoilers) == (False, {3}, {3})
        assert (second.completed, second.confirmed) == (True, {0, 1, 2, 4})
        assert "3" in net.neurons[0].told("RoundLed")[0]["refusals"]


async def test_it_gives_up_within_the_attempts(tmp_path: Path) -> None:
    """Two miners that cannot see each other: as many attempts as the run allows, and none more in this turn."""
    short = dataclasses.replace(AVERAGING, connect_seconds=0.3)
    epoch = dataclasses.replace(EPOCH, attempts=2)
    async with subnet(tmp_path, miners=2, averaging=short, epoch=epoch) as net:
        for uid in (1, 2):
            await net.train(uid)
        known = net.neurons[1].known
        known.keep([net.neurons[0].axon.hotkey])
        known.add = lambda hotkey, peer_id: None  # type: ignore[method-assign]
        attempts = await lead(net)
        assert [a.completed for a in attempts] == [False, False]
        assert attempts[0].spoilers == frozenset()  # one word stands against the other
        assert await lead(net, made=2) == []
        assert len(await lead(net, made=1)) == 1
        assert {neuron.engine.epoch for neuron in net.neurons.values()} == {0}


async def test_its_own_refusal_is_told_and_does_not_end_it(tmp_path: Path) -> None:
    """The leader is in another's round: it counts as silent in its own, like anybody."""
    epoch = dataclasses.replace(EPOCH, attempts=1)
    short = dataclasses.replace(AVERAGING, connect_seconds=0.3)
    async with subnet(tmp_path, miners=1, epoch=epoch, averaging=short) as net:
        await net.train(1)
        async with net.neurons[0].turn:
            (attempt,) = await lead(net)
        assert (attempt.completed, attempt.silent) == (False, {0})
        assert "a round is in progress" in net.neurons[0].told("RoundLed")[0]["refusals"]["0"]


async def test_nobody_to_lead_is_no_attempt(tmp_path: Path) -> None:
    """A group without contributors has nothing to average."""
    async with subnet(tmp_path) as net:
        assert await lead(net) == []


async def test_an_attempt_is_not_repeated_with_less_than_the_quorum(tmp_path: Path) -> None:
    """The others may be ending the epoch in another leader's round at this moment."""
    short = dataclasses.replace(AVERAGING, connect_seconds=0.3)
    async with subnet(tmp_path, miners=2, averaging=short) as net:
        for uid in (1, 2):
            await net.train(uid)
        before, axon = net.views(), net.neurons[2].axon
        net.wire.remove(axon.hotkey)
        state = net.neurons[0].state
        attempts = await leader_of(net).lead(net.chain.metagraph, state, group(before, state))
        net.wire.add(axon)
        assert [attempt.completed for attempt in attempts] == [False]


async def test_it_gives_way_to_the_round_that_it_is_in(tmp_path: Path) -> None:
    """One refusal of its own ends its leading: whoever leads the other round goes on."""
    short = dataclasses.replace(AVERAGING, connect_seconds=0.3)
    async with subnet(tmp_path, miners=1, averaging=short) as net:
        await net.train(1)
        async with net.neurons[0].turn:
            (attempt,) = await lead(net)
        assert attempt.gave_way


async def test_it_does_not_lead_what_it_takes_no_part_in(tmp_path: Path) -> None:
    """Named by the others, it could neither check nor publish what comes of it."""
    async with subnet(tmp_path, miners=2, validators=2) as net:
        for uid in (2, 3):
            await net.train(uid)
        state = net.neurons[0].state
        without = tuple(m for m in group(net.views(), state) if m.uid != 0)
        assert await leader_of(net).lead(net.chain.metagraph, state, without) == []


async def test_when_a_reducer_is_lost_the_round_is_repeated_at_once_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies with the first part that it takes: nobody has its share, and the rest average without it."""
    accept = Exchange.accept
    async with subnet(tmp_path, miners=4) as net:

        async def die(self: Exchange, link: Link, stream: Stream, hello: Hello) -> None:
            if self._uid == 3 and "peer3" in net.streams._transports:
                net.streams.kill("peer3")
            await accept(self, link, stream, hello)

        monkeypatch.setattr(Exchange, "accept", die)
        for uid in (1, 2, 3, 4):
            await net.train(uid)
        first, second = await lead(net)
        assert (first.completed, first.spoilers) == (False, {3})
        reports = [failure for uid in (0, 1, 2, 4) for failure in first.answers[uid].failures]
        assert {(failure.uid, failure.role) for failure in reports} <= {(3, "reducer"), (3, "voter"), (3, "sender")}
        assert (second.completed, second.confirmed) == (True, {0, 1, 2, 4})
        assert sum(member.share for member in second.group) == pytest.approx(1)
        states = {net.neurons[uid].state for uid in (0, 1, 2, 4)}
        assert states == {(1, second.answers[1].state_hash)}
        assert net.neurons[3].engine.epoch == 0
        assert net.neurons[0].told("RoundLed")[0]["seconds"] < AVERAGING.exchange_seconds  # no deadline was waited for


async def test_a_member_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    """It took the request and never says a word: when the others have seen that, the next attempt begins."""
    long = dataclasses.replace(AVERAGING, connect_seconds=1.0, exchange_seconds=60, commit_seconds=60)
    async with subnet(tmp_path, miners=4, averaging=long) as net:
        for uid in (1, 2, 3, 4):
            await net.train(uid)

        async def hang(request: AllReduce) -> AllReduceResponse:
            await asyncio.Event().wait()
            raise AssertionError

        net.neurons[2].node.take_part = hang  # type: ignore[method-assign]
        first, second = await lead(net)
        assert (first.completed, first.silent, first.spoilers) == (False, {2}, {2})
        assert second.confirmed == {0, 1, 3, 4}
        told = net.neurons[0].told("RoundLed")[0]
        assert told["seconds"] < 30  # of the 126 that the states and the answer could take
        assert "no answer in" in told["refusals"]["2"]


async def test_deadlines_follow_the_rounds_that_were_led(tmp_path: Path) -> None:
    """After some rounds the members are given less than the run allows, and complete in it."""
    roomy = dataclasses.replace(AVERAGING, connect_seconds=60, exchange_seconds=60, commit_seconds=60, least_seconds=5)
    async with subnet(tmp_path, averaging=roomy) as net:
        leader = leader_of(net)
        for _ in range(ENOUGH + 1):
            for uid in (1, 2):
                await net.train(uid)
            assert [attempt.completed for attempt in await lead_by(leader, net)] == [True]
        given = [done.request.deadlines.exchange for done in net.neurons[1].ended]
        told = [event["deadlines"]["exchange"] for event in net.neurons[0].told("RoundLed")]
    assert told == given
    assert given[:ENOUGH] == [60.0] * ENOUGH
    assert 5 <= given[ENOUGH] < 60


async def test_validators_reduce_as_much_as_the_run_says(tmp_path: Path) -> None:
    """A tenth of an equal share here; the miners do the rest, and all complete."""
    little = dataclasses.replace(AVERAGING, validator_share=0.1)
    async with subnet(tmp_path, averaging=little) as net:
        for uid in (1, 2):
            await net.train(uid)
        (attempt,) = await lead(net)
        assert [m.share for m in attempt.group] == pytest.approx([1 / 30, 29 / 60, 29 / 60])
        assert attempt.completed


async def test_the_answers_tell_how_long_each_state_took(tmp_path: Path) -> None:
    """And where it ended if it did not complete."""
    short = dataclasses.replace(AVERAGING, connect_seconds=0.3)
    async with subnet(tmp_path, miners=1, averaging=short) as net:
        await net.train(1)
        (attempt,) = await lead(net)
        assert None not in attempt.answers[1].states.model_dump().values()
        await net.train(1)
        alone = await net.neurons[1].node.take_part(net.request())
        assert alone.states.connect is not None
        assert alone.states.connect >= 0.27
        assert (alone.states.exchange, alone.states.commit) == (None, None)
