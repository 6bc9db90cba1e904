"""Rounds of a run with overlap: training goes on beside them, and nothing of that shows before its epoch begins."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distributed_training.engine.engine import Engine
from distributed_training.protocol import IsAlive, IsAliveResponse
from distributed_training.run import AveragingSpec
from tests.adversaries.engines import Lazy
from tests.roles import AUDIT, AVERAGING, EPOCH, Subnet, metagraph_of, subnet
from tests.validator.test_validator import attached, until_told, validator_of

OVERLAP = dataclasses.replace(EPOCH, overlap=True)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # what changes is in a thread that knows no event
            await asyncio.sleep(0.01)


async def told_by(net: Subnet, uid: int) -> tuple[int, str, int]:
    """Where a neuron says that it stands, and its samples."""
    target = net.wire.target(uid, net.neurons[uid].axon.hotkey)
    outcome = await net.neurons[0].dendrite.call(target, IsAlive(run_id=net.spec.run_id), 5)
    answer = outcome.expect(IsAliveResponse)
    return answer.epoch, answer.state_hash, answer.samples


async def test_a_miner_trains_while_a_round_is_open(tmp_path: Path) -> None:
    """The next epoch's records, to its last page; others hear of this epoch only, until the next one has begun."""
    async with subnet(tmp_path, miners=1, epoch=OVERLAP) as net:
        await net.train(1, 2)
        miner, request, before = net.neurons[1], net.request(), await told_by(net, 1)
        held = asyncio.create_task(miner.node.take_part(request))  # open for as long as the validator does not come
        await eventually(lambda: miner.engine.in_training.epoch == 1)
        net.at_will = True
        await miner.worker.resume()
        await eventually(lambda: len(miner.engine.in_training.records) == 8)
        assert not held.done()
        assert await told_by(net, 1) == before
        answers = await asyncio.gather(held, net.neurons[0].node.take_part(request))
        assert [answer.completed for answer in answers] == [True, True]
        assert answers[0].samples == before[2] == miner.engine.work_of(0).samples
        assert miner.engine.work.base_hash == before[1]
        assert await told_by(net, 1) == (1, answers[0].state_hash, sum(r.samples for r in miner.engine.records))
        (told,) = miner.told("RoundFinished")
        assert 0 < told["trained"] <= told["seconds"]


async def test_without_overlap_training_stands_still(tmp_path: Path) -> None:
    """In the same round: no record more."""
    async with subnet(tmp_path, miners=1) as net:
        await net.train(1, 2)
        miner, request = net.neurons[1], net.request()
        await miner.worker.resume()
        held = asyncio.create_task(miner.node.take_part(request))
        await eventually(lambda: miner.worker._paused)
        net.at_will = True
        await miner.worker.run(lambda _: None)  # wakes the thread
        await asyncio.sleep(0.3)
        assert len(miner.engine.in_training.records) == 2
        await asyncio.gather(held, net.neurons[0].node.take_part(request))
        assert miner.told("RoundFinished")[0]["trained"] == 0.0


async def attempt(net: Subnet, uids: tuple[int, ...] = (0, 1, 2)) -> set[bool]:
    """Whether an attempt that only these neurons come to completes, as they say."""
    request = net.request()
    answers = await asyncio.gather(*(net.neurons[uid].node.take_part(request) for uid in uids))
    return {answer.completed for answer in answers}


async def after_two_epochs(folder: Path, failing: bool, averaging: AveragingSpec) -> list[object]:
    """Where a subnet ends whose validator is late for the first round, and trains meanwhile, or is not."""
    async with subnet(folder, miners=2, epoch=OVERLAP, averaging=averaging) as net:
        for uid in (1, 2):
            await net.train(uid, 2)
        for number in range(2):
            if failing:
                assert await attempt(net, (1, 2)) == {False}
            for uid in (1, 2):
                await net.neurons[uid].worker.set_aside()
                await net.train(uid, 1, first=number)
        assert [net.neurons[uid].engine.samples_ahead > 0 for uid in (1, 2)] == [True, True]
        assert await attempt(net) == {True}
        assert [net.neurons[uid].engine.work.next_number for uid in (1, 2)] == [2, 2]
        assert await attempt(net) == {True}
        residuals = [net.neurons[uid].engine.snapshot().residual for uid in (1, 2)]
        return [neuron.state for neuron in net.neurons.values()] + [r is not None and r.tobytes() for r in residuals]


