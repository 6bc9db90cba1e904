"""The seam between a strategy and the live subnet: what all peers do alike to the bit, and what each miner does alone.

Shared is how an average becomes the next state; its state is the optimiser part of `State`, named vectors that every
peer holds. Alone each miner either adds up gradients, or makes steps of an inner optimiser, whose state is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from distributed_training.model.layout import Layout, Vector
from distributed_training.model.state import State
from distributed_training.strategies.inner import Inner


class SharedUpdate(Protocol):
    """How an average becomes the next state of the live subnet, computed from the average, the old state and the epoch
    alone."""

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the optimiser vectors, sorted; float32 [P] each."""

    @property
    def allows_overlap(self) -> bool:
        """Whether a contribution made at the state before may enter an average (`epoch.overlap` of the run spec)."""

    @property
    def feedback(self) -> float:
        """The share of what a lossy codec has made a miner owe that it keeps, if the run has error feedback."""

    def inner(self, epoch: int) -> Inner | None:
        """The optimiser that a miner makes its own steps with in `epoch`; None: it only adds up gradients."""

    def init(self, layout: Layout) -> Mapping[str, Vector]:
        """The optimiser vectors of epoch 0."""

    def update(self, average: Vector, state: State) -> State:
        """The state of the next epoch: a pure function, the same bits on every machine.

        Raises:
            CorruptState: the average does not fit or is not finite.
        """
