"""Inner optimisers: what a node does with a gradient of its own, on any device.

Clipping by the global norm, schedule and decoupled weight decay are those of the live subnet's update
(gradient_averaging.py), which does the same in arithmetic of the same bits everywhere. AdamW: Loshchilov & Hutter 2019
(arXiv 1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch

from distributed_training.model.layout import Layout
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import LocalState
from distributed_training.strategies.parts import decaying
from distributed_training.strategies.schedule import learning_rate
from template.errors import ConfigurationError

FIRST, SECOND = "first_moment", "second_moment"
_CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


class Inner(Protocol):
    """An optimiser as a pure function."""

    @property
    def spec(self) -> OptimizerSpec:
        """Its hyper-parameters."""

    def init(self, layout: Layout, device: torch.device) -> Mapping[str, torch.Tensor]:
        """Its vectors before the first update."""

    def update(self, state: LocalState, gradient: torch.Tensor, number: int) -> LocalState:
        """Parameters and vectors after update `number` (1 for the first one); `step` stays."""


class AdamW:
    """Clip, AdamW, schedule."""

    def __init__(self, spec: OptimizerSpec) -> None:
        self.spec = checked(spec)

    def init(self, layout: Layout, device: torch.device) -> Mapping[str, torch.Tensor]:
        return {name: torch.zeros(layout.size, device=device) for name in (FIRST, SECOND)}

    def update(self, state: LocalState, gradient: torch.Tensor, number: int) -> LocalState:
        mask = decaying(state.node.layout, state.params.device)
        moments = state.vectors[FIRST], state.vectors[SECOND]
        params, first, second = adamw(state.params, moments, clipped(gradient, self.spec), mask, self.spec, number)
        return state.having(params, **{FIRST: first, SECOND: second})


def checked(spec: OptimizerSpec) -> OptimizerSpec:
    """The spec, unless a number of it is not one.

    Raises:
        ConfigurationError: not finite, or a negative weight decay.
    """
    numbers = (spec.learning_rate, spec.epsilon, spec.weight_decay, spec.clip_norm)
    if not all(map(math.isfinite, numbers)) or spec.weight_decay < 0:
        raise ConfigurationError(
            "optimizer: learning_rate, epsilon, weight_decay and clip_norm must be finite numbers, weight_decay not "
            f"negative; found {spec}"
        )
    return spec


def clipped(gradient: torch.Tensor, spec: OptimizerSpec) -> torch.Tensor:
    """`gradient` [P], scaled down to a norm of at most `clip_norm`; a new tensor."""
    norm = torch.linalg.vector_norm(gradient)
    return gradient * torch.clamp(spec.clip_norm / (norm + _CLIP_EPSILON), max=1.0)


def adamw(
    params: torch.Tensor,
    moments: tuple[torch.Tensor, torch.Tensor],
    gradient: torch.Tensor,
    mask: torch.Tensor,
    spec: OptimizerSpec,
    number: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Parameters and both moments after update `number`, new tensors [n]; where `mask` is 1, weights decay."""
    rate = learning_rate(spec, number - 1)
    first = torch.lerp(moments[0], gradient, 1.0 - spec.beta1)
    second = (moments[1] * spec.beta2).addcmul_(gradient, gradient, value=1.0 - spec.beta2)
    root = second.sqrt().div_(math.sqrt(1.0 - spec.beta2**number)).add_(spec.epsilon)
    decayed = torch.addcmul(params, params, mask, value=-rate * spec.weight_decay)
    return decayed.addcdiv_(first, root, value=-rate / (1.0 - spec.beta1**number)), first, second
