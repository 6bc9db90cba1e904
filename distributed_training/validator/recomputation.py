"""Recomputing records of one miner, and looking for them in what it put into the average.

A record that agrees but is not found in the contribution, or is small against it, is not enough to convict
(scoring/contribution.py): then the miner's other records are recomputed too, in random order, twice as many each time,
until those that were recomputed are found together, or all of them are not. That costs little for honest miners,
of whom one record in some hundred is not found by itself, and up to one miner's work of an epoch for a cheat, once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.names import parse_pair
from distributed_training.averaging.witness import Sighting, Sightings
from distributed_training.data.loader import Loader, MicroBatch
from distributed_training.engine.audit import Auditor
from distributed_training.engine.worker import TrainingWorker
from distributed_training.model.layout import Vector
from distributed_training.protocol import Record
from distributed_training.run import RunSpec
from distributed_training.scoring.contribution import Gradients, judge_together, judge_work, relative_size
from distributed_training.scoring.gradient import AuditResult, judge
from template.errors import DataError, StateError

NOWHERE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Subject:
    """Whose records of which epoch: all that it reported, the base [P] that they were computed at, what it sent us."""

    uid: int
    epoch: int
    records: Sequence[Record]
    base: Vector
    kept: tuple[Sightings, Sighting] | None

    @property
    def where(self) -> NDArray[np.int64]:
        """The validator's own coordinates; none if the miner's part did not come to us."""
        return NOWHERE if self.kept is None else self.kept[0].drawn

    @property
    def sent(self) -> NDArray[np.float32] | None:
        """What came at those coordinates."""
        return None if self.kept is None else self.kept[1].drawn


async def claimed_batch(loader: Loader, epoch: int, uid: int, record: Record) -> MicroBatch:
    """The micro-batch that a record says it is of; another one for a number that there is not, which does not agree.

    Raises:
        DataError: it cannot be read.
    """
    number = record.number if record.number < loader.micro_batches_per_epoch else 0
    return await asyncio.to_thread(loader.micro_batch, epoch, uid, number)


class Recomputation:
    """For one validator. `rng` must be unpredictable to miners."""

    def __init__(
        self, *, spec: RunSpec, loader: Loader, auditor: Auditor, worker: TrainingWorker, rng: random.Random
    ) -> None:
        self._audit = spec.audit
        self._zeros = parse_pair(spec.averaging.codec).makes_zeros
        self._loader = loader
        self._auditor = auditor
        self._worker = worker
        self._rng = rng

    async def look(self, subject: Subject, chosen: Sequence[Record]) -> tuple[tuple[AuditResult, ...], str]:
        """The audits of the `chosen` records that could be made, and what kept us from making others; empty if nothing.

        One of a record for each, and of the contribution with it where it says something.
        """
        made = _Made(subject)
        try:
            for record in chosen:
                await self._one(made, record)
            if made.doubted:
                await self._together(made)
        except (DataError, StateError) as error:  # our corpus or our own numbers: nothing that the miner did
            return made.audits, str(error)
        return made.audits, ""

    async def _one(self, made: _Made, record: Record) -> None:
        """One record, and the contribution with it."""
        gradient = await self._recompute(made, record)
        sent, subject = made.subject.sent, made.subject
        if gradient is None or sent is None:
            return
        found = judge_work(
            subject.uid,
            subject.epoch,
            sent,
            gradient,
            record.samples / made.samples,
            relative_size(record, subject.records),
            self._audit,
            zeros=self._zeros,
        )
        if found is not None and found.passed:
            made.work.append(found)
        elif found is not None:
            made.doubted = True

    async def _together(self, made: _Made) -> None:
        """All that was recomputed, and more of the miner's records until they are found together or are all."""
        sent, subject = made.subject.sent, made.subject
        assert sent is not None, "only what was sent can be in doubt"
        left = [record for record in subject.records if record.number not in made.gradients]
        self._rng.shuffle(left)
        while not made.failed:
            found = judge_together(
                subject.uid, subject.epoch, sent, made.together, made.share, self._audit, zeros=self._zeros
            )
            if found is None:
                return
            if found.passed or not left:
                made.work.append(found)
                return
            more = max(1, len(made.gradients))
            now, left = left[:more], left[more:]
            for record in now:
                await self._recompute(made, record)

    async def _recompute(self, made: _Made, record: Record) -> NDArray[np.float32] | None:
        """Its gradient at the validator's own coordinates, if the record agrees; the audit of it is noted."""
        subject = made.subject
        batch = await claimed_batch(self._loader, subject.epoch, subject.uid, record)
        recomputed, gradient = await self._worker.run(
            lambda _: self._auditor.recompute_at(subject.epoch, subject.base, batch, subject.where)
        )
        result = judge(subject.uid, subject.epoch, record, recomputed, batch.pages, self._audit)
        made.records.append(result)
        if not result.passed:
            return None
        made.gradients[record.number] = (record.samples, gradient)
        return gradient


class _Made:
    """What was found out of one miner so far. `doubted`: some record alone does not agree with what was sent."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.records: list[AuditResult] = []
        self.work: list[AuditResult] = []
        self.doubted = False
        self.gradients: dict[int, tuple[int, NDArray[np.float32]]] = {}

    @property
    def audits(self) -> tuple[AuditResult, ...]:
        return (*self.records, *self.work)

    @property
    def failed(self) -> bool:
        return not all(result.passed for result in self.audits)

    @property
    def samples(self) -> int:
        """That the miner reported in all."""
        return sum(record.samples for record in self.subject.records)

    @property
    def share(self) -> float:
        """Of those, what was recomputed."""
        return self.together.samples / self.samples

    @property
    def together(self) -> Gradients:
        """All that was recomputed."""
        return Gradients(tuple(self.gradients.values()))
