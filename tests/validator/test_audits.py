"""Audits over the wire: honest work passes, everything else is told apart, and no miner can hurt another's audit."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from distributed_training.averaging.outcome import RoundOutcome, RoundState, Work
from distributed_training.averaging.wire_exhibits import WireExhibits
from distributed_training.averaging.witness import Sightings
from distributed_training.engine.audit import Auditor
from distributed_training.engine.engine import Engine
from distributed_training.engine.records import records_hash
from distributed_training.protocol import Record, Train, TrainResponse, Transfer
from distributed_training.scoring.combine import Evidence
from distributed_training.scoring.participation import RoundSeen, Standing
from distributed_training.validator import inquiry
from distributed_training.validator.audits import AuditDesk, EpochSeen
from template.clock import SystemClock
from template.errors import Refused, SourceUnavailable
from template.transport.dendrite import DendriteConfig
from template.transport.policy import Caller
from tests.roles import AUDIT, EPOCH, Subnet, metagraph_of, subnet

Answer = Callable[[Train, TrainResponse], TrainResponse]
ALL = AUDIT  # which has every record recomputed


@dataclass
class Court:
    """One validator's desk; miners report what they trained, changed by `tampered`."""

    net: Subnet
    desk: AuditDesk
    tampered: dict[int, Answer]
    asked: list[tuple[int, int]]  # uid, offset
    sightings: Sightings | None = None

    @property
    def miners(self) -> list[int]:
        return [uid for uid in self.net.neurons if uid]

    def served(self, uid: int) -> tuple[Record, ...]:
        """What a miner hands in, which is what it bound itself to unless a test says otherwise."""
        try:
            return self.answer(Train(run_id=self.net.spec.run_id, epoch=0), uid).records
        except Refused:
            return ()

    def answer(self, request: Train, uid: int) -> TrainResponse:
        work = self.net.neurons[uid].engine.work
        page = work.records[request.offset : request.offset + request.limit]
        honest = TrainResponse(
            epoch=request.epoch,
            state_hash=work.state_hash,
            base_hash=work.base_hash,
            records_hash="c" * 64,
            total_records=len(work.records),
            records=page,
            mean_loss=None,
            samples=work.samples,
            seconds=1.0,
            batch_size=1,
        )
        return self.tampered.get(uid, lambda _, response: response)(request, honest)

    def seen(self, **changes: object) -> EpochSeen:
        engine = self.net.neurons[0].engine
        outcome = RoundOutcome(
            round_id="b" * 32,
            state=RoundState.DONE,
            participants=(1, 2),
            agreed=(1, 2),
            failures=(),
            accusations={},
            transfers=(
                Transfer(uid=1, bytes_sent=9, bytes_received=500, seconds_sending=1, seconds_receiving=0.5),
                Transfer(uid=2, bytes_sent=9, bytes_received=0, seconds_sending=1, seconds_receiving=0.5),
            ),
            average_hash=None,
            total_weight=None,
            seconds={},
            work=Work(encode=0, decode=0, reduce=0, hash=0, wait=0),
            first_byte=None,
            planes={},
            records={uid: records_hash(self.served(uid)) for uid in self.miners},
            weights={uid: min(1000.0, float(sum(r.samples for r in self.served(uid)))) for uid in self.miners},
            sightings=self.sightings,
        )
        everybody = frozenset(self.net.neurons)
        rounds = (RoundSeen(epoch=0, attempt=0, live=everybody, asked=frozenset({1, 2}), delivered=frozenset({1, 2})),)
        seen = EpochSeen(engine.epoch, engine.state_hash, engine.bases, outcome, rounds)
        return dataclasses.replace(seen, **changes)  # type: ignore[arg-type]

    async def examine(self, **changes: object) -> dict[int, Evidence]:
        evidence = await self.desk.examine(self.net.chain.metagraph, self.seen(**changes))
        return {item.uid: item for item in evidence}

    def findings(self, uid: int) -> list[str]:
        return [e["reason"] for e in self.net.neurons[0].told("Audited") if e["miner"] == uid]


