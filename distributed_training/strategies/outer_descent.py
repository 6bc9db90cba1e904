"""DiLoCo and its kin in the live subnet: miners make steps of their own, and what they moved is averaged.

Douillard et al. 2023, arXiv 2311.08105. A miner starts an epoch at θ, makes one inner step with each micro-batch, and
contributes θ - local, weighted by its samples; everybody takes the average for a gradient and applies SGD with
Nesterov's momentum to θ. The number of inner steps is that of the epoch's micro-batches. The inner optimiser's rate
follows the schedule of [optimizer] by epochs. How contributions travel, and error feedback, are the round's
([averaging]); strategies/diloco.py has the same with an explicit period for the simulator.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from distributed_training.model.layout import Layout, Vector
from distributed_training.model.state import State
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.adamw import BLOCK, global_norm, require_gradual_underflow
from distributed_training.strategies.checks import require_outer
from distributed_training.strategies.inner import Inner
from distributed_training.strategies.schedule import learning_rate
from template.errors import CorruptState

MOMENTUM = "outer_momentum"


@dataclass(frozen=True, kw_only=True)
class OuterDescent:
    """A `SharedUpdate`. With rate 1 and without momentum the next state is the mean of where the miners arrived.

    `feedback` is the share of what a codec lost that is sent later, in a run with error feedback.
    """

    optimizer: OptimizerSpec
    make_inner: Callable[[OptimizerSpec], Inner]
    learning_rate: float
    momentum: float
    feedback: float = 1.0

    allows_overlap = False

    def __post_init__(self) -> None:
        require_outer(self.learning_rate, self.momentum)
        self.inner(0)  # refuses impossible numbers

    @property
    def vectors(self) -> tuple[str, ...]:
        return (MOMENTUM,) if self.momentum else ()

    def inner(self, epoch: int) -> Inner:
        rate = learning_rate(self.optimizer, epoch)
        still = dataclasses.replace(
            self.optimizer, learning_rate=rate, minimum_learning_rate=rate, warmup_epochs=0, decay_epochs=1
        )
        return self.make_inner(still)

    def init(self, layout: Layout) -> Mapping[str, Vector]:
        return {name: np.zeros(layout.size, dtype=np.float32) for name in self.vectors}

    def update(self, average: Vector, state: State) -> State:
        state.layout.check(average)
        if not math.isfinite(global_norm(average)):
            raise CorruptState(f"the average of epoch {state.epoch} holds numbers that are not finite")
        require_gradual_underflow()
        params = np.empty_like(state.params)
        momentum = {name: np.empty_like(vector) for name, vector in state.optimizer.items()}
        for start in range(0, len(average), BLOCK):
            where = slice(start, start + BLOCK)
            step = average[where]
            if self.momentum:
                momentum[MOMENTUM][where], step = self._nesterov(state.optimizer[MOMENTUM][where], step)
            np.subtract(state.params[where], step * np.float32(self.learning_rate), out=params[where])
        return State(state.layout, state.epoch + 1, params, momentum)

    def _nesterov(self, momentum: Vector, gradient: Vector) -> tuple[Vector, Vector]:
        """The new momentum and the direction, as torch.optim.SGD(nesterov=True) has them; exactly rounded operations,
        one at a time, as in adamw.py."""
        decay = np.float32(self.momentum)
        momentum = momentum * decay + gradient
        return momentum, momentum * decay + gradient
