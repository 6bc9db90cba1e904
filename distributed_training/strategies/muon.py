"""Muon for the hidden matrices, AdamW for everything else: embeddings, output head, biases and norms.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): Nesterov momentum, made orthogonal by five Newton-Schulz
steps. Updates are scaled by 0.2 sqrt(max(rows, columns)), so that they are as large as AdamW's and one learning rate
serves both (Liu et al. 2025, arXiv 2502.16982). Matrices are taken as stored: GPT-2's query, key and value are one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from distributed_training.model.layout import Layout
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import LocalState
from distributed_training.strategies.inner import FIRST, SECOND, adamw, checked, clipped
from distributed_training.strategies.parts import decaying, hidden_matrices, other_than_hidden_matrices
from distributed_training.strategies.schedule import learning_rate
from template.errors import ConfigurationError

MOMENTUM = "muon_momentum"
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
_SMALLEST = 1e-7  # norm
_SCALE = 0.2


class Muon:
    """An `Inner` optimiser. `momentum` is Muon's; the spec's betas are AdamW's."""

    def __init__(self, spec: OptimizerSpec, momentum: float = 0.95) -> None:
        if not 0 <= momentum < 1:
            raise ConfigurationError(f"Muon's momentum must lie in [0, 1); found {momentum}")
        self.spec = checked(spec)
        self._momentum = momentum

    def init(self, layout: Layout, device: torch.device) -> Mapping[str, torch.Tensor]:
        if not hidden_matrices(layout):
            raise ConfigurationError("this model has no hidden matrices for Muon; use a strategy with AdamW")
        rest = other_than_hidden_matrices(layout).size
        hidden = torch.zeros(layout.size - rest, device=device)
        return {FIRST: torch.zeros(rest, device=device), SECOND: torch.zeros(rest, device=device), MOMENTUM: hidden}

    def update(self, state: LocalState, gradient: torch.Tensor, number: int) -> LocalState:
        layout, gradient = state.node.layout, clipped(gradient, self.spec)
        rest, mask = other_than_hidden_matrices(layout), decaying(layout, state.params.device)
        moments = state.vectors[FIRST], state.vectors[SECOND]
        values, first, second = adamw(
            rest.take(state.params), moments, rest.take(gradient), rest.take(mask), self.spec, number
        )
        params = rest.put(state.params, values)
        momentum = self._move(params, gradient, state, learning_rate(self.spec, number - 1))
        return state.having(params, **{FIRST: first, SECOND: second, MOMENTUM: momentum})

    def _move(self, params: torch.Tensor, gradient: torch.Tensor, state: LocalState, rate: float) -> torch.Tensor:
        """Update the hidden matrices in `params` [P], which is ours; the new momentum."""
        momentum, start = state.vectors[MOMENTUM] * self._momentum, 0
        for tensor in hidden_matrices(state.node.layout):
            part, here = momentum[start : start + tensor.size], gradient[tensor.slice]
            part += here
            update = orthogonal((here + part * self._momentum).view(tensor.shape))
            matrix = params[tensor.slice].view(tensor.shape)
            matrix *= 1.0 - rate * self.spec.weight_decay
            matrix -= update * (rate * _SCALE * math.sqrt(max(tensor.shape)))
            start += tensor.size
        return momentum


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly U V^T of `matrix` [rows, columns] = U S V^T: singular values become about 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (torch.linalg.matrix_norm(x) + _SMALLEST)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.T if tall else x
    return result
