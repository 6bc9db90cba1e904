"""Recomputes records and steps: the validator's half of an audit. Whether they agree is judged in `scoring/`."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.coordinates import Coordinates, coordinates
from distributed_training.engine.inner_steps import Standing, inner_of, step
from distributed_training.engine.local_work import make_record
from distributed_training.engine.replica import Replica
from distributed_training.model.layout import Layout, Vector
from distributed_training.model.state import State
from distributed_training.protocol import Record
from distributed_training.run import RunSpec
from distributed_training.strategies.base import LocalState
from distributed_training.strategies.registry import find_strategy


class Auditor:
    """A model of its own, moved to whatever base state is asked for."""

    def __init__(self, spec: RunSpec, vocab_size: int, device: str | torch.device = "cpu") -> None:
        """Raises ConfigurationError for a model or strategy that cannot be built."""
        self._spec = spec
        self._device = torch.device(device)
        self._strategy = find_strategy(spec)
        self._replica = Replica(spec, vocab_size, device)

    @property
    def layout(self) -> Layout:
        return self._replica.layout

    def recompute(self, epoch: int, params: Vector, batch: MicroBatch) -> Record:
        """The record that an honest miner makes of `batch` in `epoch` at `params` [P]; raises like `recompute_at`."""
        return self.recompute_at(epoch, params, batch, np.empty(0, dtype=np.int64))[0]

    def recompute_at(
        self, epoch: int, params: Vector, batch: MicroBatch, where: Coordinates
    ) -> tuple[Record, NDArray[np.float32]]:
        """The same record, and the gradient's values at the indices `where` [n] into the vector, float32 [n].

        Raises:
            CorruptState: the parameters do not fit.
            DataError: the batch does not fit.
            StateError: the result is not finite.
        """
        self._replica.load(params)
        loss, gradient = self._replica.gradient(batch)
        record = make_record(batch, loss, gradient, self._shown(epoch))
        values = gradient[torch.from_numpy(where).to(gradient.device)].cpu().numpy()
        return record, values

    def stand(self, state: State) -> LocalState:
        """Where a miner stood, to go on from with `step`; `state` is one that it committed to."""
        return self._standing.of(state)

    def step(self, epoch: int, stood: LocalState, batch: MicroBatch) -> tuple[Record, LocalState]:
        """The inner step that an honest miner makes with `batch` in `epoch`, and its record.

        Raises:
            DataError: the batch does not fit.
            StateError: the result is not finite.
        """
        self._replica.place(stood.params)
        return step(self._replica, inner_of(self._strategy, epoch), stood, batch, self._shown(epoch))

    def arrived(self, stood: LocalState) -> State:
        """Where the steps have led to."""
        return self._standing.state(stood)

    @functools.cached_property
    def empty_vectors_hash(self) -> str:
        """The hash of the inner state of a miner that has made no step yet."""
        nothing = np.zeros(self.layout.size, dtype=np.float32)
        return self._standing.state(self._standing.empty(nothing)).vectors_hash

    @functools.cached_property
    def _standing(self) -> Standing:
        return Standing(inner_of(self._strategy, 0), self.layout, self._device)

    def _shown(self, epoch: int) -> torch.Tensor:
        """The coordinates [C] that records of the epoch show, on the device."""
        chosen = coordinates(self._spec.run_id, epoch, self.layout, self._spec.audit.coordinates)
        return torch.from_numpy(chosen).to(self._device)

    def held_out_loss(self, params: Vector, batches: Iterable[MicroBatch]) -> float:
        """Nats per token at `params` [P]; raises DataError without any batches."""
        self._replica.load(params)
        return self._replica.mean_loss(batches)
