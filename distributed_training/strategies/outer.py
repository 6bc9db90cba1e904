"""What strategies with an outer optimiser share: Nesterov's step, and error feedback over a lossy codec.

Only additions and products that IEEE 754 rounds exactly, one at a time: the same bits on every machine.
"""

from __future__ import annotations

import torch

from distributed_training.strategies.base import LocalState
from distributed_training.strategies.message import Message, encoded, plain

OUTER_GRADIENT = "outer-gradient"
RESIDUAL = "residual"


def nesterov(
    anchor: torch.Tensor, momentum: torch.Tensor, outer_gradient: torch.Tensor, rate: float, decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The new anchor and momentum, float32 [n], as torch.optim.SGD(lr=rate, momentum=decay, nesterov=True) has them."""
    momentum = (momentum * decay).add_(outer_gradient)
    step = (momentum * decay).add_(outer_gradient).mul_(rate)
    return anchor - step, momentum


def outer_message(
    state: LocalState, outer_gradient: torch.Tensor, codec: str, feedback: float
) -> tuple[LocalState, Message]:
    """What is sent of an outer gradient [P], and the state with what is owed.

    With `feedback` b the message carries e = b r + outer gradient as the codec has it, and the residual r becomes what
    was lost of e (Seide et al. 2014; b < 1: Sarfi et al. 2025).

    Raises:
        StrategyError: a value has no code.
    """
    if codec == "none":
        return state, plain(OUTER_GRADIENT, outer_gradient)
    if not feedback:
        return state, encoded(OUTER_GRADIENT, codec, outer_gradient)[0]
    message, lost = encoded(OUTER_GRADIENT, codec, (state.vectors[RESIDUAL] * feedback).add_(outer_gradient))
    return state.having(**{RESIDUAL: lost}), message
