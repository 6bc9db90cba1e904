"""Real rounds between honest miners and one that cheats: what the validator's share shows of what each put in."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_training.averaging.plan import plan_from
from distributed_training.averaging.wire_exhibits import WireExhibits
from distributed_training.data.loader import Loader
from distributed_training.engine.audit import Auditor
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.model.layout import Vector
from distributed_training.protocol import Record
from distributed_training.run import RunSpec
from distributed_training.scoring.combine import Evidence
from distributed_training.validator.audits import AuditDesk, EpochSeen
from distributed_training.validator.rounds import completed_round
from template.clock import SystemClock
from tests.engine import tiny
from tests.roles import AUDIT, AVERAGING, EPOCH, Subnet, run_spec, subnet

LARGER = dataclasses.replace(tiny.GPT2, config={**tiny.GPT2.config, "n_embd": 64})  # enough coordinates to decide
SHOWN = dataclasses.replace(AUDIT, coordinates=64)  # of fewer none may lie in the validator's share
Change = Callable[[Engine, Vector], Vector]


def putting_in(change: Change) -> type[Engine]:
    """A miner that trains and reports honestly, and puts something else into the average."""

    class Cheat(Engine):
        def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
            super().__init__(spec, loader.tokenizer.vocab_size, device)

        def contribution(self) -> Contribution:
            honest = super().contribution()
            return Contribution(change(self, honest.vector), honest.samples, honest.records)

    return Cheat


def noise(engine: Engine, vector: Vector) -> Vector:
    return np.random.default_rng(0).normal(0, vector.std(), vector.size).astype(np.float32)


def except_where_records_look(change: Change) -> Change:
    """The informed cheat: right at every coordinate that a record shows."""

    def informed(engine: Engine, vector: Vector) -> Vector:
        changed = change(engine, vector)
        shown = engine._local._coordinates.numpy()
        changed[shown] = vector[shown]
        return changed

    return informed


def desk_of(net: Subnet) -> AuditDesk:
    neuron = net.neurons[0]
    return AuditDesk(
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


@asynccontextmanager
async def served(folder: Path, miners: int, **changes: Any) -> AsyncIterator[Subnet]:
    """Whole miners, which show their records, and a validator that only takes part in rounds."""
    async with subnet(folder, miners, attached=False, **changes) as net:
        net.neurons[0].node.attach(net.neurons[0].axon, net.neurons[0].ended.append)
        for uid in range(1, miners + 1):
            net.miner(uid)
        yield net


async def averaged(net: Subnet) -> EpochSeen:
    """Everybody averages; what the validator saw of it, and no chunk drawn."""
    request = net.request()
    await asyncio.gather(*(neuron.node.take_part(request) for neuron in net.neurons.values()))
    done = net.neurons[0].ended[-1]
    assert done.completed
    seen = completed_round(done.request, done.result.outcome, frozenset(net.neurons), ())
    peers = {member.uid: member.peer for member in request.group}
    return EpochSeen(done.epoch, done.request.state_hash, done.bases, done.result.outcome, (seen,), peers=peers)


async def round_of(net: Subnet) -> EpochSeen:
    """The same with what is kept to look at reducers."""
    seen, done = await averaged(net), net.neurons[0].ended[-1]
    return dataclasses.replace(seen, reduction=desk_of(net).keep(done.plan, done.result))


async def epochs(
    folder: Path, change: Change | None = None, count: int = 1, miners: int = 3, **changes: Any
) -> list[dict[int, Evidence]]:
    """So many epochs in which miner 1 puts in something else; the evidence of each."""
    engines = {} if change is None else {1: putting_in(change)}
    evidence = []
    async with served(folder, miners, engines=engines, **{"model": LARGER, "audit": SHOWN, **changes}) as net:
        desk = desk_of(net)
        for _ in range(count):
            for uid in range(1, miners + 1):
                await net.train(uid, 4)
            seen = await round_of(net)
            evidence.append({e.uid: e for e in await desk.examine(net.chain.metagraph, seen)})
    return evidence


def failed(evidence: Evidence) -> set[str]:
    return {str(audit.finding) for audit in evidence.audits if not audit.passed}


@pytest.mark.parametrize(
    ("codec", "feedback"),
    [("none", False), ("fp16", False), ("int8-block64", False), ("int8-block64", True), ("int4-block64", True)],
)
async def test_honest_contributions_agree_with_their_records(tmp_path: Path, codec: str, feedback: bool) -> None:
    """Epoch after epoch, with each codec, also where error feedback adds what was owed."""
    averaging = dataclasses.replace(AVERAGING, codec=codec, error_feedback=feedback)
    for seen in await epochs(tmp_path, count=3, averaging=averaging):
        for uid in (1, 2, 3):
            assert failed(seen[uid]) == set(), uid
            assert seen[uid].unobserved == ""
            whole = [audit for audit in seen[uid].audits if audit.number is None]
            assert 1 < len(whole) <= 5  # the sum, and the recomputed records with it, if enough coordinates say so
            assert seen[uid].steps.samples > 0


async def test_one_record_that_is_small_convicts_nobody(tmp_path: Path) -> None:
    """What all records add up to is as large as what was sent, whatever a single one says of it."""
    strict = dataclasses.replace(SHOWN, inflation=1.001)
    for seen in await epochs(tmp_path, count=3, audit=strict):
        assert [failed(seen[uid]) for uid in (1, 2, 3)] == [set()] * 3
        sizes = [audit.inflation for uid in (1, 2, 3) for audit in seen[uid].audits if audit.inflation is not None]
        assert max(sizes) <= strict.inflation


async def test_with_overlap_they_agree_as_well(tmp_path: Path) -> None:
    """Contribution and records are set aside together."""
    overlap = dataclasses.replace(EPOCH, overlap=True)
    for seen in await epochs(tmp_path, count=2, epoch=overlap):
        assert [failed(seen[uid]) for uid in (1, 2, 3)] == [set()] * 3


CHEATS: dict[str, Change] = {
    "flipped": lambda _, vector: -vector,
    "noise": noise,
    "zeros": lambda _, vector: 0 * vector,
    "inflated": lambda _, vector: 40 * vector,
}


@pytest.mark.parametrize("name", CHEATS)
async def test_garbage_is_not_the_sum_of_honest_records(tmp_path: Path, name: str) -> None:
    """Seen at once and for nothing, and only in the one that sent it."""
    (seen,) = await epochs(tmp_path, CHEATS[name])
    assert "what was put into the average is not what the records add up to" in failed(seen[1])
    assert [failed(seen[uid]) for uid in (2, 3)] == [set()] * 2


@pytest.mark.parametrize("name", CHEATS)
@pytest.mark.parametrize("codec", ["none", "int8-block64"])
async def test_garbage_is_seen_where_no_record_looks(tmp_path: Path, name: str, codec: str) -> None:
    """By the records that are recomputed, at coordinates that nobody was told."""
    averaging = dataclasses.replace(AVERAGING, codec=codec)
    (seen,) = await epochs(tmp_path, except_where_records_look(CHEATS[name]), averaging=averaging)
    work = "what was put into the average does not hold the recomputed work"
    large = "what was put into the average is larger than the work"
    assert failed(seen[1]) & {work, large}
    assert [failed(seen[uid]) for uid in (2, 3)] == [set()] * 2


async def test_a_weight_that_the_records_do_not_have(tmp_path: Path) -> None:
    """Who claims more samples in the average than it can show."""

    class Heavy(Engine):
        def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
            super().__init__(spec, loader.tokenizer.vocab_size, device)

        def contribution(self) -> Contribution:
            honest = super().contribution()
            return Contribution(honest.vector, 3 * honest.samples, honest.records)

    async with served(tmp_path, 2, engines={1: Heavy}) as net:
        for uid in (1, 2):
            await net.train(uid, 3)
        seen = await round_of(net)
        evidence = {e.uid: e for e in await desk_of(net).examine(net.chain.metagraph, seen)}
    assert "weighs another number of samples" in "".join(failed(evidence[1]))
    assert failed(evidence[2]) == set()


async def test_a_validator_that_reduces_nothing_concludes_nothing(tmp_path: Path) -> None:
    """Its own share is lost, or it has none: the records are audited all the same, and nobody pays for it."""
    async with served(tmp_path, 2, model=LARGER) as net:
        for uid in (1, 2):
            await net.train(uid, 3)
        seen = await round_of(net)
        blind = dataclasses.replace(seen, outcome=dataclasses.replace(seen.outcome, sightings=None))
        evidence = {e.uid: e for e in await desk_of(net).examine(net.chain.metagraph, blind)}
    for uid in (1, 2):
        assert failed(evidence[uid]) == set()
        whole, *single = [a.number for a in evidence[uid].audits]
        assert whole is None
        assert single, "records are drawn one by one, the smaller the seldomer; not all need be"
        assert set(single) <= {0, 1, 2}
        assert evidence[uid].unobserved == ""


def copying(victim: int, fraction: float) -> type[Engine]:
    """A miner that hands in the numbers of another's records as those of its own pages, for a part of them.

    It is in league with the victim, or it could not have them in time; what it puts in fits its records.
    """

    class Copier(Engine):
        def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
            super().__init__(spec, loader.tokenizer.vocab_size, device)
            self._loader = loader

        def train(self, batch: object) -> Record:
            number, epoch = batch.number, self.in_training.epoch  # type: ignore[attr-defined]
            if number >= fraction * self._loader.micro_batches_per_epoch:
                return super().train(batch)  # type: ignore[arg-type]
            theirs = super().train(self._loader.micro_batch(epoch, victim, number))
            mine = theirs.model_copy(update={"pages": batch.pages})  # type: ignore[attr-defined]
            records = (*self.in_training.records[:-1], mine)
            self._replace(self.in_training.model_copy(update={"records": records}))
            return mine

    return Copier


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1])
async def test_a_copier_is_convicted_at_any_fraction_and_its_victim_never(tmp_path: Path, fraction: float) -> None:
    """Though the budget recomputes next to nothing by chance: equal numbers are looked at first."""
    data = dataclasses.replace(run_spec(tmp_path).data, pages_per_epoch=10)
    scarce = dataclasses.replace(AUDIT, share=1e-6, overhead=1e-6)
    async with served(tmp_path, 3, engines={2: copying(1, fraction)}, data=data, audit=scarce) as net:
        for uid in (1, 2, 3):
            await net.train(uid, 10)
        seen = await round_of(net)
        evidence = {e.uid: e for e in await desk_of(net).examine(net.chain.metagraph, seen)}
    assert [a.finding for a in evidence[2].audits if a.number is not None and not a.passed] != []
    for uid in (1, 3):
        assert failed(evidence[uid]) == set()
    assert [a.number for a in evidence[3].audits] == [None]  # nothing of it was recomputed


async def test_only_records_that_were_bound_before_sight_count(tmp_path: Path) -> None:
    """Who hands in others than it told the group by their hash earns nothing with them, and is convicted of nothing."""
    async with served(tmp_path, 3) as net:
        for uid in (1, 2, 3):
            await net.train(uid, 2)
        seen = await round_of(net)
        swapped = net.neurons[1].engine.work_of(0)
        works = tuple(w.model_copy(update={"records": w.records[::1][:1]}) for w in (swapped,))
        net.neurons[1].engine._works = (*works, net.neurons[1].engine.work)
        bound = {uid: told for uid, told in seen.outcome.records.items() if uid != 2}
        seen = dataclasses.replace(seen, outcome=dataclasses.replace(seen.outcome, records=bound))
        evidence = {e.uid: e for e in await desk_of(net).examine(net.chain.metagraph, seen)}
        reasons = {e["miner"]: e["reason"] for e in net.neurons[0].told("Unseen")}
    for uid in (1, 2):
        assert (evidence[uid].audits, evidence[uid].steps.samples, evidence[uid].unobserved) == ((), 0, "")
    assert "not those that it bound itself to" in reasons[1]
    assert "bound itself to no records" in reasons[2]
    assert evidence[3].steps.samples > 0


async def test_all_members_hear_the_hashes_before_the_round_ends(tmp_path: Path) -> None:
    """The validator knows by what each miner stands, and no miner shows its records before."""
    async with served(tmp_path, 2) as net:
        for uid in (1, 2):
            await net.train(uid, 2)
        seen = await round_of(net)
        assert seen.outcome.records.keys() == {1, 2}
        assert len(set(seen.outcome.records.values())) == 2


async def test_what_a_cheat_sends_to_miners_only_shows_in_the_average(tmp_path: Path) -> None:
    """Nobody is convicted, as nobody can be; but it is told, with whose share it is in."""
    ranges: dict[int, tuple[int, int]] = {}

    def elsewhere(engine: Engine, vector: Vector) -> Vector:
        changed, (start, stop) = noise(engine, vector), ranges[0]
        changed[start:stop] = vector[start:stop]
        return changed

    async with served(tmp_path, 3, engines={1: putting_in(elsewhere)}, model=LARGER) as net:
        for uid in (1, 2, 3):
            await net.train(uid, 3)
        size = net.neurons[0].engine.layout.size
        plan = plan_from(net.request(), size=size, quorum=0.67, max_weight=1, reduction="mean")
        ranges.update(plan.ranges())
        seen = await round_of(net)
        evidence = {e.uid: e for e in await desk_of(net).examine(net.chain.metagraph, seen)}
        (told,) = net.neurons[0].told("AverageNotExplained")
    assert [failed(evidence[uid]) for uid in (1, 2, 3)] == [set()] * 3
    assert told["reducers"]
    assert set(told["reducers"]) <= {1, 2, 3}
    assert 0 < told["coordinates"] < told["of"]


async def test_an_honest_average_is_explained(tmp_path: Path) -> None:
    """To the last coordinate, by rounding alone."""
    async with served(tmp_path, 3) as net:
        for uid in (1, 2, 3):
            await net.train(uid, 3)
        seen = await round_of(net)
        await desk_of(net).examine(net.chain.metagraph, seen)
        assert net.neurons[0].told("AverageNotExplained") == []
