"""Real rounds in which a miner lies as a reducer, or about what it sent: who is named, who is unpaid, who is not."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_training.averaging import exchange, wire_exhibits
from distributed_training.averaging.codec import Floats
from distributed_training.averaging.exhibits import Wanted
from distributed_training.averaging.packing import Packing
from distributed_training.averaging.partition import chunks
from distributed_training.scoring.combine import Evidence, Outcome, Rules, ScoreBook, advance
from distributed_training.scoring.gradient import Finding
from distributed_training.validator.reductions import Drawn, Reduction, ReductionDesk
from template.telemetry import MemorySink, Telemetry
from tests.averaging.groups import make_plan, memory_group
from tests.roles import AUDIT, AVERAGING, Subnet
from tests.validator.test_contributions import LARGER, desk_of, failed, round_of, served

LIAR, MINERS = 1, 4
LOOK_AT_ALL = dataclasses.replace(AUDIT, reducers=MINERS)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of one question."""
    monkeypatch.setattr(wire_exhibits, "PAUSE_SECONDS", 0.01)


def lying(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """The liar gives everybody `factor` times the average of its share, itself included."""
    honest = exchange.Exchange.begin

    def begin(self: exchange.Exchange, *arguments: Any) -> None:
        honest(self, *arguments)
        if self._uid == LIAR and self._reducer is not None:
            encode = self._reducer._encode
            self._reducer._encode = lambda mean: encode(np.multiply(mean, np.float32(factor), out=mean))  # type: ignore[method-assign]

    monkeypatch.setattr(exchange.Exchange, "begin", begin)


def showing(net: Subnet, uids: Sequence[int], change: Callable[[Packing], None]) -> None:
    """Change what these miners keep to show, after the round."""
    for uid in uids:
        for packing in net.neurons[uid].averager._showcase._kept.values():
            change(packing)


def other_bytes(packing: Packing) -> None:
    for reducer, payloads in packing._payloads.items():
        packing._payloads[reducer] = [memoryview(bytes(payload.nbytes)) for payload in payloads]


def nothing(packing: Packing) -> None:
    packing.shares = {}


async def examined(
    net: Subnet, hiding: Sequence[int] = (), change: Callable[[Packing], None] = nothing
) -> dict[int, Evidence]:
    """One epoch of everybody's work, a round, and what the validator makes of it."""
    for uid in range(1, MINERS + 1):
        await net.train(uid, 3)
    seen = await round_of(net)
    showing(net, hiding, change)
    return {e.uid: e for e in await desk_of(net).examine(net.chain.metagraph, seen)}


def checks(net: Subnet) -> dict[int, bool | None]:
    return {event["miner"]: event["passed"] for event in net.neurons[0].told("ReductionChecked")}


@pytest.mark.parametrize("reduction", ["mean", "clip", "trim", "centered"])
@pytest.mark.parametrize("codec", ["none", "int8-block64", "int2-block64+int8-block256"])
async def test_an_honest_reducer_passes(tmp_path: Path, reduction: str, codec: str) -> None:
    """By every rule and with every kind of codec: nothing but roundings lies between."""
    averaging = dataclasses.replace(AVERAGING, reduction=reduction, codec=codec)
    async with served(tmp_path, MINERS, model=LARGER, averaging=averaging, audit=LOOK_AT_ALL) as net:
        evidence = await examined(net)
        assert checks(net) == dict.fromkeys(range(1, MINERS + 1), True)
    assert [evidence[uid].unshown for uid in range(1, MINERS + 1)] == [""] * MINERS
    assert all(str(Finding.NOT_REDUCED) not in failed(evidence[uid]) for uid in evidence)


@pytest.mark.parametrize("reduction", ["mean", "clip", "trim", "centered"])
@pytest.mark.parametrize("factor", [-3.0, 1.1])
async def test_a_reducer_that_lies_is_named_and_unpaid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reduction: str, factor: float
) -> None:
    """It alone; everybody holds the same false average, so nobody else could tell."""
    lying(monkeypatch, factor)
    averaging = dataclasses.replace(AVERAGING, reduction=reduction)
    async with served(tmp_path, MINERS, model=LARGER, averaging=averaging, audit=LOOK_AT_ALL) as net:
        evidence = await examined(net)
        assert checks(net) == {uid: uid != LIAR for uid in range(1, MINERS + 1)}
        miners = {uid: net.chain.metagraph.hotkeys[uid] for uid in range(1, MINERS + 1)}
        rules = Rules(audit=net.spec.audit, scoring=net.spec.scoring)
    assert [uid for uid in miners if str(Finding.NOT_REDUCED) in failed(evidence[uid])] == [LIAR]
    _, rows = advance(ScoreBook(), 0, miners, [evidence[uid] for uid in miners], rules)
    assert [row.outcome is Outcome.FAILED_AUDIT for row in rows] == [uid == LIAR for uid in miners]
    assert "reduction: the average that it gave everybody" in rows[0].reason


