"""What is recomputed of one miner, and when its contribution convicts it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distributed_training.averaging.witness import Sighting, Sightings, sighting_of
from distributed_training.protocol import Record
from distributed_training.run import load_run
from distributed_training.scoring.gradient import Finding
from distributed_training.validator.recomputation import Recomputation, Subject

COUNT, SIZE = 8, 20_000
NANO = Path(__file__).parents[2] / "runs" / "nano.toml"
Values = NDArray[np.float32]


class Paper:
    """A loader and an auditor in one, whose gradients are given."""

    micro_batches_per_epoch = COUNT

    def __init__(self, gradients: Values) -> None:
        self.gradients = gradients
        self.recomputed: list[int] = []

    def micro_batch(self, epoch: int, uid: int, number: int) -> SimpleNamespace:
        return SimpleNamespace(number=number, pages=(number,), samples=4)

    def recompute_at(
        self, epoch: int, base: Values, batch: SimpleNamespace, where: NDArray[np.int64]
    ) -> tuple[Record, Values]:
        self.recomputed.append(batch.number)
        return self.record(batch.number), self.gradients[batch.number][where]

    def record(self, number: int) -> Record:
        shown = tuple(map(float, self.gradients[number][:64]))
        return Record(number=number, pages=(number,), samples=4, loss=1.0, gradient=shown)


class AtOnce:
    """A training worker without a training."""

    async def run(self, work: Callable[[None], Any]) -> Any:
        return work(None)


def gradients(against: float) -> Values:
    """Of COUNT records; the first points `against` the sum of the others."""
    made = np.random.default_rng(0).normal(size=(COUNT, SIZE))
    made[0] = -against * made[1:].sum(axis=0)
    return made.astype(np.float32)


async def findings(
    paper: Paper, sent: Values, records: Sequence[Record], chosen: int = 0
) -> list[tuple[int | None, Finding]]:
    """Of a miner that reports `records` and put in `sent`, when one of them was chosen."""
    where = np.arange(SIZE)
    nothing = np.zeros(0, dtype=np.float32)
    kept = Sightings(
        known=where[:0],
        drawn=where,
        by_uid={3: Sighting(known=nothing, drawn=sent, errors=nothing)},
        average=nothing,
        reducers=where[:0],
    )
    desk = Recomputation(
        spec=load_run(NANO),
        loader=paper,  # type: ignore[arg-type]
        auditor=paper,  # type: ignore[arg-type]
        worker=AtOnce(),  # type: ignore[arg-type]
        rng=random.Random(1),
    )
    audits, trouble = await desk.look(Subject(3, 5, records, sent, sighting_of(kept, 3)), [records[chosen]])
    assert trouble == ""
    return [(audit.number, audit.finding) for audit in audits]


async def test_a_record_that_is_found_is_enough() -> None:
    """Nothing else is recomputed."""
    paper = Paper(gradients(0.5))
    records = [paper.record(number) for number in range(COUNT)]
    found = await findings(paper, paper.gradients.mean(axis=0), records, chosen=1)
    assert found == [(1, Finding.AGREES), (None, Finding.AGREES)]
    assert paper.recomputed == [1]


@pytest.mark.parametrize("against", [0.2, 0.5, 0.8])
async def test_an_honest_record_that_points_against_all_others_convicts_nobody(
    against: float,
) -> None:
    """It is found together with others; the more it outweighs, the more of them that takes."""
    paper = Paper(gradients(against))
    records = [paper.record(number) for number in range(COUNT)]
    found = await findings(paper, paper.gradients.mean(axis=0), records)
    assert {finding for _, finding in found} == {Finding.AGREES}
    assert [number for number, _ in found].count(None) == 1
    assert len(paper.recomputed) > 1


@pytest.mark.parametrize("cheat", ["garbage", "flipped", "zeros"])
async def test_what_holds_none_of_the_work_convicts_once_all_was_recomputed(cheat: str) -> None:
    """All records are right, and the contribution is none of them."""
    paper = Paper(gradients(0.0) + np.float32(0.01))
    mean = paper.gradients.mean(axis=0)
    signs = np.random.default_rng(1).choice(np.array([-1, 1], dtype=np.float32), SIZE)
    sent = {"garbage": mean * signs, "flipped": -mean, "zeros": 0 * mean}[cheat]
    records = [paper.record(number) for number in range(COUNT)]
    found = await findings(paper, sent, records, chosen=2)
    assert found[-1] == (None, Finding.NOT_ITS_WORK)
    assert sorted(paper.recomputed) == list(range(COUNT))


async def test_a_made_up_record_that_comes_to_light_ends_the_search() -> None:
    """The record convicts; what else was put in need not be known."""
    paper = Paper(gradients(0.0) + np.float32(0.01))
    lie = (1.0,) * 64
    records = [paper.record(n).model_copy(update={} if n == 2 else {"gradient": lie}) for n in range(COUNT)]
    sent = paper.gradients.mean(axis=0)[::-1].copy()
    found = await findings(paper, sent, records, chosen=2)
    assert found[0] == (2, Finding.AGREES)
    assert found[1][1] is Finding.GRADIENT_DIFFERS
    assert len(found) == len(paper.recomputed) == 2
