"""A validator: leads when it is its turn, remembers who spoiled, audits, scores and publishes."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from distributed_training.averaging.codecs.floating import Float32
from distributed_training.averaging.outcome import RoundResult
from distributed_training.averaging.plan import plan_from
from distributed_training.averaging.wire_exhibits import WireExhibits
from distributed_training.catch_up import CatchUpConfig
from distributed_training.engine.audit import Auditor
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.hub.memory import MemoryHub
from distributed_training.hub.retention import Retention
from distributed_training.node import EndedRound
from distributed_training.protocol import Deadlines, Failure
from distributed_training.schedule import Exclusion
from distributed_training.scoring.combine import Entry, ScoreBook
from distributed_training.silence import FRESH_SECONDS
from distributed_training.validator.audits import AuditDesk
from distributed_training.validator.lead import RoundLeader
from distributed_training.validator.memory import MemoryFile, Remembered
from distributed_training.validator.publisher import Publisher
from distributed_training.validator.report_desk import ReportDesk
from distributed_training.validator.validator import WAITING_AUDITS, Validator
from template.clock import Clock, ManualClock, SystemClock
from tests.roles import AVERAGING, EPOCH, Subnet, subnet
from tests.validator.test_rounds import outcome as failed_outcome


class Unpaid:
    """Stands in for the paymaster, which has tests of its own on a chain."""

    async def run(self) -> None:
        await asyncio.Event().wait()


def validator_of(net: Subnet, uid: int = 0, clock: Clock | None = None, until_epoch: int | None = None) -> Validator:
    neuron, clock = net.neurons[uid], clock or SystemClock()
    telemetry, spec = neuron.telemetry, net.spec
    hub = MemoryHub(telemetry=telemetry, clock=clock)
    auditor = Auditor(spec, net.loader.tokenizer.vocab_size)
    validator = Validator(
        spec=spec,
        chain=net.chain,
        node=neuron.node,
        engine=neuron.engine,
        worker=neuron.worker,
        keeper=neuron.keeper,
        census=net.census(uid),
        catch_up=net.catch_up(uid, hub, clock),
        leader=RoundLeader(spec=spec, node=neuron.node, dendrite=neuron.dendrite, telemetry=telemetry, clock=clock),
        desk=AuditDesk(
            uid=uid,
            spec=spec,
            loader=net.loader,
            auditor=auditor,
            worker=neuron.worker,
            dendrite=neuron.dendrite,
            telemetry=telemetry,
            rng=random.Random(0),
            exhibits=WireExhibits(neuron.transport, SystemClock()),
            in_time=lambda epoch: neuron.engine.epoch <= epoch + 1,
        ),
        publisher=Publisher(
            uid=uid,
            run_id=spec.run_id,
            auditor=auditor,
            worker=neuron.worker,
            config=neuron.engine.architecture,
            folder=net.folder,
            hub=hub,
            retention=Retention(keep_last=3, keep_every=4),
            held_out=net.loader.held_out(),
            telemetry=telemetry,
        ),
        paymaster=Unpaid(),  # type: ignore[arg-type]
        memory=Remembered(MemoryFile(net.folder / f"validator{uid}.json"), spec.run_id, telemetry),
        reports=ReportDesk(uid, None, telemetry),
        until_epoch=until_epoch,
        telemetry=telemetry,
        clock=clock,
    )
    validator.attach(neuron.axon)
    return validator


async def until_told(net: Subnet, kind: str, count: int = 1, uid: int = 0) -> list[dict[str, object]]:
    for _ in range(2000):
        if len(net.neurons[uid].told(kind)) >= count:
            return net.neurons[uid].told(kind)
        await asyncio.sleep(0.01)
    raise AssertionError(f"{kind} was never told")


async def test_an_epoch_from_training_to_scores(tmp_path: Path) -> None:
    """Two miners and a validator by themselves: averaged, published, kept, audited, scored and remembered."""
    both = dataclasses.replace(EPOCH, min_miners=2)  # not before both have something to give
    async with subnet(tmp_path, attached=False, epoch=both) as net:
        net.at_will = True
        validator = validator_of(net, until_epoch=1)
        running = [asyncio.create_task(role.run()) for role in (validator, net.miner(1), net.miner(2))]
        (scored,) = await until_told(net, "EpochScored")
        await until_told(net, "Published")
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        assert [(row["evidence"]["uid"], row["outcome"]) for row in scored["rows"]] == [(1, "scored"), (2, "scored")]  # type: ignore[attr-defined]
        assert all(row["weight"] > 0 for row in scored["rows"])  # type: ignore[attr-defined]
        assert {neuron.state for neuron in net.neurons.values()} == {net.neurons[0].state}
        assert net.neurons[0].keeper.offer(1) is not None
        assert [event["epoch"] for event in net.neurons[0].told("HeldOut")] == [0, 1]
        memory = MemoryFile(tmp_path / "validator0.json").load(net.spec.run_id)
        assert memory.book.epoch == 0
        assert [entry.uid for entry in memory.book.entries] == [1, 2]


async def attached(net: Subnet, clock: Clock | None = None, until_epoch: int | None = None) -> Validator:
    """A validator whose miners serve rounds; nobody trains by itself."""
    for uid, neuron in net.neurons.items():
        if uid:
            neuron.node.attach(neuron.axon, neuron.ended.append)
    return validator_of(net, 0, clock, until_epoch)


def led(net: Subnet) -> list[tuple[int, bool]]:
    return [(event["attempt"], event["completed"]) for event in net.neurons[0].told("RoundLed")]


async def test_it_leads_when_enough_was_trained_and_not_before(tmp_path: Path) -> None:
    """By samples at once; by blocks with less; never beyond the epoch it was told to stop at."""
    async with subnet(tmp_path, attached=False) as net:
        validator = await attached(net, until_epoch=1)
        await net.train(1, 1)
        await validator._tick()
        assert led(net) == []
        net.chain.block += EPOCH.max_blocks
        await validator._tick()
        assert led(net) == [(0, True)]
        await net.train(1, 8)
        await validator._tick()
        assert led(net) == [(0, True)]


async def test_who_was_cut_off_from_the_miners_looks_before_it_leads(tmp_path: Path) -> None:
    """They may have gone on by themselves: it is not settled, so its word does not count, until it has looked."""
    async with subnet(tmp_path, attached=False, validators=2, miners=1) as net:
        clock = ManualClock()
        validator = await attached(net, clock)
        net.neurons[0].node._settled = lambda: validator._catch_up.settled
        net.neurons[1].node._settled = lambda: False  # so was the other
        await validator._tick()
        await clock.advance(CatchUpConfig().patience)
        await validator._tick()
        assert validator._catch_up.settled
        await clock.advance(FRESH_SECONDS)
        net.chain.block += EPOCH.fallback_blocks
        await step_ahead(net, 2)
        await validator._tick()
        assert not validator._catch_up.settled


async def step_ahead(net: Subnet, uid: int) -> None:
    """The miner ends an epoch without anybody."""
    neuron = net.neurons[uid]
    await neuron.worker.apply(np.ones(neuron.engine.layout.size, np.float32))


async def test_another_s_turn_is_another_s(tmp_path: Path) -> None:
    """With two validators the turn passes every five blocks."""
    async with subnet(tmp_path, miners=1, validators=2, attached=False) as net:
        validator = await attached(net)
        await net.train(2, 4)
        net.chain.block = 5
        await validator._tick()
        assert led(net) == []
        net.chain.block = 10
        await validator._tick()
        assert led(net) == [(0, True)]


async def test_it_learns_from_every_round_once(tmp_path: Path) -> None:
    """From those that it led and from those that another did, how long their states took."""
    async with subnet(tmp_path, miners=1, validators=2, attached=False) as net:
        validator = await attached(net)
        await net.train(2, 4)
        await validator._tick()
        assert led(net) == [(0, True)]
        times = validator._leader._experience._times
        assert [len(samples) for samples in (times.connect, times.exchange, times.commit)] == [1, 1, 1]
        await net.train(2, 4)
        request = net.request()
        await asyncio.gather(*(neuron.node.take_part(request) for neuron in net.neurons.values()))
        times = validator._leader._experience._times
        assert [len(samples) for samples in (times.connect, times.exchange, times.commit)] == [2, 2, 2]


async def test_a_leader_in_a_hurry_makes_nobody_owe(tmp_path: Path) -> None:
    """A part that did not come counts against its sender only if it had a fair time for it."""
    async with subnet(tmp_path, miners=4, attached=False) as net:
        validator = await attached(net)
        for uid in (1, 2, 3, 4):
            await net.train(uid)
        late = Failure(uid=3, state="EXCHANGE", role="sender", reason="no complete part")
        for exchange, owing in ((4.0, set()), (6.0, {net.neurons[3].axon.hotkey})):
            request = net.request(deadlines=Deadlines(connect=10, exchange=exchange, commit=10))
            outcome = dataclasses.replace(failed_outcome(), failures=(late,))
            ended = EndedRound(
                request, None, None, RoundResult(outcome=outcome, average=None), net.neurons[0].engine.state
            )
            validator.on_ended(ended)
            assert validator._memory.now.failed == owing
        assert [event["fault"] for event in net.neurons[0].told("AttemptVoid")] == ["leader"]


async def test_one_leader_makes_so_many_attempts_a_turn(tmp_path: Path) -> None:
    """A round that cannot succeed is not tried every second; the next turn begins anew."""
    short = dataclasses.replace(AVERAGING, connect_seconds=0.2)
    epoch = dataclasses.replace(EPOCH, attempts=2)
    async with subnet(tmp_path, attached=False, averaging=short, epoch=epoch) as net:
        validator = await attached(net)
        for uid in (1, 2):
            await net.train(uid, 4)
        known = net.neurons[1].known
        known.keep([net.neurons[0].axon.hotkey])
        known.add = lambda hotkey, peer_id: None  # type: ignore[method-assign]
        for _ in range(3):
            await validator._tick()
        assert led(net) == [(0, False), (1, False)]
        net.chain.block += EPOCH.turn_blocks
        await validator._tick()
        assert led(net) == [(0, False), (1, False)] * 2


class NotFinite(Engine):
    """Puts infinity into the shares of some of the others, unseen by its own check."""

    places: ClassVar[tuple[tuple[int, int], ...]] = ((0, 1),)

    def contribution(self) -> Contribution:
        honest = super().contribution()
        vector = honest.vector.copy()
        for start, stop in self.places:
            vector[start:stop] = np.inf
        return Contribution(vector, honest.samples, honest.records)


async def test_who_spoils_a_round_is_excluded_and_not_excused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by two, left out of the next attempt, told; and it owes until it delivers again."""
    monkeypatch.setattr("distributed_training.averaging.round._require_fit", lambda *_: None)
    monkeypatch.setattr(Float32, "encode", lambda _, values: values.view(np.uint8).data)
    async with subnet(tmp_path, miners=4, attached=False) as net:
        validator = await attached(net)
        for uid in (1, 2, 3, 4):
            await net.train(uid, 4)
        size = net.neurons[0].engine.layout.size
        ranges = plan_from(net.request(), size=size, quorum=0.67, max_weight=1, reduction="mean").ranges()
        monkeypatch.setattr(NotFinite, "places", tuple(ranges[uid] for uid in (0, 1, 2)))
        net.neurons[3].engine.__class__ = NotFinite
        await validator._tick()
        assert led(net) == [(0, False), (1, True)]
        assert [(e["miner"], e["until_epoch"]) for e in net.neurons[0].told("Excluded")] == [(3, 1)]
        hotkey = net.neurons[3].axon.hotkey
        memory = MemoryFile(tmp_path / "validator0.json").load(net.spec.run_id)
        assert memory.exclusions == {hotkey: Exclusion(1, 1)}
        assert memory.failed == {hotkey}
        seen = validator._seen.get_nowait()
        assert [(3 in r.asked, 3 in r.delivered) for r in seen.rounds] == [(True, False), (True, False)]
        assert [(1 in r.asked, 1 in r.delivered) for r in seen.rounds] == [(False, False), (True, True)]


