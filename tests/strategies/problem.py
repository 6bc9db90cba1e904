"""What strategies are tried on: a small model's layout, gradients of a noisy bowl per node, and nodes in plain PyTorch.

Nothing here is made of the strategies' own parts: `Worker` is torch.optim.AdamW, torch's clipping and a cosine written
by hand, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from distributed_training.arena.ledger import Entry, exchange
from distributed_training.model.layout import Layout, Tensor
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import LocalState, Node, Strategy
from distributed_training.strategies.message import Received

CPU = torch.device("cpu")
SHAPES = {
    "transformer.h.0.attn.c_attn.bias": (48,),
    "transformer.h.0.attn.c_attn.weight": (16, 48),
    "transformer.h.0.mlp.c_proj.weight": (64, 16),
    "transformer.h.1.attn.c_attn.bias": (48,),
    "transformer.h.1.attn.c_attn.weight": (16, 48),
    "transformer.h.1.mlp.c_proj.weight": (64, 16),
    "transformer.h.2.attn.c_attn.weight": (16, 48),
    "transformer.ln_f.weight": (16,),
    "transformer.wpe.weight": (12, 16),
    "transformer.wte.weight": (40, 16),
}


def layout_of(shapes: dict[str, tuple[int, ...]]) -> Layout:
    tensors, offset = [], 0
    for name, shape in shapes.items():
        tensors.append(Tensor(name, shape, offset))
        offset += math.prod(shape)
    return Layout(tuple(tensors))


LAYOUT = layout_of(SHAPES)
P = LAYOUT.size  # more than one chunk of a sparse codec
SPEC = OptimizerSpec(
    learning_rate=0.02,
    minimum_learning_rate=0.002,
    warmup_epochs=2,
    decay_epochs=30,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.3,
    clip_norm=5.0,
)


def initial() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(7).standard_normal(P).astype(np.float32))


def gradient(node: int, step: int, params: np.ndarray) -> np.ndarray:
    """Of a bowl around the node's own target, with noise; float32 [P]. `step` counts from 0."""
    target = np.random.default_rng([1, node]).standard_normal(P)
    noise = np.random.default_rng([2, node, step]).standard_normal(P)
    return (0.1 * (params - target) + 0.05 * noise).astype(np.float32)


def begin(strategy: Strategy, nodes: int, layout: Layout = LAYOUT) -> list[LocalState]:
    return [strategy.init(initial()[: layout.size], Node(rank, nodes, 5, layout)) for rank in range(nodes)]


def play(strategy: Strategy, nodes: int, steps: int) -> tuple[list[LocalState], list[Entry]]:
    """All nodes' states after `steps`, and what they moved."""
    states, entries = begin(strategy, nodes), []
    due: list[tuple[int, Received]] = []
    for step in range(1, steps + 1):
        for rank, state in enumerate(states):
            states[rank] = strategy.local(
                state, torch.from_numpy(gradient(rank, step - 1, state.params.double().numpy()))
            )
        states, outgoing = map(list, zip(*map(strategy.send, states), strict=True))
        moved, results = exchange(step, outgoing, CPU)
        entries.extend(moved)
        due.extend(results)
        for received in [r for when, r in due if when == step]:
            states = [strategy.receive(state, received) for state in states]
    return states, entries


class Worker:
    """A node in plain PyTorch."""

    def __init__(self, node: int) -> None:
        self.node, self.number = node, 0
        pieces = initial().double().split([t.size for t in LAYOUT.tensors])
        self.parameters = [
            torch.nn.Parameter(piece.reshape(t.shape).clone()) for piece, t in zip(pieces, LAYOUT.tensors, strict=True)
        ]
        groups = [
            {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": SPEC.weight_decay},
            {"params": [p for p in self.parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(SPEC.beta1, SPEC.beta2), eps=SPEC.epsilon)

    @property
    def vector(self) -> torch.Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def take_over(self, vector: torch.Tensor) -> None:
        with torch.no_grad():
            for parameter, piece in zip(self.parameters, self.pieces(vector), strict=True):
                parameter.copy_(piece)

    def pieces(self, vector: torch.Tensor) -> list[torch.Tensor]:
        parts = vector.split([t.size for t in LAYOUT.tensors])
        return [part.reshape(t.shape) for part, t in zip(parts, LAYOUT.tensors, strict=True)]

    def gradient(self) -> torch.Tensor:
        return torch.from_numpy(gradient(self.node, self.number, self.vector.numpy())).double()

    def apply(self, gradient: torch.Tensor) -> None:
        for parameter, piece in zip(self.parameters, self.pieces(gradient), strict=True):
            parameter.grad = piece.clone()
        torch.nn.utils.clip_grad_norm_(self.parameters, SPEC.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.number)
        self.optimizer.step()
        self.number += 1

    def train(self) -> None:
        self.apply(self.gradient())


def rate(step: int) -> float:
    """The schedule of SPEC; `step` counts from 0."""
    if step < 2:
        return 0.02 * (step + 1) / 3
    return 0.002 + 0.018 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - 2) / 28)))


def close(
    states: Sequence[LocalState], expected: Sequence[torch.Tensor], tolerance: float = 2e-6, flips: int = 0
) -> None:
    """Every node's parameters are the expected ones [P], but for rounding.

    `flips`: how many may be further away, because a value lay within a rounding of where a codec decides.
    """
    assert len(states) == len(expected)
    for state, vector in zip(states, expected, strict=True):
        assert int(((state.params.double() - vector).abs() >= tolerance).sum()) <= flips
