"""Miners that cheat, each a miner's real engine with one part replaced.

`poison.py` has those that work honestly and put something else into the average. What each costs a cheat, in simulated
time, is in `zoo.py`.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from typing import Any

import numpy as np

from distributed_training.composition import EngineFactory
from distributed_training.data.loader import Loader
from distributed_training.engine import engine
from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.checkpoint import Base
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.engine.records import contribution_at_coordinates
from distributed_training.model.layout import Vector
from distributed_training.model.state import State
from distributed_training.protocol import Record
from distributed_training.run import RunSpec
from tests.adversaries.poison import POISONS


class Cheat(Engine):
    """An engine that knows what a miner knows. What it puts into the average fits its records where they are seen."""

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        super().__init__(spec, loader.tokenizer.vocab_size, device)
        self._loader = loader
        self._uid = uid
        self._random = np.random.default_rng(uid)

    def claim(self, record: Record) -> Record:
        """Report a record without the work."""
        self._replace(self.in_training.with_record(record, 0.1))
        return record

    def fitting(self, vector: Vector) -> Contribution:
        """`vector` [P], made to hold what the records add up to where they show it: everybody knows where that is."""
        chosen = coordinates(self._spec.run_id, self.epoch, self.layout, self._spec.audit.coordinates)
        vector[chosen] = contribution_at_coordinates(self.work.records)
        return Contribution(vector, self.work.samples, self.work.records)

    def contribution(self) -> Contribution:
        return self.fitting(super().contribution().vector.copy())

    def rewritten(self, **changes: Any) -> Record:
        """Report the last record otherwise than it is."""
        record = self.in_training.records[-1].model_copy(update=changes)
        records = (*self.in_training.records[:-1], record)
        samples = sum(record.samples for record in records)
        self._replace(self.in_training.model_copy(update={"records": records, "samples": samples}))
        return record


class FreeRider(Cheat):
    """Trains nothing: makes its records up and contributes noise of a plausible size. Hopes that nobody recomputes."""

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        super().__init__(spec, loader, uid, device)
        self._coordinate_count = spec.audit.coordinates

    def train(self, batch: MicroBatch) -> Record:
        return self.claim(self.made_up(batch))

    def made_up(self, batch: MicroBatch) -> Record:
        """A record that nobody computed: the loss of a fresh model, small gradients."""
        values = self._random.normal(0, 1e-3, self._coordinate_count)
        loss = float(self._random.normal(3.0, 0.2))
        return Record(
            number=batch.number, pages=batch.pages, samples=batch.samples, loss=loss, gradient=tuple(values.tolist())
        )

    def contribution(self) -> Contribution:
        return self.fitting(self._random.normal(0, 1e-3, self.layout.size).astype(np.float32))


class Lazy(FreeRider):
    """Trains every second micro-batch, makes the others up, contributes what it has. Hopes for luck in the audits."""

    def train(self, batch: MicroBatch) -> Record:
        return Engine.train(self, batch) if batch.number % 2 == 0 else self.claim(self.made_up(batch))

    def contribution(self) -> Contribution:
        return self.fitting(Engine.contribution(self).vector)


class LazyOnceInAWhile(Lazy):
    """Makes up one micro-batch of ten. Hopes that so little is not found for long."""

    def train(self, batch: MicroBatch) -> Record:
        skipped = self._random.random() < 0.1
        return self.claim(self.made_up(batch)) if skipped else Engine.train(self, batch)


class Copycat(Cheat):
    """Hands in the losses and gradients of another miner as those of its own pages. Hopes that one work pays twice.

    How it comes by them does not matter to a validator, so it computes them: what `victim` would report.
    """

    share = 1.0  # of the records that are borrowed

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        super().__init__(spec, loader, uid, device)
        self._victim = uid - 1

    def train(self, batch: MicroBatch) -> Record:
        if self._random.random() >= self.share:
            return super().train(batch)
        super().train(self._loader.micro_batch(self.in_training.epoch, self._victim, batch.number))
        return self.rewritten(pages=batch.pages, samples=batch.samples)


class CopycatInPart(Copycat):
    """Borrows every second record, at random. Hopes that own work covers for it."""

    share = 0.5


class Plagiarist(Cheat):
    """Reports another miner's records as they are, pages included. Hopes that nobody looks whose pages they are."""

    def train(self, batch: MicroBatch) -> Record:
        return super().train(self._loader.micro_batch(self.in_training.epoch, self._uid - 1, batch.number))


