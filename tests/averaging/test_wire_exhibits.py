"""After real rounds in memory: what was sent is shown to auxiliary members, and nothing else passes for it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from distributed_training.averaging import round, wire_exhibits
from distributed_training.averaging.codec import Floats, pair_named
from distributed_training.averaging.exchange import Exchange
from distributed_training.averaging.exhibits import Wanted
from distributed_training.averaging.frames import Hello
from distributed_training.averaging.outcome import RoundResult, RoundState
from distributed_training.averaging.packing import Packing
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.traffic import Effort
from distributed_training.averaging.wire_exhibits import WireExhibits
from template.clock import SystemClock
from tests.averaging.groups import Group, contributions, make_plan, memory_group

SIZE = 4000
VALIDATOR = 3


class Played:
    """A round of three contributors and a validator, and what came of it."""

    def __init__(self, group: Group, plan: RoundPlan, values: Mapping[int, Floats | None]) -> None:
        self.group, self.plan, self.values = group, plan, values
        self.results: dict[int, RoundResult] = {}

    def wanted(self, uid: int, reducer: int, chunk: int = 1) -> Wanted:
        root = self.results[VALIDATOR].outcome.parts[uid]
        return Wanted(plan=self.plan, uid=uid, root=root, reducer=reducer, chunk=chunk)

    async def shown(self, wanted: Wanted, by: int = VALIDATOR) -> Floats | None:
        """What member `by` is shown."""
        return await WireExhibits(self.group.transports[by], SystemClock()).show(wanted)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of one question."""
    monkeypatch.setattr(wire_exhibits, "PAUSE_SECONDS", 0.01)


@asynccontextmanager
async def played(codec: str = "none", **changes: Any) -> AsyncIterator[Played]:
    async with memory_group(4) as (group, _):
        plan = make_plan(group.members(auxiliary=[VALIDATOR]), SIZE, codec=codec, chunk=300, **changes)
        round_ = Played(group, plan, contributions(plan))
        round_.results = await group.run(plan, round_.values)
        yield round_


@pytest.mark.parametrize("codec", ["none", "fp16", "int8-block64"])
async def test_what_was_sent_is_shown(codec: str) -> None:
    """To the bit as the reducer decoded it: the own part as it is, the others through the codec."""
    async with played(codec) as it:
        for uid in (0, 1, 2):
            for reducer, (start, stop) in it.plan.ranges().items():
                low, high = chunks(stop - start, it.plan.chunk)[1]
                shown, given = await it.shown(it.wanted(uid, reducer)), it.values[uid]
                assert shown is not None
                assert given is not None
                sent = given[start + low : start + high]
                if codec == "none" or uid == reducer:
                    assert shown.tobytes() == sent.tobytes()
                else:
                    np.testing.assert_allclose(shown, sent, atol=0.03)


async def test_all_members_know_what_binds_each_contributor() -> None:
    """The same hashes at everybody, of the contributors alone."""
    async with played() as it:
        assert len({tuple(result.outcome.parts.items()) for result in it.results.values()}) == 1
        assert it.results[0].outcome.parts.keys() == {0, 1, 2}


async def test_a_contributor_is_shown_nothing() -> None:
    """Only members that put nothing in may ask: they cannot gain by knowing."""
    async with played() as it:
        assert await it.shown(it.wanted(1, 2), by=0) is None
        assert await it.shown(it.wanted(1, 2), by=VALIDATOR) is not None


async def test_it_is_shown_until_a_later_epoch_is_over() -> None:
    """A failed attempt at the next epoch changes nothing; when that epoch completes, the memory is free."""
    async with played() as it:
        kept = it.group.averagers[1]._showcase._kept
        assert list(kept) == [3]
        later = make_plan(it.group.members(auxiliary=[VALIDATOR]), SIZE, chunk=300)
        object.__setattr__(later, "epoch", 4)
        it.group.averagers[1]._showcase.add(kept[3])
        assert await it.shown(it.wanted(1, 2)) is not None
        await it.group.run(later, it.values)
        assert list(it.group.averagers[1]._showcase._kept) == [4]
        assert await it.shown(it.wanted(1, 2)) is None


async def test_other_bytes_and_other_hashes_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contributor can show what it is bound to, or nothing."""
    async with played() as it:
        honest = Packing.payload
        changed = lambda self, reducer, index: memoryview(bytes(len(honest(self, reducer, index))))  # noqa: E731
        monkeypatch.setattr(Packing, "payload", changed)
        assert await it.shown(it.wanted(1, 2)) is None
        packing = it.group.averagers[1]._showcase._kept[3]
        forged = Packing(it.plan, 1, pair_named("none"), np.zeros(SIZE, np.float32), None, Effort())
        it.group.averagers[1]._showcase.add(forged)
        assert await it.shown(it.wanted(1, 2)) is None
        monkeypatch.undo()
        it.group.averagers[1]._showcase.add(packing)
        assert await it.shown(it.wanted(1, 2)) is not None


async def test_who_sends_other_bytes_than_it_is_bound_to_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the reducer that was to take them, before they are in any average; the reducer is named by nobody."""
    honest = Exchange._send_part

    def other(self: Exchange, link: Any, lane: Any) -> None:
        if self._uid == 1 and link.member.uid == 2:
            assert self._packing is not None
            self._packing._payloads[2] = [memoryview(bytes(len(p))) for p in self._packing._payloads[2]]
        honest(self, link, lane)

    monkeypatch.setattr(Exchange, "_send_part", other)
    async with played() as it:
        assert {result.outcome.state for result in it.results.values()} == {RoundState.ABORTED}
        named = {(f.uid, f.role, f.reason) for result in it.results.values() for f in result.outcome.failures}
    assert named == {(1, "sender", "sends something else than it is bound to")}


async def test_who_tells_a_reducer_another_hash_spoils_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is averaged that members do not agree on; the sender is named with the reducer, as either may lie."""
    honest = round.write_message

    async def write(stream: Any, message: Any) -> None:
        if isinstance(message, Hello) and (message.uid, message.kind, stream.peer_id) == (1, "control", "peer-2"):
            message = message.model_copy(update={"parts": "0" * 64})
        await honest(stream, message)

    monkeypatch.setattr(round, "write_message", write)
    async with played() as it:
        assert {result.outcome.state for result in it.results.values()} == {RoundState.ABORTED}
        named = {uid: {f.uid for f in result.outcome.failures} for uid, result in it.results.items()}
    assert all(1 in named[uid] for uid in (0, VALIDATOR))
    assert named[0] | named[VALIDATOR] <= {1, 2}


async def test_who_is_bound_to_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contributor without a hash of its parts fails at once."""
    honest = Hello.model_validate

    def without(values: Any, **more: Any) -> Hello:
        return honest({**values, "parts": None} if values.get("uid") == 1 else values, **more)

    monkeypatch.setattr(Hello, "model_validate", without)
    async with played() as it:
        assert {result.outcome.state for result in it.results.values()} == {RoundState.ABORTED}
        named = {(f.uid, f.reason) for uid in (0, 2, 3) for f in it.results[uid].outcome.failures}
    assert named == {(1, "binds itself to no parts")}


async def test_a_question_for_what_there_is_not_is_answered_by_silence() -> None:
    """It breaks nothing: the next question is answered."""
    async with played() as it:
        finer = dataclasses.replace(it.wanted(1, 2), plan=dataclasses.replace(it.plan, chunk=100), chunk=9)
        assert await it.shown(finer) is None
        assert await it.shown(it.wanted(1, 2)) is not None
