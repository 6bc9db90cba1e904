"""A miner: reports what it did, keeps what it has, stays in step, and ends with a reason."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from distributed_training.engine.engine import Engine
from distributed_training.engine.records import records_hash
from distributed_training.miner.miner import CHECKPOINT_SECONDS, TICK_SECONDS
from distributed_training.protocol import Train, TrainResponse
from template.clock import ManualClock
from template.errors import NotRegistered, StateError
from template.transport.dendrite import Outcome
from tests.roles import Subnet, metagraph_of, serving, subnet


async def ask(net: Subnet, by: int = 0, **fields: int) -> Outcome:
    request = Train(run_id=net.spec.run_id, **{"epoch": 0, **fields})
    target = net.wire.target(1, net.neurons[1].axon.hotkey)
    return await net.neurons[by].dendrite.call(target, request, 5)


def end_epoch(engine: Engine) -> None:
    engine.apply(np.ones(engine.layout.size, np.float32))


async def test_a_report_holds_the_records_page_by_page(tmp_path: Path) -> None:
    """Hash and number of all, the page that was asked for, sums over all."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        net.miner(1)
        await net.train(1, 3)
        work = net.neurons[1].engine.work
        await net.neurons[1].worker.run(end_epoch)
        answer = (await ask(net, offset=1, limit=1)).expect(TrainResponse)
        assert answer.records == work.records[1:2]
        assert (answer.total_records, answer.records_hash) == (3, records_hash(work.records))
        assert (answer.samples, answer.mean_loss, answer.state_hash) == (work.samples, work.mean_loss, work.state_hash)
        assert (await ask(net, offset=2**50)).expect(TrainResponse).records == ()


async def test_nobody_reads_records_before_their_epoch_is_over(tmp_path: Path) -> None:
    """Whoever would copy them is bound to its own by the time that it can; a validator asks again."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        net.miner(1)
        await net.train(1, 3)
        assert (await ask(net)).reason == "not_yet"
        await net.neurons[1].worker.run(end_epoch)
        assert len((await ask(net)).expect(TrainResponse).records) == 3


async def test_an_epoch_that_ended_is_still_reported(tmp_path: Path) -> None:
    """With the state that it was trained at; one to come is refused in a word that arrives."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        net.miner(1)
        await net.train(1, 2)
        before = net.neurons[1].state
        await net.neurons[1].worker.run(end_epoch)
        answer = (await ask(net)).expect(TrainResponse)
        assert (answer.epoch, answer.state_hash, answer.total_records) == (*before, 2)
        assert (await ask(net, epoch=7)).reason == "no_such_epoch"


async def test_only_validators_see_records(tmp_path: Path) -> None:
    """Another miner could copy them."""
    async with subnet(tmp_path, miners=2, attached=False) as net:
        net.miner(1)
        assert (await ask(net, by=2)).reason == "no_permit"


async def eventually(condition: object, clock: ManualClock | None = None) -> None:
    for _ in range(300):
        if condition():  # type: ignore[operator]
            return
        if clock is not None:
            await clock.advance(TICK_SECONDS)
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


async def test_it_trains_until_its_pages_are_used_up_and_tells_its_progress(tmp_path: Path) -> None:
    """All of the epoch's assignment, once; then it waits."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        net.at_will = True
        neuron, clock = net.neurons[1], ManualClock()
        running = asyncio.create_task(net.miner(1, clock).run())
        await eventually(lambda: len(neuron.engine.records) == 8, clock)
        await eventually(lambda: neuron.told("Trained")[-1]["samples"] == neuron.engine.samples, clock)
        running.cancel()
        await asyncio.wait({running})
        assert [r.number for r in neuron.engine.records] == list(range(8))


async def test_progress_is_kept_every_half_minute(tmp_path: Path) -> None:
    """So a kill costs at most that much work."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        neuron, clock = net.neurons[1], ManualClock()
        running = asyncio.create_task(net.miner(1, clock).run())
        await net.train(1, 2)
        await asyncio.sleep(0.05)
        assert neuron.keeper.offer(0) is None
        await clock.advance(CHECKPOINT_SECONDS)
        await eventually(lambda: neuron.keeper.offer(0) is not None)
        running.cancel()
        await asyncio.wait({running})
        again = Engine(net.spec, net.loader.tokenizer.vocab_size)
        assert again.load(tmp_path / "checkpoint1")
        assert again.records == neuron.engine.records


