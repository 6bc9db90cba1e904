"""Asking for records: a validator's own trouble is its own, a miner's silence is the miner's."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from distributed_training.validator import inquiry
from distributed_training.validator.audits import AuditDesk, EpochSeen
from template.errors import SourceUnavailable, Unreachable
from template.transport.dendrite import Outcome, Target
from template.transport.synapse import Request
from tests.roles import Subnet
from tests.validator.test_contributions import desk_of, round_of, served


async def ended(net: Subnet, miners: int) -> EpochSeen:
    for uid in range(1, miners + 1):
        await net.train(uid, 2)
    return await round_of(net)


async def scored(net: Subnet, desk: AuditDesk, seen: EpochSeen) -> dict[int, tuple[int, bool]]:
    """By uid the samples that count, and whether the miner was observed."""
    evidence = await desk.examine(net.chain.metagraph, seen)
    assert all(audit.passed for item in evidence for audit in item.audits)
    return {item.uid: (item.steps.samples, not item.unobserved) for item in evidence}


@pytest.mark.parametrize(
    ("silent", "observed"),
    [((1,), {1, 2, 3}), ((1, 2), {3}), ((1, 2, 3), set())],
)
async def test_a_broken_line_of_our_own_is_nobody_s_silence(
    tmp_path: Path, silent: tuple[int, ...], observed: set[int]
) -> None:
    """Most of those who took part a moment ago gone at once: ours. One of them gone: its own."""
    async with served(tmp_path, 3) as net:
        seen = await ended(net, 3)
        axons = [net.neurons[uid].axon for uid in silent]
        for axon in axons:
            net.wire.remove(axon.hotkey)
        found = await scored(net, desk_of(net), seen)
        for axon in axons:
            net.wire.add(axon)
        assert {uid for uid, (_, there) in found.items() if there} == observed
        assert all((found[uid][0] > 0) is (uid not in silent) for uid in (1, 2, 3))
        told = [event["reason"] for event in net.neurons[0].told("AuditNotPossible")]
        assert len(told) == (len(silent) > 1)
        assert all("our own line" in reason for reason in told)


async def test_two_of_many_that_fall_silent_are_not_our_line(tmp_path: Path) -> None:
    """Nothing is paid for what was not shown."""
    async with served(tmp_path, 5) as net:
        seen = await ended(net, 5)
        axons = [net.neurons[uid].axon for uid in (1, 2)]
        for axon in axons:
            net.wire.remove(axon.hotkey)
        found = await scored(net, desk_of(net), seen)
        for axon in axons:
            net.wire.add(axon)
        assert found[1] == found[2] == (0, True)
        assert net.neurons[0].told("AuditNotPossible") == []


async def test_who_has_not_applied_the_average_yet_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow machine shows its records a little later; one that never does has shown none."""
    monkeypatch.setattr(inquiry, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(inquiry, "PATIENCE_SECONDS", 0.5)
    async with served(tmp_path, 2) as net:
        seen = await ended(net, 2)
        works = {uid: net.neurons[uid].engine._works for uid in (1, 2)}
        for uid in (1, 2):
            net.neurons[uid].engine._works = works[uid][:1]
        asking = asyncio.create_task(scored(net, desk_of(net), seen))
        await asyncio.sleep(0.1)
        net.neurons[1].engine._works = works[1]
        found = await asking
        net.neurons[2].engine._works = works[2]
        assert found[1][0] > 0
        assert found[2] == (0, True)


async def test_a_line_that_breaks_for_a_moment_costs_nobody_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request is lost, the second one arrives."""
    async with served(tmp_path, 1) as net:
        seen = await ended(net, 1)
        desk = desk_of(net)
        broadcast, calls = net.neurons[0].dendrite.broadcast, []

        async def once_lost(targets: tuple[Target, ...], request: Request, limit: float) -> dict[int, Outcome]:
            outcomes = dict(await broadcast(targets, request, limit))
            calls.append(targets)
            if len(calls) > 1:
                return outcomes
            lost = {"response": None, "error": Unreachable("lost"), "reason": "unreachable"}
            return {uid: dataclasses.replace(outcome, **lost) for uid, outcome in outcomes.items()}

        monkeypatch.setattr(net.neurons[0].dendrite, "broadcast", once_lost)
        assert (await scored(net, desk, seen))[1][0] > 0
        assert len(calls) == 2


async def test_without_data_of_our_own_nobody_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The corpus is away: what was sent into our share still agrees, and nothing else is concluded."""
    async with served(tmp_path, 2) as net:
        seen = await ended(net, 2)

        def unavailable(page: int) -> object:
            raise SourceUnavailable("the disk is away")

        monkeypatch.setattr(net.loader.source, "tokens", unavailable)
        net.loader._cache.clear()
        found = await scored(net, desk_of(net), seen)
        assert [there for _, there in found.values()] == [False, False]


async def test_without_the_right_state_of_our_own_nobody_is_judged(tmp_path: Path) -> None:
    """A validator whose base state is broken finds that out by its own numbers, not by the miners'."""
    async with served(tmp_path, 2) as net:
        seen = await ended(net, 2)
        broken = {name: np.full_like(params, np.inf) for name, params in seen.bases.items()}
        found = await scored(net, desk_of(net), dataclasses.replace(seen, bases=broken))
        assert [there for _, there in found.values()] == [False, False]
        assert len(net.neurons[0].told("AuditNotPossible")) == 2


async def test_who_was_left_out_of_the_round_is_looked_at_without_having_bound_itself(tmp_path: Path) -> None:
    """It could not: its verified work lets it keep what it has."""
    async with served(tmp_path, 2) as net:
        seen = await ended(net, 2)
        without = {uid: told for uid, told in seen.outcome.records.items() if uid != 2}
        outcome = dataclasses.replace(seen.outcome, records=without, participants=(1,))
        found = await scored(net, desk_of(net), dataclasses.replace(seen, outcome=outcome))
        assert found[2][0] > 0