@asynccontextmanager
async def court(folder: Path, miners: int = 2, records: int = 3, **changes: object) -> AsyncIterator[Court]:
    async with subnet(folder, miners, audit=ALL, **changes) as net:
        neuron = net.neurons[0]
        desk = AuditDesk(
            uid=0,
            spec=net.spec,
            loader=net.loader,
            auditor=Auditor(net.spec, net.loader.tokenizer.vocab_size),
            worker=neuron.worker,
            dendrite=neuron.dendrite,
            telemetry=neuron.telemetry,
            rng=random.Random(0),
            exhibits=WireExhibits(neuron.transport, SystemClock()),
            in_time=lambda epoch: neuron.engine.epoch <= epoch + 1,
        )
        at = Court(net, desk, {}, [])
        for uid in range(1, miners + 1):
            await net.train(uid, records)
            net.neurons[uid].axon.attach(Train, answering(at, uid), validators_only=True)
        yield at


def answering(at: Court, uid: int) -> Callable[..., object]:
    async def answer(request: Train, caller: Caller) -> TrainResponse:
        at.asked.append((uid, request.offset))
        return at.answer(request, uid)

    return answer


def changed(which: int, **fields: object) -> Answer:
    """The honest records, one of them with other fields."""

    def tamper(request: Train, honest: TrainResponse) -> TrainResponse:
        records = [r.model_copy(update=fields if r.number == which else {}) for r in honest.records]
        return honest.model_copy(update={"records": tuple(records)})

    return tamper


async def test_honest_work_is_evidence_in_full(tmp_path: Path) -> None:
    """Every record agrees, all samples count, transfers and rounds come along."""
    async with court(tmp_path) as at:
        evidence = await at.examine()
        for uid in (1, 2):
            assert [audit.passed for audit in evidence[uid].audits] == [True] * 4  # three records, and their sum
            assert evidence[uid].steps.samples == at.net.neurons[uid].engine.samples
            assert evidence[uid].standings == (Standing.DELIVERED,)
            assert evidence[uid].unobserved == ""
        assert [(t.bytes, t.seconds) for t in evidence[1].transfers] == [(500, 0.5)]
        assert evidence[2].transfers == ()


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"loss": 1.0}, "loss differs"),
        ({"gradient": (0.5,) * 16}, "gradient differs"),
        ({"gradient": (1e308,) * 16}, "gradient differs"),
        ({"gradient": ()}, "wrong number of gradient values"),
        ({"pages": (0,)}, "pages are not the assigned ones"),
        ({"pages": ()}, "pages are not the assigned ones"),
        ({"number": 2**53}, "pages are not the assigned ones"),
        ({"samples": 2**53}, "samples are not what the pages hold"),
    ],
)
async def test_a_tampered_record_fails(tmp_path: Path, fields: dict[str, object], finding: str) -> None:
    """With its reason; its samples do not count, and the other miner's audit is not touched."""
    async with court(tmp_path) as at:
        at.tampered[1] = changed(1, **fields)
        evidence = await at.examine()
        assert [a.finding for a in evidence[1].audits if not a.passed] == [finding]
        honest = at.net.neurons[1].engine.records
        assert evidence[1].steps.samples == sum(r.samples for r in honest if r.number != 1)
        assert all(audit.passed for audit in evidence[2].audits)


async def test_no_answer_is_no_steps(tmp_path: Path) -> None:
    """Silence and a refusal are observations: nothing was shown, so nothing is paid."""
    async with court(tmp_path) as at:
        axon = at.net.neurons[1].axon
        at.net.wire.remove(axon.hotkey)

        def refuse(request: Train, honest: TrainResponse) -> TrainResponse:
            raise Refused("not now", status=409, reason="busy")

        at.tampered[2] = refuse
        evidence = await at.examine()
        at.net.wire.add(axon)
        for uid in (1, 2):
            assert (evidence[uid].audits, evidence[uid].steps.samples, evidence[uid].unobserved) == ((), 0, "")
        assert {event["miner"] for event in at.net.neurons[0].told("Unseen")} == {1, 2}