class OffAssignment(Cheat):
    """Trains the pages of its first epoch for ever, and says so. Hopes to read no data any more."""

    def train(self, batch: MicroBatch) -> Record:
        return super().train(self._loader.micro_batch(0, self._uid, batch.number))


class SamePage(Cheat):
    """Trains one micro-batch an epoch and reports it for all its pages. Hopes that numbers alike go unseen."""

    def train(self, batch: MicroBatch) -> Record:
        done = self.in_training.records
        if not done:
            return super().train(batch)
        changes = {"number": batch.number, "pages": batch.pages, "samples": batch.samples}
        return self.claim(done[0].model_copy(update=changes))


class Stale(Cheat):
    """Trains at the state of the epoch before, and says that it is the present one. Hopes to save itself the wait."""

    def _enter(self, state: State, before: Base | None) -> None:
        self._late = self._state.params if self._works else state.params
        super()._enter(state, before)

    @property
    def _training_params(self) -> Vector:
        return self._late


class NoBackward(Cheat):
    """Computes the loss of each batch, and takes the gradient from the optimiser's momentum: a third of the work.

    Hopes that a gradient that points where all the last ones did is near enough.
    """

    def train(self, batch: MicroBatch) -> Record:
        loss, _ = self._replica.gradient(batch)
        chosen = coordinates(self._spec.run_id, self.in_training.epoch, self.layout, self._spec.audit.coordinates)
        values = tuple(self._momentum()[chosen].tolist())
        return self.claim(
            Record(number=batch.number, pages=batch.pages, samples=batch.samples, loss=loss, gradient=values)
        )

    def contribution(self) -> Contribution:
        return self.fitting(self._momentum())

    def _momentum(self) -> Vector:
        vectors = self.state.optimizer
        return vectors[sorted(vectors)[0]].copy()


class LowPrecision(Cheat):
    """Computes in bfloat16 in a run whose precision is float32: half the memory, twice the speed.

    Hopes that the difference passes for rounding.
    """

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        super().__init__(spec, loader, uid, device)
        half = dataclasses.replace(spec, precision="bfloat16")
        self._replica = engine.Replica(half, loader.tokenizer.vocab_size, device)
        self._replica.load(self._training_params)


class Quantised(Cheat):
    """Computes honestly and keeps each gradient in 16 steps a sign. Hopes that the difference passes for rounding."""

    LEVELS = 16

    def train(self, batch: MicroBatch) -> Record:
        record = super().train(batch)
        values = np.array(record.gradient)
        step = np.abs(values).max() / self.LEVELS
        return self.rewritten(gradient=tuple((np.round(values / step) * step).tolist()))


class Replayer(Cheat):
    """Trains in its first epoch; hands in those records, under new pages, and that contribution for ever after.

    Hopes that what was right once passes again.
    """

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        super().__init__(spec, loader, uid, device)
        self._kept: dict[int, Record] = {}
        self._vector: Vector | None = None

    def train(self, batch: MicroBatch) -> Record:
        if self._vector is None or batch.number not in self._kept:
            record = self._kept[batch.number] = super().train(batch)
            return record
        return self.claim(self._kept[batch.number].model_copy(update={"pages": batch.pages, "samples": batch.samples}))

    def contribution(self) -> Contribution:
        if self._vector is None:
            self._vector = super().contribution().vector
        return self.fitting(self._vector.copy())


class Overclaimer(Cheat):
    """Trains honestly and reports four times the samples. Hopes to be paid, and to weigh, four times as much."""

    def train(self, batch: MicroBatch) -> Record:
        record = super().train(batch)
        return self.rewritten(samples=4 * record.samples)


class DiesInRound(Engine):
    """Honest, until it is killed in the middle of its third round."""

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        super().__init__(spec, loader.tokenizer.vocab_size, device)

    def contribution(self) -> Contribution:
        if self.epoch >= 2:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return super().contribution()


ENGINES: dict[str, EngineFactory] = {
    "free-rider": FreeRider,
    "lazy": Lazy,
    "lazy-tenth": LazyOnceInAWhile,
    "copycat": Copycat,
    "copycat-part": CopycatInPart,
    "plagiarist": Plagiarist,
    "off-assignment": OffAssignment,
    "same-page": SamePage,
    "stale": Stale,
    "no-backward": NoBackward,
    "low-precision": LowPrecision,
    "quantised": Quantised,
    "replay": Replayer,
    "overclaim": Overclaimer,
    **POISONS,
    "dies-in-round": DiesInRound,
}
