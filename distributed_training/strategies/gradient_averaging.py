"""The base mode: the average of all gradients at θₑ, clipped by its global norm, through AdamW.

Weight decay applies to every parameter of two or more dimensions, embeddings included (in GPT-2 the token embedding is
the output head as well); biases and norms are 1-D and do not decay.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from distributed_training.model.layout import Layout, Vector
from distributed_training.model.state import State
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.adamw import Buffers, Step, adamw, global_norm, require_gradual_underflow
from distributed_training.strategies.schedule import learning_rate
from template.errors import ConfigurationError, CorruptState

FIRST, SECOND = "first_moment", "second_moment"
_CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


class GradientAveraging:
    """Clip, AdamW and schedule as functions of the epoch alone."""

    vectors: tuple[str, ...] = (FIRST, SECOND)
    allows_overlap: bool = True
    feedback: float = 1.0

    def __init__(self, spec: OptimizerSpec) -> None:
        """Raises ConfigurationError for a hyperparameter that is not finite, or a negative weight decay."""
        for field in dataclasses.fields(spec):
            if not math.isfinite(getattr(spec, field.name)):
                raise ConfigurationError(f"optimizer.{field.name} must be finite")
        if spec.weight_decay < 0:
            raise ConfigurationError("optimizer.weight_decay must not be negative")
        self._spec = spec

    def inner(self, epoch: int) -> None:
        return None

    def init(self, layout: Layout) -> Mapping[str, Vector]:
        return {name: np.zeros(layout.size, dtype=np.float32) for name in self.vectors}

    def update(self, average: Vector, state: State) -> State:
        state.layout.check(average)
        norm = global_norm(average)
        if not math.isfinite(norm):
            raise CorruptState(f"the average of epoch {state.epoch} holds numbers that are not finite")
        require_gradual_underflow()
        old = Buffers(state.params, state.optimizer[FIRST], state.optimizer[SECOND])
        new = Buffers(*(np.empty(state.layout.size, dtype=np.float32) for _ in range(3)))
        step = self._step(state.epoch, norm)
        still = dataclasses.replace(step, weight_decay=0.0)
        for tensor in state.layout.tensors:
            where = tensor.slice
            adamw(old.part(where), average[where], step if len(tensor.shape) > 1 else still, new.part(where))
        return State(state.layout, state.epoch + 1, new.params, {FIRST: new.first, SECOND: new.second})

    def _step(self, epoch: int, norm: float) -> Step:
        spec = self._spec
        return Step(
            scale=min(1.0, spec.clip_norm / (norm + _CLIP_EPSILON)),
            learning_rate=learning_rate(spec, epoch),
            beta1=spec.beta1,
            beta2=spec.beta2,
            epsilon=spec.epsilon,
            weight_decay=spec.weight_decay,
            number=epoch + 1,
        )
