"""Data parallel training: the mean of all gradients in every step, through one optimiser (Li et al. 2020, arXiv
2006.15704). All nodes stay alike; together they are one node with their batches put together. What the live subnet's
gradient averaging does (gradient_averaging.py), on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distributed_training.strategies.base import LocalState, Node
from distributed_training.strategies.inner import Inner
from distributed_training.strategies.message import Message, Received, plain

GRADIENT = "gradient"


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """DDP: 4 bytes a parameter and step."""

    inner: Inner

    def init(self, params: torch.Tensor, node: Node) -> LocalState:
        return LocalState(node, 0, params, self.inner.init(node.layout, params.device))

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        return state.advanced().having(**{GRADIENT: gradient})

    def send(self, state: LocalState) -> tuple[LocalState, Sequence[Message]]:
        return state, (plain(GRADIENT, state.vectors[GRADIENT]),)

    def receive(self, state: LocalState, received: Received) -> LocalState:
        return self.inner.update(state, received.values[0], state.step)
