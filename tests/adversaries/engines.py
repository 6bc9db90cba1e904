"""Miners that cheat, each a miner's real engine with one part replaced."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np

from distributed_training.data.loader import Loader
from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.protocol import Record
from distributed_training.run import RunSpec


class FreeRider(Engine):
    """Trains nothing: makes its records up and contributes noise of a plausible size."""

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        super().__init__(spec, loader.tokenizer.vocab_size, device)
        self._random = np.random.default_rng(uid)
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

    def claim(self, record: Record) -> Record:
        """Report a record without the work."""
        self._replace(self.in_training.with_record(record, 0.1))
        return record

    def contribution(self) -> Contribution:
        vector = self._random.normal(0, 1e-5, self.layout.size).astype(np.float32)
        return Contribution(vector, self.work.samples, self.work.records)


class Lazy(FreeRider):
    """Trains every second micro-batch and makes the records of the others up; contributes what it has."""

    def train(self, batch: MicroBatch) -> Record:
        return Engine.train(self, batch) if batch.number % 2 == 0 else self.claim(self.made_up(batch))

    def contribution(self) -> Contribution:
        return Engine.contribution(self)


class Copycat(FreeRider):
    """Hands in the losses and gradients of another miner as those of its own pages.

    How it comes by them does not matter to a validator, so it computes them: what `victim` would report.
    """

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        super().__init__(spec, loader, uid, device)
        self._loader = loader
        self._victim = uid - 1

    def train(self, batch: MicroBatch) -> Record:
        theirs = Engine.train(self, self._loader.micro_batch(self.in_training.epoch, self._victim, batch.number))
        mine = theirs.model_copy(update={"pages": batch.pages, "samples": batch.samples})
        records = (*self.in_training.records[:-1], mine)
        done = {"records": records, "samples": sum(record.samples for record in records)}
        self._replace(self.in_training.model_copy(update=done))
        return mine

    def contribution(self) -> Contribution:
        return Engine.contribution(self)


class NotANumber(Engine):
    """Trains and reports honestly, and puts NaN into the average."""

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        super().__init__(spec, loader.tokenizer.vocab_size, device)

    def contribution(self) -> Contribution:
        honest = super().contribution()
        vector = honest.vector.copy()
        vector[:: max(1, vector.size // 7)] = np.nan
        return Contribution(vector, honest.samples, honest.records)


class DiesInRound(Engine):
    """Honest, until it is killed in the middle of its third round."""

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        super().__init__(spec, loader.tokenizer.vocab_size, device)

    def contribution(self) -> Contribution:
        if self.epoch >= 2:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return super().contribution()


ENGINES = {"free-rider": FreeRider, "lazy": Lazy, "copycat": Copycat, "nan": NotANumber, "dies-in-round": DiesInRound}
