"""The seam that every strategy implements: explicit shared state and pure steps over it.

A strategy's state is the optimiser part of `State`: named vectors that every peer holds, bit for bit. What must be
the same everywhere is computed from the average, the old state and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from distributed_training.model.layout import Layout, Vector
from distributed_training.model.state import State


class Strategy(Protocol):
    """How an average becomes the next state."""

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the optimiser vectors, sorted; float32 [P] each."""

    @property
    def allows_overlap(self) -> bool:
        """Whether a contribution made at the state before may enter an average (`epoch.overlap` of the run spec)."""

    def init(self, layout: Layout) -> Mapping[str, Vector]:
        """The optimiser vectors of epoch 0."""

    def update(self, average: Vector, state: State) -> State:
        """The state of the next epoch: a pure function, the same bits on every machine.

        Raises:
            CorruptState: the average does not fit or is not finite.
        """
