"""Local work that makes a step of an inner optimiser with each micro-batch: for strategies of the DiLoCo family.

A miner starts an epoch at the base state's parameters and contributes base - local, which is what its steps have moved.
The inner optimiser's vectors (moments) and its count of steps are the miner's own: they go on from epoch to epoch, are
in its checkpoint, and in no state hash. A miner that takes a state over from others begins with empty ones.

`step` and the way into a `State` and back are used by miners and by those who replay them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.local_work import Progress, make_record
from distributed_training.engine.replica import Replica
from distributed_training.model.layout import Layout, Vector
from distributed_training.model.state import State
from distributed_training.protocol import Record
from distributed_training.run import RunSpec
from distributed_training.strategies.base import LocalState, Node
from distributed_training.strategies.inner import Inner
from distributed_training.strategies.shared import SharedUpdate
from template.errors import StateError

LOCAL = "local"
OWN = "own_"  # before the names of the inner optimiser's vectors in a checkpoint


def inner_of(strategy: SharedUpdate, epoch: int) -> Inner:
    """The optimiser of the steps in `epoch`, of a strategy that has one."""
    inner = strategy.inner(epoch)
    assert inner is not None, "asked only where there are inner steps"
    return inner


def own_vectors(inner: Inner, layout: Layout) -> tuple[str, ...]:
    """Names of an inner optimiser's vectors, sorted."""
    return tuple(sorted(inner.init(layout, torch.device("meta"))))


def step(
    model: Replica, inner: Inner, state: LocalState, batch: MicroBatch, chosen: torch.Tensor
) -> tuple[Record, LocalState]:
    """One inner step from `state`, whose parameters the model holds; the record shows the gradient at `chosen` [C].

    Raises:
        DataError, StateError: as `Replica.gradient` does; the step leads to numbers that are not finite.
    """
    loss, gradient = model.gradient(batch)
    record = make_record(batch, loss, gradient, chosen)
    after = inner.update(state, gradient, state.step + 1).advanced()
    if not bool(torch.isfinite(after.params).all()):
        raise StateError(f"micro-batch {batch.number}: the inner step leads to parameters that are not finite")
    return record, after


class Standing:
    """How a `LocalState` becomes a `State` that can be hashed, sent and kept, and back.

    The state's epoch is the count of steps; vectors shorter than P are filled up with zeros.
    """

    def __init__(self, inner: Inner, layout: Layout, device: torch.device) -> None:
        self._layout = layout
        self._device = device
        self._node = Node(rank=0, nodes=1, seed=0, layout=layout)
        self._sizes = {name: vector.numel() for name, vector in inner.init(layout, device).items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inner optimiser's vectors, sorted."""
        return tuple(sorted(self._sizes))

    def empty(self, params: Vector) -> LocalState:
        """No steps made, at `params` [P]."""
        zeros = {name: torch.zeros(size, device=self._device) for name, size in self._sizes.items()}
        return LocalState(self._node, 0, self._tensor(params), zeros)

    def of(self, state: State) -> LocalState:
        """The local state that `state` was made of."""
        vectors = {name: self._tensor(state.optimizer[name][:size]) for name, size in self._sizes.items()}
        return LocalState(self._node, state.epoch, self._tensor(state.params), vectors)

    def state(self, local: LocalState) -> State:
        """A copy of a local state."""
        return State(self._layout, local.step, _array(local.params), self.padded(local))

    def padded(self, local: LocalState) -> dict[str, Vector]:
        """The inner optimiser's vectors, float32 [P] each."""
        padded = {}
        for name in self._sizes:
            padded[name] = np.zeros(self._layout.size, dtype=np.float32)
            padded[name][: self._sizes[name]] = _array(local.vectors[name])
        return padded

    def _tensor(self, vector: Vector) -> torch.Tensor:
        return torch.from_numpy(vector.copy()).to(self._device)


class InnerSteps:
    """A `LocalWork` with the inner optimiser of a strategy."""

    def __init__(self, spec: RunSpec, layout: Layout, device: str | torch.device, strategy: SharedUpdate) -> None:
        self._spec = spec
        self._layout = layout
        self._strategy = strategy
        self._inner = inner_of(strategy, 0)
        self._standing = Standing(self._inner, layout, torch.device(device))
        self._state: LocalState | None = None  # made with the first step: who only watches needs none
        self._moments: LocalState | None = None  # that the epoch before left
        self._base: Vector
        self._coordinates = torch.zeros(0, dtype=torch.int64)

    @property
    def vectors(self) -> tuple[str, ...]:
        return (LOCAL, *(OWN + name for name in self._standing.names))

    def begin(self, epoch: int, base: Vector) -> None:
        chosen = coordinates(self._spec.run_id, epoch, self._layout, self._spec.audit.coordinates)
        self._coordinates = torch.from_numpy(chosen)
        self._base = base
        self._inner = inner_of(self._strategy, epoch)
        self._moments, self._state = self._state or self._moments, None

    def enter(self, model: Replica) -> None:
        if self._state is None:
            model.load(self._base)
        else:
            model.place(self._state.params)

    def train(self, model: Replica, batch: MicroBatch) -> Record:
        before = self._local()
        record, self._state = step(model, self._inner, before, batch, self._coordinates.to(before.params.device))
        model.place(self._state.params)
        return record

    def contribution(self, samples: int) -> Vector:
        return np.subtract(self._base, _array(self._local().params))

    def standing(self) -> State:
        """Where the steps have led to, with the inner optimiser's vectors."""
        return self._standing.state(self._local())

    def progress(self) -> Progress | None:
        if self._state is None and self._moments is None:
            return None
        local = self._local()
        own: Mapping[str, Vector] = {OWN + name: vector for name, vector in self._standing.padded(local).items()}
        return Progress({LOCAL: _array(local.params), **own}, local.step)

    def load(self, progress: Progress) -> None:
        own = {name: progress.vectors[OWN + name] for name in self._standing.names}
        self._state = self._standing.of(State(self._layout, progress.steps, progress.vectors[LOCAL], own))

    def forget(self) -> None:
        self._state = self._moments = None

    def _local(self) -> LocalState:
        """Where the work stands; before the first step at the base, with the moments that the epoch before left."""
        if self._state is not None:
            return self._state
        fresh = self._standing.empty(self._base)
        return fresh if self._moments is None else self._moments.having(fresh.params)


def _array(tensor: torch.Tensor) -> Vector:
    return tensor.detach().to("cpu", copy=True).numpy()