async def test_a_corpus_that_cannot_be_read_changes_nobody_s_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage of ours: unobserved, with the reason told."""
    async with court(tmp_path) as at:

        def unavailable(page: int) -> object:
            raise SourceUnavailable("the disk is away")

        monkeypatch.setattr(at.net.loader.source, "tokens", unavailable)
        at.net.loader._cache.clear()
        evidence = await at.examine()
        assert all("the disk is away" in item.unobserved for item in evidence.values())
        assert len(at.net.neurons[0].told("AuditNotPossible")) == 2


async def test_our_own_numbers_that_are_not_finite_judge_nobody(tmp_path: Path) -> None:
    """A broken base state is the validator's fault; every miner is looked at all the same."""
    async with court(tmp_path) as at:
        broken = np.full(at.net.neurons[0].engine.layout.size, np.inf, np.float32)
        evidence = await at.examine(bases={at.net.neurons[0].engine.state_hash: broken})
        assert sorted(evidence) == [1, 2]
        assert all("not finite" in item.unobserved for item in evidence.values())


async def test_a_failed_audit_stands_when_the_next_one_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found before the outage is still evidence."""
    async with court(tmp_path, miners=1, records=2) as at:
        at.tampered[1] = lambda request, honest: honest.model_copy(
            update={"records": tuple(r.model_copy(update={"loss": 1.0}) for r in honest.records)}
        )
        first = at.net.loader.micro_batch
        calls: list[int] = []

        def once(epoch: int, uid: int, number: int) -> object:
            calls.append(number)
            if len(calls) > 1:
                raise SourceUnavailable("away")
            return first(epoch, uid, number)

        monkeypatch.setattr(at.net.loader, "micro_batch", once)
        evidence = (await at.examine())[1]
        assert [audit.passed for audit in evidence.audits if audit.number is not None] == [False]
        assert "away" in evidence.unobserved


async def test_records_of_another_state_are_no_steps_and_no_fraud(tmp_path: Path) -> None:
    """A miner that was out of step trained honestly, but not this epoch."""
    async with court(tmp_path, miners=1) as at:
        at.tampered[1] = lambda request, honest: honest.model_copy(update={"state_hash": "d" * 64})
        evidence = (await at.examine())[1]
        assert (evidence.audits, evidence.steps.samples) == ((), 0)
        assert "its records are of" in at.net.neurons[0].told("Unseen")[0]["reason"]


OVERLAP = dataclasses.replace(EPOCH, overlap=True)


async def next_epoch(at: Court, uids: tuple[int, ...]) -> None:
    """An epoch ends; these miners train one record of the next one ahead and one in it."""
    size = at.net.neurons[0].engine.layout.size
    update = np.random.default_rng(0).normal(size=size).astype(np.float32)
    for uid, neuron in at.net.neurons.items():
        await neuron.worker.run(lambda engine: engine.go_ahead() if engine.samples else None)
        if uid in uids:
            await at.net.train(uid, 1)
        await neuron.worker.apply(update)
        if uid in uids:
            await at.net.train(uid, 1, first=1)


async def test_with_overlap_records_are_recomputed_at_the_state_that_they_name(tmp_path: Path) -> None:
    """The one before or, for a miner that took this one over from others, this one; no third one."""
    async with court(tmp_path, epoch=OVERLAP) as at:
        await next_epoch(at, (1,))
        state = at.net.neurons[0].engine.state
        newcomer = Engine(at.net.spec, at.net.loader.tokenizer.vocab_size)
        newcomer.adopt(state)
        await at.net.neurons[2].worker.run(lambda engine: engine.restore(newcomer.snapshot()))
        await at.net.train(2, 2)
        evidence = await at.examine()
        assert [audit.passed for uid in (1, 2) for audit in evidence[uid].audits] == [True] * 6
        for lie in (state.hash, "e" * 64):
            at.tampered[1] = lambda request, honest, lie=lie: honest.model_copy(update={"base_hash": lie})  # type: ignore[misc]
            seen = (await at.examine())[1]
            assert [a.passed for a in seen.audits if a.number is not None] == ([False] * 2 if lie == state.hash else [])
            assert (seen.steps.samples, seen.unobserved) == (0, "")


async def test_a_validator_that_came_later_judges_nobody_by_a_state_it_never_had(tmp_path: Path) -> None:
    """Who trained at the state before is not observed in that one epoch; who has another epoch's records still is."""
    async with court(tmp_path, epoch=OVERLAP) as at:
        await next_epoch(at, (1, 2))
        state = at.net.neurons[0].engine.state
        at.tampered[2] = lambda request, honest: honest.model_copy(update={"state_hash": "d" * 64})
        evidence = await at.examine(bases={state.hash: state.params})
        assert "could not ask or look: its records were computed at" in evidence[1].unobserved
        assert (evidence[2].steps.samples, evidence[2].unobserved) == (0, "")