async def test_a_new_state_is_kept_without_delaying_the_answer(tmp_path: Path) -> None:
    """The leader hears of the commit first; then the state is on disk for late-comers."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        neuron = net.neurons[1]
        miner = net.miner(1, ManualClock())
        net.neurons[0].node.attach(net.neurons[0].axon, net.neurons[0].ended.append)
        await net.train(1)
        request = net.request()
        answers = await asyncio.gather(*(net.neurons[uid].node.take_part(request) for uid in (0, 1)))
        assert answers[1].completed
        assert neuron.keeper.offer(1) is None
        running = asyncio.create_task(miner.run())
        await eventually(lambda: neuron.keeper.offer(1) is not None)
        running.cancel()
        await asyncio.wait({running})


async def test_who_is_behind_takes_the_state_from_other_miners_too(tmp_path: Path) -> None:
    """The validators are not to serve everybody: here the only one serves nobody, and another miner has the state."""
    async with subnet(tmp_path, miners=2, attached=False) as net:
        for uid in (0, 2):
            net.neurons[uid].node.attach(net.neurons[uid].axon, net.neurons[uid].ended.append)
            await net.neurons[uid].worker.run(end_epoch)
            await net.neurons[uid].keeper.save()
        late = net.neurons[1]
        async with serving(net.neurons[2]):
            running = asyncio.create_task(net.miner(1).run())
            await eventually(lambda: late.engine.epoch == 1)
            await eventually(lambda: late.told("CaughtUp"))
            running.cancel()
            await asyncio.wait({running})
        assert list(late.told("CaughtUp")[0]["parts"]) == ["peer:2"]
        assert late.state == net.neurons[0].state


async def test_it_ends_with_what_ended_its_training(tmp_path: Path) -> None:
    """As that error itself: one line for the operator, not a group of tracebacks."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        net.at_will = True

        def broken(batch: object) -> None:
            raise StateError("loss is not finite")

        net.neurons[1].engine.train = broken  # type: ignore[method-assign,assignment]
        with pytest.raises(StateError, match="loss is not finite"):
            await net.miner(1, ManualClock()).run()


async def test_it_ends_when_its_uid_is_gone(tmp_path: Path) -> None:
    """A deregistered miner would train for nothing, for ever."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        graph = metagraph_of(2)
        net.chain.metagraph = dataclasses.replace(graph, hotkeys=(graph.hotkeys[0], "5Newcomer"))
        with pytest.raises(NotRegistered, match="register it again"):
            await net.miner(1, ManualClock()).run()


async def test_only_who_hears_no_validator_asks_the_other_miners(tmp_path: Path) -> None:
    """And follows most of them: it missed the end of an epoch that they ended by themselves."""
    async with subnet(tmp_path, miners=3, attached=False) as net:
        clock, me = ManualClock(), net.neurons[3]
        running = asyncio.create_task(net.miner(3, clock).run())
        for uid in (1, 2):
            net.neurons[uid].node.attach(net.neurons[uid].axon, net.neurons[uid].ended.append)
            await net.neurons[uid].worker.run(end_epoch)
        for _ in range(10):
            await clock.advance(TICK_SECONDS)
            await asyncio.sleep(0.02)
        assert me.told("OutOfStep") == []
        net.chain.block += net.spec.epoch.fallback_blocks
        await eventually(lambda: me.told("OutOfStep"), clock)
        running.cancel()
        await asyncio.wait({running})
        assert me.told("OutOfStep")[0]["right_hash"] == net.neurons[1].engine.state_hash
