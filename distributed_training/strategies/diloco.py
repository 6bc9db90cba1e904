"""DiLoCo: H inner steps apart, then an outer optimiser on the mean of how far everybody came.

DiLoCo: Douillard et al. 2023, arXiv 2311.08105: inner AdamW, outer SGD with Nesterov momentum 0.9. MuLoCo is the same
with Muon as the inner optimiser, and shows that 2 bits with error feedback lose nearly nothing: Thérien et al. 2025,
arXiv 2505.23725. The outer gradient is (parameters at the last exchange) - (parameters now); a lossy codec's payloads
are gathered, and everybody averages what it decodes. Moments of the inner optimiser stay with the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distributed_training.strategies.base import LocalState, Node
from distributed_training.strategies.checks import require_codec, require_outer, require_period
from distributed_training.strategies.inner import Inner
from distributed_training.strategies.message import Message, Received
from distributed_training.strategies.outer import RESIDUAL, nesterov, outer_message

ANCHOR, MOMENTUM = "anchor", "outer_momentum"


@dataclass(frozen=True, kw_only=True)
class DiLoCo:
    """4P bytes every `period` steps with codec "none"; with another one `feedback` says how much of its error is
    sent later (1: all of it)."""

    inner: Inner
    period: int = 15
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.9
    codec: str = "none"
    feedback: float = 0.0

    def __post_init__(self) -> None:
        require_period(self.period)
        require_outer(self.outer_learning_rate, self.outer_momentum)
        require_codec(self.codec, self.feedback, sparse=False)

    def init(self, params: torch.Tensor, node: Node) -> LocalState:
        vectors = {**self.inner.init(node.layout, params.device), ANCHOR: params, MOMENTUM: torch.zeros_like(params)}
        if self.feedback:
            vectors[RESIDUAL] = torch.zeros_like(params)
        return LocalState(node, 0, params, vectors)

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        return self.inner.update(state, gradient, state.step + 1).advanced()

    def send(self, state: LocalState) -> tuple[LocalState, Sequence[Message]]:
        if state.step % self.period:
            return state, ()
        state, message = outer_message(state, state.vectors[ANCHOR] - state.params, self.codec, self.feedback)
        return state, (message,)

    def receive(self, state: LocalState, received: Received) -> LocalState:
        old = state.vectors[ANCHOR], state.vectors[MOMENTUM]
        anchor, momentum = nesterov(*old, received.mean(), self.outer_learning_rate, self.outer_momentum)
        return state.having(anchor, **{ANCHOR: anchor, MOMENTUM: momentum})
