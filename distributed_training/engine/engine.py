"""The training state of one neuron: base state θₑ, the gradient accumulated at it, and the records of how.

Not thread-safe: one thread calls the methods (`worker.py` runs it). The read-only properties may be read from any
thread, since what they return is immutable and replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distributed_training.averaging.feedback import RESIDUAL, Attempt, ErrorFeedback
from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.checkpoint import Snapshot, load_checkpoint, save_checkpoint
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.records import Work
from distributed_training.engine.replica import Replica
from distributed_training.model.files import architecture
from distributed_training.model.layout import Layout, Vector, flatten
from distributed_training.model.state import State
from distributed_training.protocol import Record
from distributed_training.run import RunSpec
from distributed_training.strategies.registry import find_strategy
from template.clock import Clock, SystemClock
from template.errors import StateError

_KEPT_EPOCHS = 4  # this one and some before: a validator's query may come after the end of an epoch


@dataclass(frozen=True, eq=False)
class Contribution:
    """What a miner puts into the average: sum(n_k g_k) / sum(n_k) over its micro-batches, a copy of its own."""

    vector: Vector  # float32 [P]
    samples: int
    records: tuple[Record, ...]


class Engine:
    """Trains micro-batches at θₑ and applies averages.

    Starts at epoch 0 of the run, or wherever `adopt`, `restore` or `load` put it.
    """

    def __init__(
        self, spec: RunSpec, vocab_size: int, device: str | torch.device = "cpu", clock: Clock | None = None
    ) -> None:
        """Raises ConfigurationError for a model or strategy that cannot be built."""
        self._spec = spec
        self._clock = clock or SystemClock()
        self._strategy = find_strategy(spec)
        self._replica = Replica(spec, vocab_size, device)
        layout = self._replica.layout
        self._accumulated = torch.zeros(layout.size, device=device)  # sum of n_k g_k
        self._feedback = ErrorFeedback(layout.size) if spec.averaging.error_feedback else None
        self._works: tuple[Work, ...] = ()  # the last one is of the epoch in progress
        self._enter(State(layout, 0, flatten(self._replica.module), self._strategy.init(layout)))

    @property
    def state(self) -> State:
        """θₑ and its optimiser vectors."""
        return self._state

    @property
    def layout(self) -> Layout:
        return self._replica.layout

    @property
    def architecture(self) -> dict[str, Any]:
        """The model's transformers config, as config.json holds it."""
        return architecture(self._replica.module)

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the optimiser vectors that a state of this run holds."""
        return self._strategy.vectors

    @property
    def epoch(self) -> int:
        return self.work.epoch

    @property
    def state_hash(self) -> str:
        return self.work.state_hash

    @property
    def work(self) -> Work:
        """What was done in this epoch."""
        return self._works[-1]

    @property
    def samples(self) -> int:
        return self.work.samples

    @property
    def records(self) -> tuple[Record, ...]:
        return self.work.records

    def work_of(self, epoch: int) -> Work:
        """What was done in this epoch or one of the few before.

        Raises:
            StateError: that epoch is not kept.
        """
        works = self._works
        for work in works:
            if work.epoch == epoch:
                return work
        raise StateError(f"no work of epoch {epoch}; kept: {', '.join(str(work.epoch) for work in works)}")

    def records_of(self, epoch: int) -> tuple[Record, ...]:
        """The records of a kept epoch; raises StateError as `work_of` does."""
        return self.work_of(epoch).records

    def train(self, batch: MicroBatch) -> Record:
        """One forward and backward pass at θₑ, added to the accumulated gradient with the weight of its samples.

        Raises:
            StateError: this number was trained already, or the result is not finite; nothing was added.
            DataError: the batch does not fit the model; nothing was added.
        """
        if any(record.number == batch.number for record in self.records):
            raise StateError(f"micro-batch {batch.number} was already trained in epoch {self.epoch}")
        started = self._clock.monotonic()
        loss, gradient = self._replica.gradient(batch)
        record = make_record(batch, loss, gradient, self._coordinates)
        self._accumulated.add_(gradient, alpha=batch.samples)
        work = self.work.with_record(record, self._clock.monotonic() - started)
        self._works = (*self._works[:-1], work)
        return record

    def contribution(self) -> Contribution:
        """The mean gradient so far; accumulation goes on untouched until `apply`.

        Raises:
            StateError: nothing was trained yet, so there is no mean.
        """
        work = self.work
        if not work.samples:
            raise StateError(f"nothing was trained in epoch {work.epoch}: there is nothing to contribute")
        vector = (self._accumulated / float(work.samples)).cpu().numpy()
        return Contribution(vector, work.samples, work.records)

    def attempt(self) -> Attempt | None:
        """Error feedback of one attempt to send the contribution; None in a run without."""
        return None if self._feedback is None else self._feedback.attempt()

    def apply(self, average: Vector, attempt: Attempt | None = None) -> None:
        """End the epoch: the canonical update by `average` [P]. Accumulated work is cleared; its records stay readable.

        `attempt` is what our contribution to this average was sent by, and is settled with it.

        Raises:
            CorruptState: the average does not fit or is not finite; nothing was changed.
            AveragingError: the attempt is not the last one's; nothing was changed.
        """
        state = self._strategy.update(average, self._state)
        if self._feedback is not None and attempt is not None:
            self._feedback.commit(attempt)
        self._enter(state)

    def adopt(self, state: State) -> None:
        """Go on from a verified state that came from elsewhere, dropping what was accumulated at another one.

        What error feedback still owes of gradients at older states is dropped too.

        Raises:
            StateError: a state of another model or strategy; nothing was changed.
        """
        if state.layout != self.layout or set(state.optimizer) != set(self.vectors):
            raise StateError("the state belongs to another model or strategy")
        if state.hash != self.state_hash:
            self._enter(state)
            if self._feedback is not None:
                self._feedback.clear()

    def held_out_loss(self, batches: Iterable[MicroBatch]) -> float:
        """Nats per token at θₑ; raises DataError without any."""
        return self._replica.mean_loss(batches)

    def snapshot(self) -> Snapshot:
        """Everything that must survive a restart, as a value."""
        accumulated = self._accumulated.detach().to("cpu", copy=True).numpy()
        residual = None if self._feedback is None else self._feedback.residual
        return Snapshot(state=self._state, accumulated=accumulated, works=self._works, residual=residual)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, accumulated work included."""
        self._enter(snapshot.state)
        self._accumulated.copy_(torch.from_numpy(snapshot.accumulated.copy()))
        if self._feedback is not None and snapshot.residual is not None:
            self._feedback.load_state_dict({RESIDUAL: snapshot.residual})
        self._works = snapshot.works

    def save(self, folder: Path) -> None:
        """Write a checkpoint that replaces the one in `folder`; being killed half-way leaves a usable one."""
        save_checkpoint(folder, self.snapshot(), self.architecture, self._spec.run_id)

    def load(self, folder: Path) -> bool:
        """Resume from the checkpoint in `folder`; False if there is none.

        Raises:
            StateMismatch: it belongs to another run.
            CorruptState: it is damaged; nothing was changed.
        """
        owes = self._feedback is not None
        snapshot = load_checkpoint(folder, self.layout, self._spec.run_id, self.vectors, error_feedback=owes)
        if snapshot is None:
            return False
        self.restore(snapshot)
        return True

    def _enter(self, state: State) -> None:
        """Make `state` the base state, with nothing accumulated."""
        work = Work(epoch=state.epoch, state_hash=state.hash)
        chosen = coordinates(self._spec.run_id, state.epoch, self.layout, self._spec.audit.coordinates)
        self._replica.load(state.params)
        self._accumulated.zero_()
        self._coordinates = torch.from_numpy(chosen).to(self._accumulated.device)
        self._state = state
        earlier = [old for old in self._works if old.epoch < state.epoch]
        self._works = (*earlier[1 - _KEPT_EPOCHS :], work)


def make_record(batch: MicroBatch, loss: float, gradient: torch.Tensor, chosen: torch.Tensor) -> Record:
    """The record of a micro-batch: `gradient` [P] read at the indices `chosen` [C]."""
    values = tuple(gradient[chosen].tolist())
    return Record(number=batch.number, pages=batch.pages, samples=batch.samples, loss=loss, gradient=values)