@pytest.mark.parametrize("change", [other_bytes, nothing])
async def test_a_contributor_that_lies_about_what_it_sent_frames_nobody(
    tmp_path: Path, change: Callable[[Packing], None]
) -> None:
    """What it shows does not fit what it is bound to: it is unpaid for the epoch, and the reducers are as honest."""
    async with served(tmp_path, MINERS, model=LARGER, audit=LOOK_AT_ALL) as net:
        evidence = await examined(net, [2], change)
        assert checks(net) == {1: None, 3: None, 4: None}  # nobody knows of these; and 2 is not looked at at all
    assert {uid for uid in evidence if failed(evidence[uid])} == set()
    assert {uid for uid in evidence if evidence[uid].unshown} == {2}


async def test_where_most_are_silent_it_is_our_own_line(tmp_path: Path) -> None:
    """Then nobody is paid less."""
    async with served(tmp_path, MINERS, model=LARGER, audit=LOOK_AT_ALL) as net:
        evidence = await examined(net, [2, 3, 4])
        (told,) = net.neurons[0].told("ReductionsNotChecked")
    assert "as if our line were broken" in told["reason"]
    assert all(not found.unshown and not failed(found) for found in evidence.values())


async def test_who_comes_late_asks_in_vain_and_blames_nobody(tmp_path: Path) -> None:
    """After the next round nobody has to keep what it sent in this one."""
    async with served(tmp_path, MINERS, model=LARGER, audit=LOOK_AT_ALL) as net:
        for uid in range(1, MINERS + 1):
            await net.train(uid, 2)
        seen = await round_of(net)
        for uid in range(1, MINERS + 1):
            await net.train(uid, 2)
        await round_of(net)
        evidence = await desk_of(net).examine(net.chain.metagraph, seen)
        told = [event["reason"] for event in net.neurons[0].told("ReductionsNotChecked")]
    assert told == ["the next round had ended before its reducers were looked at"]
    assert all(not found.unshown and not failed(found) for found in evidence)


class Obliging:
    """Every contributor shows zeros; `asked` is who was asked for its part in whose share, in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    async def show(self, wanted: Wanted) -> Floats | None:
        self.asked.append((wanted.uid, wanted.reducer))
        start, stop = wanted.plan.ranges()[wanted.reducer]
        low, high = chunks(stop - start, wanted.plan.chunk)[wanted.chunk]
        return np.zeros(high - low, np.float32)


async def looked_at(suspects: list[int], seed: int) -> tuple[set[int], list[tuple[int, int]]]:
    """Which two of six reducers a desk looks at, and what it asked."""
    async with memory_group(7) as (group, _):
        plan = make_plan(group.members(auxiliary=[0]), 7000, chunk=300)
    shows, sink = Obliging(), MemorySink()
    desk = ReductionDesk(
        uid=0,
        reducers=2,
        exhibits=shows,
        in_time=lambda _: True,
        telemetry=Telemetry([sink]),
        rng=random.Random(seed),
    )
    drawn = {uid: Drawn(1, np.zeros(250, np.float32)) for uid in plan.contributors}
    seen = Reduction(plan, drawn, dict.fromkeys(plan.contributors, "0" * 64), dict.fromkeys(plan.contributors, 1.0))
    await desk.examine(3, seen, plan.contributors, suspects)
    return {record["miner"] for record in sink.records}, shows.asked


async def test_the_likeliest_is_looked_at_and_another_at_random() -> None:
    """Half by suspicion, so that a plain lie is found at once; half by chance, for one that avoids suspicion."""
    chosen = [await looked_at([5, 1, 2], seed) for seed in range(20)]
    assert all(5 in uids and len(uids) == 2 for uids, _ in chosen)
    assert {uid for uids, _ in chosen for uid in uids} == {1, 2, 3, 4, 5, 6}
    by_chance = [await looked_at([], seed) for seed in range(20)]
    assert {uid for uids, _ in by_chance for uid in uids} == {1, 2, 3, 4, 5, 6}


async def test_nobody_can_tell_from_the_first_question_whether_it_is_looked_at() -> None:
    """All are asked for their own part of their own share, before anything else is asked."""
    uids, asked = await looked_at([5], 0)
    assert sorted(asked[:6]) == [(uid, uid) for uid in range(1, 7)]
    assert sorted(asked[6:]) == sorted((uid, reducer) for reducer in uids for uid in range(1, 7) if uid != reducer)
