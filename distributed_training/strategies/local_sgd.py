"""Training apart, and FedAvg / local SGD: now and then the parameters are averaged.

FedAvg: McMahan et al. 2017, arXiv 1602.05629; local SGD: Stich 2019, arXiv 1805.09767. Nodes take the same number of
samples, so that the mean is the weighted one. Moments of the inner optimiser stay with the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distributed_training.strategies.base import LocalState, Node
from distributed_training.strategies.checks import require_period
from distributed_training.strategies.inner import Inner
from distributed_training.strategies.message import Message, Received, plain

PARAMETERS = "parameters"


@dataclass(frozen=True, kw_only=True)
class Apart:
    """Nodes train alone and tell each other nothing: what every other strategy must beat."""

    inner: Inner

    def init(self, params: torch.Tensor, node: Node) -> LocalState:
        return LocalState(node, 0, params, self.inner.init(node.layout, params.device))

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        return self.inner.update(state, gradient, state.step + 1).advanced()

    def send(self, state: LocalState) -> tuple[LocalState, Sequence[Message]]:
        return state, ()

    def receive(self, state: LocalState, received: Received) -> LocalState:
        raise AssertionError(f"'{received.operation}' was never sent")


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """The mean of all parameters every `period` steps: 4P bytes a time."""

    inner: Inner
    period: int = 1

    def __post_init__(self) -> None:
        require_period(self.period)

    def init(self, params: torch.Tensor, node: Node) -> LocalState:
        return LocalState(node, 0, params, self.inner.init(node.layout, params.device))

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        return self.inner.update(state, gradient, state.step + 1).advanced()

    def send(self, state: LocalState) -> tuple[LocalState, Sequence[Message]]:
        return state, () if state.step % self.period else (plain(PARAMETERS, state.params),)

    def receive(self, state: LocalState, received: Received) -> LocalState:
        return state.having(received.values[0])
