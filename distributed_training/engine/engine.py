"""The training state of one neuron: base state θₑ, the gradient accumulated in this epoch, and the records of how.

The gradients of epoch e are taken at θₑ. In a run with `epoch.overlap` they are taken at θₑ₋₁, so that training never
waits for a round: once the contribution of epoch e is set aside, epoch e+1 is begun at θₑ, which is there already, and
never more than that. θₑ₊₁ follows from θₑ and the average as always; only the gradients are one update old. Who has no
θₑ₋₁ (in epoch 0, and a neuron that took θₑ over from others) takes those of epoch e at θₑ itself: `Work.base_hash` says
at which. It costs a second sum of gradients, float32 [P] on the device, and the parameters of θₑ₋₁, float32 [P] in main
memory, until the contribution is set aside.

Not thread-safe: one thread calls the methods (`worker.py` runs it). The read-only properties, `next_state` and `write`
may be used from any thread, since what they read is immutable and replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distributed_training.averaging.feedback import RESIDUAL, Attempt, ErrorFeedback
from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.checkpoint import (
    Ahead,
    Base,
    Snapshot,
    kept_standing,
    load_checkpoint,
    save_checkpoint,
)
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.inner_steps import InnerSteps, own_vectors
from distributed_training.engine.local_work import GradientAccumulation, LocalWork
from distributed_training.engine.records import Work, mark_of
from distributed_training.engine.replica import Replica
from distributed_training.model.files import architecture
from distributed_training.model.layout import Layout, Vector, flatten
from distributed_training.model.state import State
from distributed_training.protocol import Mark, Record
from distributed_training.run import RunSpec
from distributed_training.strategies.registry import find_strategy
from template.clock import Clock, SystemClock
from template.errors import StateError

KEPT_EPOCHS = 4  # this one and some before: a validator's query may come after the end of an epoch


@dataclass(frozen=True, eq=False)
class Contribution:
    """What a miner puts into the average, a copy of its own, and what it can show for it.

    With gradients it is sum(n_k g_k) / sum(n_k) over the micro-batches, with inner steps what they have moved.
    """

    vector: Vector  # float32 [P]
    samples: int
    records: tuple[Record, ...]
    marks: tuple[Mark, ...] = ()


class Engine:
    """Trains micro-batches and applies averages.

    Starts at epoch 0 of the run, or wherever `adopt`, `restore` or `load` put it.
    """

    def __init__(
        self, spec: RunSpec, vocab_size: int, device: str | torch.device = "cpu", clock: Clock | None = None
    ) -> None:
        """Raises ConfigurationError for a model or strategy that cannot be built."""
        self._spec = spec
        self._clock = clock or SystemClock()
        self._strategy = find_strategy(spec)
        self._device = device
        self._replica = Replica(spec, vocab_size, device)
        layout = self._replica.layout
        self._local: LocalWork = self._new_local()
        self._spare: LocalWork | None = None  # of the next epoch; made when it is first needed
        self._feedback = ErrorFeedback(layout.size, self._strategy.feedback) if spec.averaging.error_feedback else None
        self._works: tuple[Work, ...] = ()  # the last one is of the epoch in progress
        self._ahead: Work | None = None  # of the next epoch, once this one's contribution is set aside
        self._standings: dict[str, State] = {}  # that marks name, by hash, until they are on disk
        self._committed: tuple[frozenset[str], ...] = ()  # what marks named in each of the last epochs, left or ended
        self._before: Base | None = None  # θₑ₋₁, as long as this epoch is trained at it
        self._enter(State(layout, 0, flatten(self._replica.module), self._strategy.init(layout)), None)

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
    def own_vectors(self) -> tuple[str, ...]:
        """Names of the vectors beside the parameters in what inner steps lead to; none where there are none."""
        inner = self._strategy.inner(0)
        return () if inner is None else own_vectors(inner, self.layout)

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
    def in_training(self) -> Work:
        """What `train` adds to: the work of this epoch or, after `go_ahead`, that of the next one."""
        ahead = self._ahead
        return self.work if ahead is None else ahead

    @property
    def samples_ahead(self) -> int:
        """Samples that were trained for the next epoch already."""
        ahead = self._ahead
        return ahead.samples if ahead is not None else 0

    @property
    def bases(self) -> Mapping[str, Vector]:
        """The parameters [P], by state hash, that this epoch may be trained at: θₑ and, if it is held, θₑ₋₁."""
        held = {self._state.hash: self._state.params}
        return held if self._before is None else {self._before.hash: self._before.params, **held}

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
        """One micro-batch of the work in training, and its record.

        Raises:
            StateError: this number was trained already, or the result is not finite; nothing was done.
            DataError: the batch does not fit the model; nothing was done.
        """
        work = self.in_training
        if any(record.number == batch.number for record in work.records):
            raise StateError(f"micro-batch {batch.number} was already trained in epoch {work.epoch}")
        if not work.marks:
            work = self._marked(work)
        started = self._clock.monotonic()
        record = self._filling.train(self._replica, batch)
        work = work.with_record(record, self._clock.monotonic() - started)
        self._replace(work if len(work.records) % self._stretch else self._marked(work))
        return record

    def go_ahead(self) -> bool:
        """Add nothing more to this epoch and train for the next one, at θₑ. Returns whether that is new.

        Never so in a run without overlap, where the next epoch's gradients are taken at a state that is not there yet.
        """
        if not self._spec.epoch.overlap or self._ahead is not None:
            return False
        if self._spare is None:
            self._spare = self._new_local()
        self._spare.begin(self.epoch + 1, self._state.params)
        self._before = None
        self._spare.enter(self._replica)
        # the state that the average of the next epoch will be applied to is not known yet: `_enter` fills it in
        self._ahead = Work(epoch=self.epoch + 1, state_hash=self.state_hash, base_hash=self.state_hash)
        return True

    def contribution(self) -> Contribution:
        """What this epoch's work has come to so far, and with inner steps a mark of it; it goes on until `apply`.

        Raises:
            StateError: nothing was trained yet, so there is no mean.
        """
        work = self.work
        if not work.samples:
            raise StateError(f"nothing was trained in epoch {work.epoch}: there is nothing to contribute")
        if work.marks and work.marks[-1].after != len(work.records):
            work = self._marked(work)
            self._works = (*self._works[:-1], work)
        return Contribution(self._local.contribution(work.samples), work.samples, work.records, work.marks)

    def set_aside(self) -> Contribution:
        """The contribution and, in a run with overlap, go on with the next epoch at once.

        The contribution is the same from then on, however many attempts it takes to average it.

        Raises:
            StateError: nothing was trained yet; then nothing is set aside either.
        """
        contribution = self.contribution()
        self.go_ahead()
        return contribution

    def attempt(self) -> Attempt | None:
        """Error feedback of one attempt to send the contribution; None in a run without."""
        return None if self._feedback is None else self._feedback.attempt()

    def next_state(self, average: Vector) -> State:
        """θₑ₊₁, the canonical update of θₑ by `average` [P]; changes nothing. Any thread may compute it.

        Raises:
            CorruptState: the average does not fit or is not finite.
        """
        state = self._strategy.update(average, self._state)
        _ = state.hash  # computed here, not where training waits for it
        return state

    def advance(self, state: State, attempt: Attempt | None = None) -> None:
        """End the epoch with `state`, its `next_state`. Accumulated work is cleared; its records stay readable.

        `attempt` is what our contribution to the average was sent by, and is settled with it.

        Raises:
            StateError: it is not a state of the next epoch; nothing was changed.
            AveragingError: the attempt is not the last one's; nothing was changed.
        """
        if state.epoch != self.epoch + 1:
            raise StateError(f"a state of epoch {state.epoch} does not follow on epoch {self.epoch}")
        if self._feedback is not None and attempt is not None:
            self._feedback.commit(attempt)
        before = Base(self._state.hash, self._state.params) if self._spec.epoch.overlap else None
        self._enter(state, before)

    def apply(self, average: Vector, attempt: Attempt | None = None) -> None:
        """End the epoch with `average` [P], sent by `attempt`.

        Raises:
            CorruptState, AveragingError: as `next_state` and `advance` do; nothing was changed.
        """
        self.advance(self.next_state(average), attempt)

    def adopt(self, state: State) -> None:
        """Go on from a verified state that came from elsewhere, dropping what was accumulated at another one.

        What error feedback still owes of gradients at older states is dropped too.

        Raises:
            StateError: a state of another model or strategy; nothing was changed.
        """
        if state.layout != self.layout or set(state.optimizer) != set(self.vectors):
            raise StateError("the state belongs to another model or strategy")
        if state.hash != self.state_hash:
            self._ahead = None
            self._local.forget()
            self._enter(state, None)
            if self._feedback is not None:
                self._feedback.clear()

    def held_out_loss(self, batches: Iterable[MicroBatch]) -> float:
        """Nats per token at θₑ; raises DataError without any."""
        self._replica.load(self._state.params)
        try:
            return self._replica.mean_loss(batches)
        finally:
            self._filling.enter(self._replica)

    def snapshot(self) -> Snapshot:
        """Everything that must survive a restart, as a value."""
        return Snapshot(
            state=self._state,
            progress=self._local.progress(),
            works=self._works,
            residual=None if self._feedback is None else self._feedback.residual,
            before=self._before,
            ahead=self._snapshot_ahead(),
            standings=tuple(self._standings.values()),
            marked=self._marked_states,
        )

    def kept_elsewhere(self, standings: Iterable[State]) -> None:
        """Let go of states that marks name and that are on disk now."""
        for standing in standings:
            self._standings.pop(standing.hash, None)

    @property
    def _marked_states(self) -> frozenset[str]:
        return _states_of(*self._works).union(*self._committed)

    def _snapshot_ahead(self) -> Ahead | None:
        progress = self._filling.progress()
        return None if self._ahead is None or progress is None else Ahead(self._ahead, progress)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, accumulated work included."""
        self._ahead = None
        self._local.forget()
        self._enter(snapshot.state, snapshot.before)
        if snapshot.progress is not None:
            self._local.load(snapshot.progress)
            self._local.enter(self._replica)
        if self._feedback is not None and snapshot.residual is not None:
            self._feedback.load_state_dict({RESIDUAL: snapshot.residual})
        self._works, self._committed = snapshot.works, ()
        self._standings = {standing.hash: standing for standing in snapshot.standings}
        if snapshot.ahead is not None:
            self.go_ahead()
            self._filling.load(snapshot.ahead.progress)
            self._ahead = snapshot.ahead.work

    def save(self, folder: Path) -> None:
        """Write a checkpoint that replaces the one in `folder`; being killed half-way leaves a usable one."""
        self.write(folder, self.snapshot())

    def write(self, folder: Path, snapshot: Snapshot) -> None:
        """The same for a snapshot taken before. Any thread may do it, one at a time."""
        save_checkpoint(folder, snapshot, self.architecture, self._spec.run_id)

    def load(self, folder: Path) -> bool:
        """Resume from the checkpoint in `folder`; False if there is none.

        Raises:
            StateMismatch: it belongs to another run.
            CorruptState: it is damaged; nothing was changed.
        """
        owes = self._feedback is not None
        snapshot = load_checkpoint(
            folder, self.layout, self._spec.run_id, self.vectors, self._local.vectors, error_feedback=owes
        )
        if snapshot is None:
            return False
        self.restore(snapshot)
        return True

    def kept_standing(self, folder: Path, state_hash: str) -> State | None:
        """A state that marks name, from the checkpoint in `folder`; raises as `read_state` does. Any thread may ask."""
        return kept_standing(folder, self.layout, self._spec.run_id, self.own_vectors, state_hash)

    @property
    def _filling(self) -> LocalWork:
        """What `train` trains."""
        if self._ahead is None:
            return self._local
        assert self._spare is not None, "made when it went ahead"
        return self._spare

    def _new_local(self) -> LocalWork:
        if self._strategy.inner(0) is None:
            return GradientAccumulation(self._spec, self.layout, self._device)
        return InnerSteps(self._spec, self.layout, self._device, self._strategy)

    @property
    def _stretch(self) -> int:
        """Micro-batches between two marks, where there are any."""
        replay = self._spec.audit.replay
        return 1 if replay is None else replay.stretch

    def _marked(self, work: Work) -> Work:
        """The work with a mark of where inner steps have led to; as it is where there are none."""
        standing = self._filling.standing()
        if standing is None:
            return work
        chosen = coordinates(self._spec.run_id, work.epoch, self.layout, self._spec.audit.coordinates)
        self._standings[standing.hash] = standing
        return work.with_mark(mark_of(standing, len(work.records), self._training_params, chosen), self._stretch)

    @property
    def _training_params(self) -> Vector:
        """The parameters [P] that the epoch is trained from."""
        return self._state.params if self._before is None else self._before.params

    def _replace(self, work: Work) -> None:
        """Let `work` be the one in training."""
        if self._ahead is None:
            self._works = (*self._works[:-1], work)
        else:
            self._ahead = work

    def _enter(self, state: State, before: Base | None) -> None:
        """Make `state` the base state. What was trained ahead becomes the work of this epoch; else there is none.

        `before`: the state before it, if this epoch is to be trained at that.
        """
        if self._works and self._works[-1].marks:  # who goes back an epoch and on again may still be asked for them
            self._committed = (*self._committed, _states_of(self._works[-1]))[1 - KEPT_EPOCHS :]
        ahead, trained = self._ahead, self._filling
        self._ahead, self._before, self._state = None, before, state
        if ahead is None:
            self._local.begin(state.epoch, self._training_params)
            work = Work(epoch=state.epoch, state_hash=state.hash, base_hash=before.hash if before else state.hash)
        else:
            self._local, self._spare = trained, self._local
            work = ahead.model_copy(update={"state_hash": state.hash})
        self._local.enter(self._replica)
        earlier = [old for old in self._works if old.epoch < state.epoch]
        self._works = (*earlier[1 - KEPT_EPOCHS :], work)
        kept = self._marked_states
        self._standings = {key: standing for key, standing in self._standings.items() if key in kept}


def _states_of(*works: Work) -> frozenset[str]:
    """The hashes of the states that the marks in these works name."""
    return frozenset(mark.state for work in works for mark in work.marks)
