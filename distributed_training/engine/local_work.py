"""What a miner does with the micro-batches of one epoch: the seam between the engine and how a strategy trains.

    work.begin(epoch, base)               nothing done yet, from the parameters `base`
    work.enter(model)                     the model holds the parameters that the next micro-batch is computed at
    record = work.train(model, batch)     one micro-batch
    work.contribution(samples)            what all of them put into the average

`GradientAccumulation` adds up gradients that are all taken at `base`; `InnerSteps` (inner_steps.py) makes a step of an
optimiser with each. Neither knows of the other, nor of rounds, states and checkpoints, which are the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.replica import Replica
from distributed_training.model.layout import Layout, Vector
from distributed_training.model.state import State
from distributed_training.protocol import Record
from distributed_training.run import RunSpec

ACCUMULATED = "accumulated"


@dataclass(frozen=True, eq=False)
class Progress:
    """What a checkpoint must hold of local work: float32 [P] vectors by name, and how many inner steps were made."""

    vectors: Mapping[str, Vector]
    steps: int = 0


class LocalWork(Protocol):
    """The work of one epoch after another. The model is lent to it for as long as a call takes."""

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the vectors of its `Progress`, sorted."""

    def begin(self, epoch: int, base: Vector) -> None:
        """Nothing done yet, for `epoch`, which is trained from `base` [P].

        Raises:
            ConfigurationError: more audit coordinates than there can be.
        """

    def enter(self, model: Replica) -> None:
        """Put the parameters that the next micro-batch is computed at into the model."""

    def train(self, model: Replica, batch: MicroBatch) -> Record:
        """One micro-batch and its record.

        Raises:
            DataError, StateError: as `Replica.gradient` does; nothing was done then.
        """

    def contribution(self, samples: int) -> Vector:
        """What `samples` samples put into the average, a new float32 [P]; the work goes on untouched."""

    def standing(self) -> State | None:
        """Where steps of its own have led to, copied; None for work that makes none and stays at its base."""

    def progress(self) -> Progress | None:
        """What a checkpoint must hold, copied; None if that is nothing."""

    def load(self, progress: Progress) -> None:
        """Go on from there; `begin` was called for the epoch that it belongs to."""

    def forget(self) -> None:
        """Drop what outlives an epoch: the next one begins at a state that this work did not lead to."""


class GradientAccumulation:
    """The sum of n_k g_k over the micro-batches of an epoch, on the device, all taken at its base."""

    vectors: tuple[str, ...] = (ACCUMULATED,)

    def __init__(self, spec: RunSpec, layout: Layout, device: str | torch.device) -> None:
        self._spec = spec
        self._layout = layout
        self._sum = torch.zeros(layout.size, device=device)
        self._base: Vector
        self._coordinates = torch.zeros(0, dtype=torch.int64)

    def begin(self, epoch: int, base: Vector) -> None:
        chosen = coordinates(self._spec.run_id, epoch, self._layout, self._spec.audit.coordinates)
        self._sum.zero_()
        self._base = base
        self._coordinates = torch.from_numpy(chosen).to(self._sum.device)

    def enter(self, model: Replica) -> None:
        model.load(self._base)

    def train(self, model: Replica, batch: MicroBatch) -> Record:
        loss, gradient = model.gradient(batch)
        record = make_record(batch, loss, gradient, self._coordinates)
        self._sum.add_(gradient, alpha=batch.samples)
        return record

    def contribution(self, samples: int) -> Vector:
        return (self._sum / float(samples)).cpu().numpy()

    def progress(self) -> Progress:
        return Progress({ACCUMULATED: self._sum.detach().to("cpu", copy=True).numpy()})

    def load(self, progress: Progress) -> None:
        self._sum.copy_(torch.from_numpy(progress.vectors[ACCUMULATED].copy()))

    def standing(self) -> None:
        return None

    def forget(self) -> None:
        return  # nothing of a sum outlives its epoch


def make_record(batch: MicroBatch, loss: float, gradient: torch.Tensor, chosen: torch.Tensor) -> Record:
    """The record of a micro-batch: `gradient` [P] read at the indices `chosen` [C]."""
    values = tuple(gradient[chosen].tolist())
    return Record(number=batch.number, pages=batch.pages, samples=batch.samples, loss=loss, gradient=values)