async def test_without_overlap_only_the_epoch_s_own_state_will_do(tmp_path: Path) -> None:
    """Records at another one are no work of this epoch, and no fault of the validator's."""
    async with court(tmp_path, miners=1) as at:
        at.tampered[1] = lambda request, honest: honest.model_copy(update={"base_hash": "e" * 64})
        evidence = (await at.examine())[1]
        assert (evidence.audits, evidence.steps.samples, evidence.unobserved) == ((), 0, "")


LONG = 600


def record(number: int, **fields: object) -> Record:
    return Record(**{"number": number, "pages": (0,), "samples": 1, "loss": 1.0, "gradient": (), **fields})  # type: ignore[arg-type]


def paging(total: int, page: Callable[[int], int]) -> Answer:
    """Claims `total` records and gives `page(offset)` of them."""

    def answer(request: Train, honest: TrainResponse) -> TrainResponse:
        records = tuple(record(request.offset + i) for i in range(page(request.offset)))
        return honest.model_copy(update={"total_records": total, "records": records})

    return answer


@pytest.mark.parametrize(
    ("total", "page", "offsets", "reported"),
    [
        (LONG, lambda offset: min(256, LONG - offset), [0, 256, 512], LONG),
        (2**53, lambda offset: 256, [0, 256, 512], 768),  # never more pages than an epoch can have
        (2**53, lambda offset: 0, [0], 0),
        (2**53, lambda offset: 256 if offset == 0 else 0, [0, 256], 256),
        (1, lambda offset: 256, [0], 256),
    ],
)
async def test_paging_is_bounded_whatever_the_miner_says(
    tmp_path: Path, total: int, page: Callable[[int], int], offsets: list[int], reported: int
) -> None:
    """As many pages as the epoch can fill, none after an empty one, none beyond what was stated."""
    async with court(tmp_path, miners=1, records=1) as at:
        at.desk._inquiry._most = 700
        at.tampered[1] = paging(total, page)
        target = at.net.wire.target(1, at.net.neurons[1].axon.hotkey)
        seen, at.asked[:] = at.seen(), []
        gathered, _ = await at.desk._inquiry._gather([target], seen, late=False)
        assert [offset for _, offset in at.asked] == offsets
        assert len(gathered[1].records) == reported


async def test_who_is_given_no_data_is_not_examined(tmp_path: Path) -> None:
    """Uids beyond the run's, validators that contributed nothing, and who serves no axon."""
    async with court(tmp_path) as at:
        graph = metagraph_of(12, (0, 3))
        graph = dataclasses.replace(graph, axons=(*graph.axons[:4], None, *graph.axons[5:]))
        assert at.desk.miners(graph, at.seen()) == {1, 2, 5, 6, 7}


async def test_a_query_that_was_never_sent_is_not_the_miner_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validator's own queue was full until the deadline."""
    async with court(tmp_path, miners=1) as at:
        monkeypatch.setattr(inquiry, "TRAIN_SECONDS", 0.2)
        for _ in range(DendriteConfig().concurrency):
            await at.net.neurons[0].dendrite._turns.acquire()
        evidence = (await at.examine())[1]
        assert "could not ask" in evidence.unobserved