async def epochs(net: Subnet, validator: Validator, count: int) -> None:
    """Everybody trains at the validator's state, and the validator looks once; `count` times."""
    for _ in range(count):
        state = net.neurons[0].engine.state
        for uid in range(1, len(net.neurons)):
            await net.neurons[uid].worker.run(lambda engine: engine.adopt(state))  # noqa: B023  # awaited here
            await net.train(uid, 4)
        await validator._tick()


def excluded(net: Subnet) -> list[tuple[int, int, int]]:
    return [(e["miner"], e["epoch"], e["until_epoch"]) for e in net.neurons[0].told("Excluded")]


async def test_who_refuses_rounds_is_excluded_for_longer_and_longer(tmp_path: Path) -> None:
    """Its own check finds that it has nothing sound to give: each time an attempt is lost."""
    short = dataclasses.replace(AVERAGING, connect_seconds=3)
    async with subnet(tmp_path, miners=4, attached=False, averaging=short) as net:
        validator = await attached(net)
        net.neurons[4].engine.__class__ = NotFinite
        await epochs(net, validator, 3)
        assert led(net) == [(0, False), (1, True), (0, False), (1, True), (0, True)]
        assert excluded(net) == [(4, 0, 1), (4, 1, 3)]


async def test_an_excuse_does_not_hold_for_ever(tmp_path: Path) -> None:
    """Busy now and then is nobody's fault; busy whenever it is asked keeps everybody waiting."""
    short = dataclasses.replace(AVERAGING, connect_seconds=3)
    async with subnet(tmp_path, miners=4, attached=False, averaging=short) as net:
        validator = await attached(net)
        async with net.neurons[4].turn:
            await epochs(net, validator, EPOCH.attempts)
        assert excluded(net) == [(4, EPOCH.attempts - 1, EPOCH.attempts)]


