"""A corpus that goes away and comes back: miners keep what they have, and validators let nobody pay for it.

The corpus lies in shards on an S3 server, read at its public address over real sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_training.data.build import build_loader
from distributed_training.data.prefetch import Prefetch, PrefetchConfig
from distributed_training.data.remote import CorpusConfig
from distributed_training.engine.engine import Engine
from distributed_training.engine.records import Record
from distributed_training.engine.worker import TrainingWorker, WorkerConfig
from distributed_training.run import DataSpec, RunSpec
from distributed_training.scoring.combine import NO_STEPS
from template.telemetry import MemorySink, Telemetry
from tests.data.test_shards import Build, contents
from tests.engine import tiny
from tests.roles import run_spec
from tests.servers.s3 import Fault, S3Server
from tests.validator.test_audits import court

UID = 1
HASTE = CorpusConfig(tries=2, seconds=5.0, connect_timeout=2.0, idle_timeout=2.0, answer_timeout=4.0)
AHEAD = PrefetchConfig(ahead=2, readers=2, next_epoch=1, patience=0.05)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    """A bucket with the shards of 200 documents."""
    Build(tmp_path / "built", [f"document {i} of the corpus " * 3 for i in range(200)]).run()
    with S3Server(buckets=("corpus",), listing=False) as running:
        for name, content in contents(tmp_path / "built").items():
            running.put(name, content, "corpus")
        yield running


def data_of(server: S3Server) -> DataSpec:
    return DataSpec(
        source="shards",
        path=f"{server.url}/corpus",
        tokenizer="bytes",
        sequence_length=tiny.LENGTH,
        page_size=40,
        pages_per_micro_batch=1,
        pages_per_epoch=8,
        max_uids=8,
        held_out_pages=4,
    )


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # what changes is in a thread that knows no event
            await asyncio.sleep(0.01)


def alone(spec: RunSpec) -> tuple[Record, ...]:
    """What an engine records that is never interrupted."""
    loader = build_loader(spec, config=HASTE)
    engine = Engine(spec, loader.tokenizer.vocab_size)
    for number in range(loader.micro_batches_per_epoch):
        engine.train(loader.micro_batch(0, UID, number))
    loader.close()
    return engine.records


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"close": "before"}, {"cut": 30}])
async def test_a_miner_keeps_its_work_and_goes_on(tmp_path: Path, server: S3Server, fault: dict[str, Any]) -> None:
    """In an outage it says so, answers, and contributes what it has; afterwards it ends where it would have ended."""
    spec = run_spec(tmp_path, data=data_of(server))
    expected, sink = alone(spec), MemorySink()
    loader = build_loader(spec, config=HASTE)
    engine = Engine(spec, loader.tokenizer.vocab_size)
    for number in range(2):
        engine.train(loader.micro_batch(0, UID, number))
    server.inject(Fault("GET", r"\.bin", times=10_000, **fault))
    with Prefetch(loader, UID, AHEAD) as batches:
        config = WorkerConfig(retry_seconds=0.05)
        async with TrainingWorker(engine, batches, telemetry=Telemetry([sink]), config=config) as worker:
            await worker.resume()
            await until(lambda: [r for r in sink.records if r["kind"] == "TrainingWaits"])
            done = (await worker.run(lambda engine: engine.work)).records
            assert done == expected[:2]
            assert (await worker.set_aside()).samples == sum(record.samples for record in done)
            server.heal()
            await until(lambda: len(engine.records) == 8)
    assert engine.records == expected
    reasons = {record["reason"] for record in sink.records if record["kind"] == "TrainingWaits"}
    assert all("in vain" in reason and server.url in reason for reason in reasons)


async def test_a_restart_in_an_outage_goes_on_with_the_saved_work(tmp_path: Path, server: S3Server) -> None:
    """Killed in the middle of an epoch while the corpus is away: the same records in the end, none trained twice."""
    spec = run_spec(tmp_path, data=data_of(server))
    expected = alone(spec)
    loader = build_loader(spec, config=HASTE)
    engine = Engine(spec, loader.tokenizer.vocab_size)
    for number in range(3):
        engine.train(loader.micro_batch(0, UID, number))
    engine.save(tmp_path / "checkpoint")
    again = Engine(spec, loader.tokenizer.vocab_size)
    again.load(tmp_path / "checkpoint")
    server.inject(Fault("GET", r"\.bin", times=6, status=503))
    with Prefetch(loader, UID, AHEAD) as batches:
        async with TrainingWorker(again, batches, config=WorkerConfig(retry_seconds=0.05)) as worker:
            await worker.resume()
            await until(lambda: len(again.records) == 8)
    assert again.records == expected


async def test_a_validator_s_outage_costs_nobody(tmp_path: Path, server: S3Server) -> None:
    """Every audit is 'not possible', with the reason; once the corpus is back, the same work is found honest."""
    async with court(tmp_path, data=data_of(server), corpus=HASTE) as at:
        at.net.loader._cache.clear()
        server.inject(Fault("GET", r"\.bin", times=10_000, status=503))
        evidence = await at.examine()
        assert sorted(evidence) == [1, 2]
        for item in evidence.values():
            assert "the validator could not audit: " in item.unobserved
            assert all(audit.number is None for audit in item.audits)  # that its records add up needs no corpus
            assert item.steps == NO_STEPS
        told = at.net.neurons[0].told("AuditNotPossible")
        assert len(told) == 2
        assert all("HTTP 503" in event["reason"] for event in told)
        server.heal()
        evidence = await at.examine()
        for uid in (1, 2):
            assert [audit.number is None for audit in evidence[uid].audits] == [True, False, False, False]
            assert all(audit.passed for audit in evidence[uid].audits)
            assert evidence[uid].unobserved == ""
        at.net.loader.close()


async def test_a_long_outage_is_found_out_once(tmp_path: Path, server: S3Server) -> None:
    """The first audit is tried patiently, those after it once each: an examination ends in time for the next epoch."""
    async with court(tmp_path, miners=4, data=data_of(server), corpus=HASTE) as at:
        at.net.loader._cache.clear()
        server.inject(Fault("GET", r"\.bin", times=10_000, status=503))
        server.requests.clear()
        evidence = await at.examine()
        assert all(item.unobserved for item in evidence.values())
        assert server.asked("GET", r"\.bin") == HASTE.tries + 3
        at.net.loader.close()


def test_validators_read_exactly_the_pages_they_audit(server: S3Server, tmp_path: Path) -> None:
    """A page costs the blocks it lies in, found by its number; nothing before it is read."""
    loader = build_loader(run_spec(tmp_path, data=data_of(server)), config=HASTE)
    server.requests.clear()
    batch = loader.micro_batch(3, 5, 7)
    (page,) = batch.pages
    asked = [r.headers["range"] for r in server.requests if r.path.endswith(".bin")]
    first, last = page * 40 * 2 // 128, (page * 40 + 39) * 2 // 128  # blocks of 64 tokens, two bytes each
    per_shard = 256 // 64
    assert asked == [f"bytes={b % per_shard * 128}-{b % per_shard * 128 + 127}" for b in range(first, last + 1)]
    assert np.array_equal(batch.input_ids, loader.batch(batch.pages).input_ids)
    loader.close()