@pytest.mark.parametrize(("codec", "feedback"), [("none", False), ("int4-block64", True)])
async def test_a_failed_attempt_loses_nothing(tmp_path: Path, codec: str, feedback: bool) -> None:
    """Neither what was set aside nor what was done ahead: the run ends at the same bits as if it had not failed."""
    short = dataclasses.replace(AVERAGING, codec=codec, error_feedback=feedback, connect_seconds=0.5)
    failed, smooth = [await after_two_epochs(tmp_path, failing, short) for failing in (True, False)]
    assert failed == smooth
    assert failed[0] == failed[1] == failed[2]


async def test_who_is_only_asked_to_reduce_stays_in_its_epoch(tmp_path: Path) -> None:
    """It has nothing to set aside; what it trains meanwhile may still be wanted, if the attempt fails."""
    async with subnet(tmp_path, miners=2, epoch=OVERLAP) as net:
        await net.train(2)
        net.chain.metagraph = metagraph_of(3, (0, 1))
        request = net.request()
        await net.train(1)
        answers = await asyncio.gather(*(net.neurons[m.uid].node.take_part(request) for m in request.group))
        assert [a.completed for a in answers] == [True] * 3
        assert [net.neurons[uid].engine.in_training.epoch for uid in (1, 2)] == [1, 1]
        assert net.neurons[1].engine.work.base_hash == request.state_hash


async def test_a_leader_does_not_wait_for_what_will_not_come(tmp_path: Path) -> None:
    """After a failed attempt there are too few samples, and they are all that there will be."""
    short = dataclasses.replace(AVERAGING, connect_seconds=0.5)
    async with subnet(tmp_path, attached=False, epoch=OVERLAP, averaging=short) as net:
        validator = await attached(net)
        await net.train(1, 1)
        await validator._tick()
        assert net.neurons[0].told("RoundLed") == []
        assert await attempt(net, (0,)) == {False}
        await validator._tick()
        assert [event["completed"] for event in net.neurons[0].told("RoundLed")] == [True]


async def test_a_run_goes_on_where_nobody_has_the_state_before(tmp_path: Path) -> None:
    """All took this one over from the hub: they train at it, and the epoch ends all the same."""
    async with subnet(tmp_path, epoch=OVERLAP) as net:
        gone = Engine(net.spec, net.loader.tokenizer.vocab_size)
        gone.apply(np.ones(gone.layout.size, np.float32))
        for uid, neuron in net.neurons.items():
            await neuron.worker.run(lambda engine: engine.adopt(gone.state))
            if uid:
                await net.train(uid)
        assert await attempt(net) == {True}
        assert {neuron.state for neuron in net.neurons.values()} == {(2, net.neurons[1].engine.state_hash)}
        assert list(net.neurons[0].ended[0].bases) == [gone.state_hash]
        assert net.neurons[1].engine.work_of(1).base_hash == gone.state_hash


async def test_a_subnet_with_overlap_from_training_to_scores(tmp_path: Path) -> None:
    """Epoch after epoch one state; honest miners' records stand, at the state before; a lazy one is found out."""
    audit = AUDIT
    epoch = dataclasses.replace(OVERLAP, min_miners=3)
    async with subnet(tmp_path, 3, attached=False, engines={3: Lazy}, epoch=epoch, audit=audit) as net:
        net.at_will = True
        validator = validator_of(net, until_epoch=3)
        running = [asyncio.create_task(role.run()) for role in (validator, *map(net.miner, (1, 2, 3)))]
        scored = await until_told(net, "EpochScored", count=3)
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        assert {neuron.state for neuron in net.neurons.values()} == {(3, net.neurons[0].engine.state_hash)}
        passed = {(e["miner"], e["epoch"], e["passed"]) for e in net.neurons[0].told("Audited")}
        assert passed >= {(uid, e, True) for uid in (1, 2) for e in range(3)} | {(3, e, False) for e in range(3)}
        assert not passed & {(uid, e, False) for uid in (1, 2) for e in range(3)}
        assert {row["evidence"]["uid"] for row in scored[-1]["rows"] if row["weight"] > 0} == {1, 2}  # type: ignore[attr-defined]
        works = [net.neurons[1].engine.work_of(e) for e in range(4)]
        assert [work.base_hash for work in works[1:]] == [work.state_hash for work in works[:-1]]
