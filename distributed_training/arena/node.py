"""The seam between the simulator and a node: who computes with a strategy, and where.

`LocalNode` does so in this process, for strategies that are trusted; `sandbox/node.py` in a process of its own, for a
stranger's. The simulator sees parameters and messages, and nothing else of either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from distributed_training.strategies.base import LocalState, Node, Strategy
from distributed_training.strategies.message import Message, Received
from template.errors import StrategyError


class SimulatedNode(Protocol):
    """One node between the steps of a run. Each step: `local`, `send`, then `receive` for each message that is due.

    Every method raises StrategyError if the strategy breaks its contract.
    """

    @property
    def params(self) -> torch.Tensor:
        """Its parameters, float32 [P] on the simulator's device; only to be read."""

    def local(self, gradient: torch.Tensor) -> None:
        """Step on with `gradient` [P], taken at `params`."""

    def send(self) -> Sequence[Message]:
        """What it sends after this step."""

    def receive(self, received: Received) -> None:
        """What came back of a message."""


Place = Callable[[torch.Tensor, Node], SimulatedNode]  # initial parameters [P], which the node may keep, and who it is


class LocalNode:
    """A node in this process."""

    def __init__(self, strategy: Strategy, params: torch.Tensor, node: Node) -> None:
        """Raises ConfigurationError for hyper-parameters that do not suit the model."""
        self._strategy = strategy
        self._state = strategy.init(params, node)
        self._step = 0

    @property
    def state(self) -> LocalState:
        """All that the strategy holds."""
        return self._state

    @property
    def params(self) -> torch.Tensor:
        return self._state.params

    def local(self, gradient: torch.Tensor) -> None:
        self._step += 1
        self._take(self._strategy.local(self._state, gradient))

    def send(self) -> Sequence[Message]:
        state, messages = self._strategy.send(self._state)
        self._take(state)
        return messages

    def receive(self, received: Received) -> None:
        self._take(self._strategy.receive(self._state, received))

    def _take(self, new: LocalState) -> None:
        """Go on with `new`, if it is a state of this node after this step."""
        old, params = self._state, new.params
        if new.node is not old.node or new.step != self._step:
            raise StrategyError(f"a state of step {new.step} of node {new.node.rank} where {self._step} was expected")
        if params.shape != old.params.shape or params.dtype != torch.float32 or params.device != old.params.device:
            raise StrategyError(f"parameters became {params.dtype} {list(params.shape)} on {params.device}")
        self._state = new


def in_process(strategy: Strategy) -> Place:
    """Nodes in this process, all with the one strategy."""
    return lambda params, node: LocalNode(strategy, params, node)
