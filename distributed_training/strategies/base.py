"""The seam that every strategy implements: explicit state and pure steps over it, as in optax.

    state = strategy.init(params, node)
    each step:   state = strategy.local(state, gradient)          the node's own work
                 state, messages = strategy.send(state)           what it wants to tell the others: a value
                 state = strategy.receive(state, received)        for each message that has come back, combined

A strategy never communicates: it returns messages (message.py), and whoever runs it, the simulator or a round of the
live subnet, moves and counts them. It holds hyper-parameters and nothing else; no step writes into what it was given.
shared.py has what the live subnet asks of a strategy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from distributed_training.model.layout import Layout
from distributed_training.strategies.message import Message, Received


@dataclass(frozen=True)
class Node:
    """Who computes: number `rank` of `nodes`. `seed` is the same for all of them: what is drawn from it is shared."""

    rank: int
    nodes: int
    seed: int
    layout: Layout


@dataclass(frozen=True, eq=False)
class LocalState:
    """All that a node holds of a strategy after `step` local steps.

    `params`: float32 [P] on the node's device, in canonical order. `vectors`: float32 of any length, by name.
    """

    node: Node
    step: int
    params: torch.Tensor
    vectors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def having(self, params: torch.Tensor | None = None, **vectors: torch.Tensor) -> LocalState:
        """The same, with other parameters or with these vectors."""
        params = self.params if params is None else params
        return dataclasses.replace(self, params=params, vectors={**self.vectors, **vectors})

    def advanced(self) -> LocalState:
        """One local step later."""
        return dataclasses.replace(self, step=self.step + 1)


class Strategy(Protocol):
    """How nodes train together."""

    def init(self, params: torch.Tensor, node: Node) -> LocalState:
        """The state before the first step. `params` [P] are the same for all nodes.

        Raises:
            ConfigurationError: the hyper-parameters do not suit this model.
        """

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        """What the node does with `gradient` [P], taken at `state.params`; `step` is one more."""

    def send(self, state: LocalState) -> tuple[LocalState, Sequence[Message]]:
        """What it sends after this step. All nodes send messages of the same operations, in the same order."""

    def receive(self, state: LocalState, received: Received) -> LocalState:
        """What it does with a message that was combined; called in the order of the messages."""
