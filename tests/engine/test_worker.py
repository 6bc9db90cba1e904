"""Training beside the event loop: responsive, interruptible at micro-batches, honest about failures."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import NextBatch, TrainingWorker, WorkerConfig
from distributed_training.model.layout import Vector
from distributed_training.run import ModelSpec
from template.errors import ConfigurationError, CorruptState, SourceBusy, SourceUnavailable, StateError
from template.telemetry import MemorySink, Telemetry
from tests.engine.tiny import VOCAB, batch, spec


def three_an_epoch(epoch: int, number: int) -> MicroBatch | None:
    return batch(number) if number < 3 else None


def endless(epoch: int, number: int) -> MicroBatch | None:
    return batch(number)


def worker(next_batch: NextBatch = three_an_epoch, **options: object) -> TrainingWorker:
    return TrainingWorker(Engine(spec(), VOCAB), next_batch, **options)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what changes is in a thread that knows no event
            await asyncio.sleep(0.005)


def expected(numbers: range) -> Vector:
    engine = Engine(spec(), VOCAB)
    for number in numbers:
        engine.train(batch(number))
    return engine.contribution().vector


async def test_trains_what_the_epoch_assigns_and_waits() -> None:
    """It stops at the end of the assignment, contributes that work, and goes on once the epoch has ended."""
    async with worker() as running:
        engine = await running.run(lambda engine: engine)
        await running.resume()
        await until(lambda: engine.samples == 12)
        contribution = await running.set_aside()
        assert np.array_equal(contribution.vector, expected(range(3)))
        await running.apply(contribution.vector)
        await until(lambda: engine.epoch == 1 and engine.samples == 12)
        assert [record.number for record in engine.records] == [0, 1, 2]


async def test_starts_paused_and_pauses_between_micro_batches() -> None:
    """Nothing is trained before `resume`, and nothing after `pause` has returned."""
    async with worker(endless) as running:
        engine = await running.run(lambda engine: engine)
        await asyncio.sleep(0.05)
        assert engine.samples == 0
        await running.resume()
        await until(lambda: engine.samples >= 8)
        await running.pause()
        samples = engine.samples
        await asyncio.sleep(0.1)
        assert engine.samples == samples
        assert (await running.set_aside()).samples == samples
        await running.resume()
        await until(lambda: engine.samples > samples)


async def test_requests_run_in_the_training_thread() -> None:
    """The engine is never touched from two threads."""
    async with worker(endless) as running:
        await running.resume()
        names = {await running.run(lambda _: threading.current_thread().name) for _ in range(5)}
    assert names == {"training"}


async def test_a_failed_request_goes_to_whoever_asked() -> None:
    """A bad average is refused, and training goes on from where it was."""
    async with worker(endless) as running:
        engine = await running.run(lambda engine: engine)
        await running.resume()
        await until(lambda: engine.samples > 0)
        with pytest.raises(CorruptState, match="not finite"):
            await running.apply(np.full(engine.layout.size, np.nan, dtype=np.float32))
        samples = engine.samples
        await until(lambda: engine.samples > samples)
        assert engine.epoch == 0


async def test_a_failure_of_training_reaches_the_watcher() -> None:
    """An error in the data or the model ends the thread with its own exception, not with silence."""

    def breaks(epoch: int, number: int) -> MicroBatch:
        if number == 2:
            raise ZeroDivisionError("a bug in the loader")
        return batch(number)

    async with worker(breaks) as running:
        await running.resume()
        with pytest.raises(ZeroDivisionError, match="a bug in the loader") as caught:
            await running.watch()
        assert any(entry.name == "breaks" for entry in caught.traceback)
        with pytest.raises(StateError, match="not running"):
            await running.set_aside()


async def test_an_unseen_failure_is_raised_on_leaving() -> None:
    """Without a watcher the block itself raises."""

    def breaks(epoch: int, number: int) -> MicroBatch:
        raise ZeroDivisionError("a bug in the loader")

    running = await worker(breaks).__aenter__()
    await running.resume()
    await asyncio.sleep(0.1)
    with pytest.raises(ZeroDivisionError):
        await running.__aexit__(None, None, None)


async def test_a_request_in_flight_when_training_fails_is_answered() -> None:
    """Nobody waits for ever for a thread that has died."""
    reached, go = threading.Event(), threading.Event()

    def breaks(epoch: int, number: int) -> MicroBatch:
        reached.set()
        assert go.wait(20)
        raise ZeroDivisionError

    running = await worker(breaks).__aenter__()
    await running.resume()
    await until(reached.is_set)
    pending = asyncio.create_task(running.set_aside())
    await asyncio.sleep(0.02)
    go.set()
    with pytest.raises(StateError, match="ended before") as caught:
        await pending
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    await running.close()


async def test_a_source_that_is_down_is_asked_again() -> None:
    """An outage is reported and retried; it does not end training, and requests are answered meanwhile."""
    sink, outages = MemorySink(), iter([True, True])

    def flaky(epoch: int, number: int) -> MicroBatch | None:
        if number == 1 and next(outages, False):
            raise SourceUnavailable("the disk is away")
        return three_an_epoch(epoch, number)

    async with worker(flaky, telemetry=Telemetry([sink]), config=WorkerConfig(retry_seconds=0.05)) as running:
        engine = await running.run(lambda engine: engine)
        await running.resume()
        await until(lambda: engine.samples == 12)
    waits = [record for record in sink.records if record["kind"] == "TrainingWaits"]
    trained = [record["number"] for record in sink.records if record["kind"] == "MicroBatchTrained"]
    assert [(wait["number"], wait["reason"]) for wait in waits] == [(1, "the disk is away")] * 2
    assert trained == [0, 1, 2]


async def test_a_caller_that_gave_up_changes_nothing() -> None:
    """An update whose waiter was cancelled before it began is not applied later."""
    release = threading.Event()
    async with worker() as running:
        engine = await running.run(lambda engine: engine)
        blocker = asyncio.create_task(running.run(lambda _: release.wait(20)))
        await asyncio.sleep(0.02)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await running.apply(np.zeros(engine.layout.size, dtype=np.float32))
        release.set()
        await blocker
        assert await running.run(lambda engine: engine.epoch) == 0


async def test_close_is_prompt_and_final() -> None:
    """It ends after the micro-batch in progress, and what is closed stays closed."""
    running = await worker(endless).__aenter__()
    await running.resume()
    started = time.monotonic()
    await running.close()
    assert time.monotonic() - started < 5
    await running.watch()
    await running.close()
    with pytest.raises(StateError, match="not running"):
        await running.resume()
    assert not any(thread.name == "training" for thread in threading.enumerate())


async def test_a_thread_that_hangs_is_reported() -> None:
    """Closing has a deadline."""
    release = threading.Event()

    def hangs(epoch: int, number: int) -> None:
        release.wait(20)

    running = await worker(hangs, config=WorkerConfig(close_seconds=0.1)).__aenter__()
    await running.resume()
    await asyncio.sleep(0.02)
    with pytest.raises(StateError, match="did not end"):
        await running.close()
    release.set()
    await running.watch()


async def test_impossible_times_are_refused() -> None:
    """Zero seconds between retries would be a busy loop."""
    with pytest.raises(ConfigurationError, match="positive"):
        WorkerConfig(retry_seconds=0)
    with pytest.raises(StateError, match="not running"):
        await worker().set_aside()


async def test_the_event_loop_answers_while_the_model_trains() -> None:
    """Many pings over a real socket return within one micro-batch of a model that keeps a core busy."""
    wide = ModelSpec(family="gpt2", config={"n_layer": 2, "n_head": 4, "n_embd": 256})
    engine, samples, pings = Engine(spec(model=wide), VOCAB), 64, 0

    async def pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(pong, "127.0.0.1", 0)
    async with server, TrainingWorker(engine, lambda _, n: dataclasses.replace(batch(n, samples=samples))) as running:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        await running.resume()
        while engine.samples < 5 * samples:
            writer.write(b"ping\n")
            assert await reader.readline() == b"ping\n"
            pings += 1
            await asyncio.sleep(0.002)
        trained = engine.samples // samples
        writer.close()
        await writer.wait_closed()
    assert pings >= 3 * trained  # a loop that waits for the model answers once in a micro-batch


async def test_a_batch_on_its_way_is_no_outage() -> None:
    """While it is being read the thread answers and says nothing; training goes on as soon as it is there."""
    sink, there = MemorySink(), threading.Event()

    def slow(epoch: int, number: int) -> MicroBatch | None:
        if not there.wait(0.01):
            raise SourceBusy("being read")
        return three_an_epoch(epoch, number)

    async with worker(slow, telemetry=Telemetry([sink])) as running:
        await running.resume()
        for _ in range(5):
            assert (await running.run(lambda engine: engine.samples)) == 0
        there.set()
        engine = await running.run(lambda engine: engine)
        await until(lambda: engine.samples == 12)
    assert {record["kind"] for record in sink.records} == {"MicroBatchTrained"}
