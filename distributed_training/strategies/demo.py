"""DeMo: the fast components of the momentum are shared in every step, the slow ones stay with the node.

Peng, Quesnelle & Kingma 2024, arXiv 2411.19870. A node's momentum m = decay m + gradient is cut into blocks, 64 x 64 of
a matrix and 64 of a vector (or the largest divisor below), and transformed by an orthonormal DCT-II. The largest
components are sent and taken out of m; everybody averages what all sent, transforms it back and moves by the sign of
it. Components are chosen among 4,096, by the live subnet's codec: of a matrix those of one block, one in 128 (the
paper's 32); of vectors those of all of them together, one in 2. Weight decay is decoupled, as in AdamW; no clipping.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distributed_training.model.layout import Layout, Tensor
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import LocalState, Node
from distributed_training.strategies.checks import require, require_codec
from distributed_training.strategies.inner import Inner
from distributed_training.strategies.message import Message, Received, encoded
from distributed_training.strategies.parts import decaying
from distributed_training.strategies.schedule import learning_rate

MOMENTUM, MATRICES, OTHERS = "momentum", "matrix-components", "vector-components"


@dataclass(frozen=True, kw_only=True)
class DeMo:
    """3.5 bytes for each component sent: .027 bytes a parameter of a matrix and step, and 1.75 of a vector's."""

    inner: Inner  # only its learning rate, schedule and weight decay
    decay: float = 0.999
    block: int = 64
    codec: str = "topk128-bf16"
    vector_codec: str = "topk2-bf16"

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, f"decay must lie in [0, 1); found {self.decay}")
        require(2 <= self.block <= 64, f"block must lie between 2 and 64; found {self.block}")
        for codec in (self.codec, self.vector_codec):
            require_codec(codec, 0.0, sparse=True)

    def init(self, params: torch.Tensor, node: Node) -> LocalState:
        return LocalState(node, 0, params, {MOMENTUM: torch.zeros_like(params)})

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        return state.advanced().having(**{MOMENTUM: (state.vectors[MOMENTUM] * self.decay).add_(gradient)})

    def send(self, state: LocalState) -> tuple[LocalState, Sequence[Message]]:
        layout, momentum = state.node.layout, state.vectors[MOMENTUM]
        kept, messages = momentum.clone(), []
        for operation, codec, tensors in self._groups(layout):
            components = forward(momentum, tensors, self.block)
            message, slow = encoded(operation, codec, components)
            backward(slow, tensors, self.block, kept)
            messages.append(message)
        return state.having(**{MOMENTUM: kept}), messages

    def receive(self, state: LocalState, received: Received) -> LocalState:
        layout, spec = state.node.layout, self.inner.spec
        rate, first = learning_rate(spec, state.step - 1), received.operation == MATRICES
        params = self._decayed(state, spec, rate) if first else state.params.clone()
        tensors = next(group[2] for group in self._groups(layout) if group[0] == received.operation)
        direction = torch.zeros_like(params)
        backward(received.mean(), tensors, self.block, direction)
        return state.having(params.sub_(direction.sign_().mul_(rate)))

    def _groups(self, layout: Layout) -> tuple[tuple[str, str, tuple[Tensor, ...]], ...]:
        matrices, others = split(layout)
        groups = ((MATRICES, self.codec, matrices), (OTHERS, self.vector_codec, others))
        return tuple(group for group in groups if group[2])

    def _decayed(self, state: LocalState, spec: OptimizerSpec, rate: float) -> torch.Tensor:
        mask = decaying(state.node.layout, state.params.device)
        return torch.addcmul(state.params, state.params, mask, value=-rate * spec.weight_decay)


@functools.lru_cache(maxsize=32)
def split(layout: Layout) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The matrices, and all others."""
    matrices = tuple(t for t in layout.tensors if len(t.shape) == 2)
    return matrices, tuple(t for t in layout.tensors if len(t.shape) != 2)


def forward(vector: torch.Tensor, tensors: Sequence[Tensor], block: int) -> torch.Tensor:
    """The components of these tensors of `vector` [P], block after block, float32 [n]."""
    return torch.cat([_blocks(vector, tensor, block).reshape(-1) for tensor in tensors])


def backward(components: torch.Tensor, tensors: Sequence[Tensor], block: int, out: torch.Tensor) -> None:
    """Write what has these `components` [n] into the tensors' places in `out` [P]."""
    for tensor, piece in zip(tensors, torch.split(components, [t.size for t in tensors]), strict=True):
        rows, columns, high, wide = _cut(tensor, block)
        blocks = piece.view(rows, columns, high, wide)
        values = _dct(high, out.device).T @ blocks @ _dct(wide, out.device)
        out[tensor.slice] = values.transpose(1, 2).reshape(-1)


def _blocks(vector: torch.Tensor, tensor: Tensor, block: int) -> torch.Tensor:
    """DCT of each block: [rows of blocks, columns of blocks, high, wide]."""
    rows, columns, high, wide = _cut(tensor, block)
    blocks = vector[tensor.slice].view(rows, high, columns, wide).transpose(1, 2)
    return _dct(high, vector.device) @ blocks @ _dct(wide, vector.device).T


def _cut(tensor: Tensor, block: int) -> tuple[int, int, int, int]:
    """(rows of blocks, columns of blocks, height, width); what is not a matrix is one row."""
    tall, broad = tensor.shape if len(tensor.shape) == 2 else (1, tensor.size)
    high, wide = _divisor(tall, block), _divisor(broad, block)
    return tall // high, broad // wide, high, wide


def _divisor(size: int, most: int) -> int:
    return next(d for d in range(min(size, most), 0, -1) if size % d == 0)


@functools.lru_cache(maxsize=64)
def _dct(size: int, device: torch.device) -> torch.Tensor:
    """The orthonormal DCT-II, float32 [size, size]: components = matrix @ values. Only to be read."""
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi * (n + 0.5) * k / size) * math.sqrt(2.0 / size)
    matrix[0] /= math.sqrt(2.0)
    return matrix.to(torch.float32).to(device)
