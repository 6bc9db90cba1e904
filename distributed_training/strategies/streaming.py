"""Streaming DiLoCo: one fragment of the model at a time, in fewer bits, while training goes on.

Douillard et al. 2025, arXiv 2501.18512. Block i belongs to fragment i mod F (the paper's strided pattern), what comes
before the blocks to the first and what comes after them to the last fragment. Fragment f is exchanged every `period`
steps, `period * f // F` steps after the first one. What is sent at step t is applied at t + `overlap`: the outer
optimiser moves the fragment's anchor, and the node's own fragment becomes
mixing * own + (1 - mixing) * anchor. The paper sends 4-bit floating point numbers, here integers of 4 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distributed_training.model.layout import Layout, Tensor
from distributed_training.strategies.base import LocalState, Node
from distributed_training.strategies.checks import require, require_codec, require_outer, require_period
from distributed_training.strategies.inner import Inner
from distributed_training.strategies.message import Message, Received, encoded, plain
from distributed_training.strategies.outer import nesterov
from distributed_training.strategies.parts import Part, block_of, part_of
from template.errors import ConfigurationError

ANCHOR, MOMENTUM, OPERATION = "anchor", "outer_momentum", "fragment-"
_LAST = ("ln_f", "norm", "lm_head")  # components of names of what comes after the blocks


@dataclass(frozen=True, kw_only=True)
class StreamingDiLoCo:
    """The bytes of DiLoCo with the same codec, spread over `fragments` exchanges."""

    inner: Inner
    period: int = 15
    fragments: int = 2
    overlap: int = 2
    mixing: float = 0.5
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.9
    codec: str = "int4-block64"

    def __post_init__(self) -> None:
        require_period(self.period)
        require_outer(self.outer_learning_rate, self.outer_momentum)
        require_codec(self.codec, 0.0, sparse=False)
        require(
            1 <= self.fragments <= self.period,
            f"fragments must lie between 1 and the period, {self.period}; found {self.fragments}",
        )
        require(
            0 <= self.overlap < self.period,
            f"overlap must lie between 0 and the period - 1, {self.period - 1}: a fragment is applied before it is "
            f"sent again; found {self.overlap}",
        )
        require(0 <= self.mixing < 1, f"mixing must lie in [0, 1): 1 would apply nothing; found {self.mixing}")
        require(self.overlap > 0 or not self.mixing, "mixing must be 0 without overlap: there is nothing to keep")

    def init(self, params: torch.Tensor, node: Node) -> LocalState:
        fragments(node.layout, self.fragments)  # refuses more than there are blocks
        vectors = {**self.inner.init(node.layout, params.device), ANCHOR: params, MOMENTUM: torch.zeros_like(params)}
        return LocalState(node, 0, params, vectors)

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        return self.inner.update(state, gradient, state.step + 1).advanced()

    def send(self, state: LocalState) -> tuple[LocalState, Sequence[Message]]:
        due = [f for f in range(self.fragments) if self._is_due(f, state.step)]
        return state, tuple(self._message(state, number) for number in due)

    def receive(self, state: LocalState, received: Received) -> LocalState:
        part = fragments(state.node.layout, self.fragments)[int(received.operation.removeprefix(OPERATION))]
        old = part.take(state.vectors[ANCHOR]), part.take(state.vectors[MOMENTUM])
        anchor, momentum = nesterov(*old, received.mean(), self.outer_learning_rate, self.outer_momentum)
        mixed = (part.take(state.params) * self.mixing).add_(anchor * (1.0 - self.mixing))
        vectors = {
            ANCHOR: part.put(state.vectors[ANCHOR], anchor),
            MOMENTUM: part.put(state.vectors[MOMENTUM], momentum),
        }
        return state.having(part.put(state.params, mixed), **vectors)

    def _is_due(self, fragment: int, step: int) -> bool:
        since = step - self.period * fragment // self.fragments
        return since > 0 and since % self.period == 0

    def _message(self, state: LocalState, number: int) -> Message:
        part = fragments(state.node.layout, self.fragments)[number]
        moved = part.take(state.vectors[ANCHOR]) - part.take(state.params)
        if self.codec == "none":
            return plain(f"{OPERATION}{number}", moved, self.overlap)
        return encoded(f"{OPERATION}{number}", self.codec, moved, self.overlap)[0]


@functools.lru_cache(maxsize=32)
def fragments(layout: Layout, count: int) -> tuple[Part, ...]:
    """The `count` parts of the model.

    Raises:
        ConfigurationError: the model has fewer blocks.
    """
    blocks = {block for tensor in layout.tensors if (block := block_of(tensor)) is not None}
    if len(blocks) < count:
        raise ConfigurationError(f"{count} fragments of a model of {len(blocks)} blocks; lower fragments")
    groups: list[list[Tensor]] = [[] for _ in range(count)]
    for tensor in layout.tensors:
        groups[_fragment_of(tensor, count)].append(tensor)
    return tuple(part_of(tuple(group)) for group in groups)


def _fragment_of(tensor: Tensor, count: int) -> int:
    block = block_of(tensor)
    if block is not None:
        return block % count
    return count - 1 if set(tensor.name.split(".")) & set(_LAST) else 0
