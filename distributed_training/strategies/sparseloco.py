"""SparseLoCo: of each outer gradient only the largest values of every 4,096, in 2 bits, with error feedback.

Sarfi et al. 2025, arXiv 2508.15706: the residual takes the place of the outer momentum, decays by 0.95, and the mean
of the sparse outer gradients is subtracted as it is: no outer momentum, no outer weight decay. Here chunks are of the
parameter vector in canonical order, the indices have 12 bits, and the 2-bit levels are those of 512 chosen values:
(12 + 2) bits for every 32nd value, .0547 bytes a parameter, and 4 bytes for each 512 chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distributed_training.strategies.base import LocalState, Node
from distributed_training.strategies.checks import require_codec, require_outer, require_period
from distributed_training.strategies.inner import Inner
from distributed_training.strategies.message import Message, Received
from distributed_training.strategies.outer import RESIDUAL, outer_message

ANCHOR = "anchor"


@dataclass(frozen=True, kw_only=True)
class SparseLoCo:
    """At most .055 P bytes every `period` steps."""

    inner: Inner
    period: int = 15
    outer_learning_rate: float = 1.0
    codec: str = "topk32-int2-block512"
    feedback: float = 0.95

    def __post_init__(self) -> None:
        require_period(self.period)
        require_outer(self.outer_learning_rate, 0.0)
        require_codec(self.codec, self.feedback, sparse=True)

    def init(self, params: torch.Tensor, node: Node) -> LocalState:
        vectors = {ANCHOR: params, RESIDUAL: torch.zeros_like(params)}
        return LocalState(node, 0, params, {**self.inner.init(node.layout, params.device), **vectors})

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        return self.inner.update(state, gradient, state.step + 1).advanced()

    def send(self, state: LocalState) -> tuple[LocalState, Sequence[Message]]:
        if state.step % self.period:
            return state, ()
        state, message = outer_message(state, state.vectors[ANCHOR] - state.params, self.codec, self.feedback)
        return state, (message,)

    def receive(self, state: LocalState, received: Received) -> LocalState:
        anchor = state.vectors[ANCHOR] - received.mean() * self.outer_learning_rate
        return state.having(anchor, **{ANCHOR: anchor})