async def test_who_delivers_again_is_forgiven(tmp_path: Path) -> None:
    """Exclusion and debt of an earlier epoch end with a completed round."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        validator = await attached(net)
        hotkey = net.neurons[1].axon.hotkey
        validator._memory.note(exclusions={hotkey: Exclusion(1, 0)}, failed=frozenset({hotkey}))
        await net.train(1, 4)
        await validator._tick()
        assert (validator._memory.now.exclusions, validator._memory.now.failed) == ({}, frozenset())


async def test_audits_that_cannot_keep_up_drop_the_oldest(tmp_path: Path) -> None:
    """So many epochs may wait; one more pushes the first one out, and that is told."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        validator = await attached(net)
        for _ in range(WAITING_AUDITS + 1):
            await net.train(1, 4)
            await validator._tick()
        assert [(e["epoch"], e["reason"]) for e in net.neurons[0].told("AuditNotPossible")] == [
            (0, "audits cannot keep up")
        ]
        assert validator._seen.get_nowait().epoch == 1


async def test_an_epoch_is_scored_once(tmp_path: Path) -> None:
    """If the run goes back to an earlier state, what was scored stays scored."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        validator = await attached(net, ManualClock())
        await net.train(1, 4)
        await validator._tick()
        seen = validator._seen.get_nowait()
        await validator._audit_epoch(seen)
        before = validator._memory.now.book
        await validator._audit_epoch(seen)
        assert validator._memory.now.book == before
        assert len(net.neurons[0].told("EpochScored")) == 1
        assert "what was scored stays scored" in net.neurons[0].told("AuditNotPossible")[0]["reason"]


def remember(validator: Validator, net: Subnet, epoch: int) -> None:
    """As if all miners had earned 50 up to that epoch."""
    miners = [neuron for uid, neuron in net.neurons.items() if uid]
    entries = tuple(Entry(uid=neuron.uid, hotkey=neuron.axon.hotkey, ema=50.0) for neuron in miners)
    validator._memory.note(book=ScoreBook(epoch=epoch, entries=entries))


async def audit_after(net: Subnet, validator: Validator, epochs: int) -> dict[int, float]:
    """Let uid 1 end so many epochs, and audit the last of them; the averages by uid after it."""
    for _ in range(epochs):
        await net.train(1, 4)
        await validator._tick()
    await validator._audit_epoch([validator._seen.get_nowait() for _ in range(epochs)][-1])
    return {entry.uid: entry.ema for entry in validator._memory.now.book.entries}


async def test_epochs_that_it_missed_are_its_own(tmp_path: Path) -> None:
    """They are told as not scored, with the reason, and lower nobody's average; the one it saw does, by silence."""
    async with subnet(tmp_path, miners=1, attached=False) as net:
        validator = await attached(net, ManualClock())
        remember(validator, net, epoch=0)
        after = await audit_after(net, validator, epochs=4)
        told = net.neurons[0].told("AuditNotPossible")
        assert [(event["epoch"], "in no round" in event["reason"]) for event in told] == [(1, True), (2, True)]
        assert after == {1: pytest.approx(50 * (1 - net.spec.scoring.ema))}


async def test_who_hides_its_address_is_not_forgotten(tmp_path: Path) -> None:
    """It is scored as absent for as long as it holds its uid."""
    async with subnet(tmp_path, miners=2, attached=False) as net:
        validator = await attached(net, ManualClock())
        for uid in (1, 2):
            await net.train(uid, 4)
        await validator._tick()
        remember(validator, net, epoch=0)
        validator._seen.get_nowait()
        graph = net.chain.metagraph
        net.chain.metagraph = dataclasses.replace(graph, axons=(*graph.axons[:2], None))
        after = await audit_after(net, validator, epochs=1)
        row = net.neurons[0].told("EpochScored")[-1]["rows"][-1]
        assert (row["evidence"]["uid"], row["evidence"]["standings"]) == (2, ("did not answer",))
        assert after[2] == pytest.approx(50 * (1 - net.spec.scoring.ema))
