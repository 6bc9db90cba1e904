"""SPARTA: in every step a few parameters, drawn anew from a shared seed, are averaged.

Beton et al. 2025, "Improving the efficiency of distributed training using sparse parameter averaging" (ICLR workshop
on modularity for collaborative, decentralized and continual deep learning). Everybody draws the same parameters, so
only values travel: 4 p P bytes a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distributed_training.strategies.base import LocalState, Node
from distributed_training.strategies.checks import require
from distributed_training.strategies.inner import Inner
from distributed_training.strategies.message import Message, Received, plain

SOME_PARAMETERS = "some-parameters"


@dataclass(frozen=True, kw_only=True)
class Sparta:
    """`share` is p: of P parameters round(p P), at least one, are averaged in each step."""

    inner: Inner
    share: float = 0.005

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, f"share must lie in (0, 1]; found {self.share}")

    def init(self, params: torch.Tensor, node: Node) -> LocalState:
        return LocalState(node, 0, params, self.inner.init(node.layout, params.device))

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        return self.inner.update(state, gradient, state.step + 1).advanced()

    def send(self, state: LocalState) -> tuple[LocalState, Sequence[Message]]:
        return state, (plain(SOME_PARAMETERS, state.params[self._where(state)]),)

    def receive(self, state: LocalState, received: Received) -> LocalState:
        params = state.params.clone()
        params[self._where(state)] = received.values[0]
        return state.having(params)

    def _where(self, state: LocalState) -> torch.Tensor:
        size = state.params.numel()
        return torch.from_numpy(drawn(state.node.seed, state.step, size, max(1, round(self.share * size)))).to(
            state.params.device
        )


def drawn(seed: int, step: int, size: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """`count` different numbers below `size`, ascending, int64: those of the `count` smallest of `size` uniform draws.

    A pure function of its arguments: 32 bits a draw of a Philox stream whose key is the hash of seed and step; equal
    draws count in order.
    """
    digest = hashlib.sha256(f"sparta/{seed}/{step}".encode()).digest()
    raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw((size + 1) // 2)
    draws = raw.astype("<u8").view("<u4")[:size]
    last = np.partition(draws, count - 1)[count - 1]
    below, equal = np.flatnonzero(draws < last), np.flatnonzero(draws == last)
    return np.sort(np.concatenate([below, equal[: count - below.size]]))
