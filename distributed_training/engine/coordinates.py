"""Which gradient values a record shows: a pure function of the run, the epoch and the layout.

Embeddings come first, because their gradient needs the whole backward pass; then every other tensor has one, in
an order that changes with the epoch where there are fewer coordinates than tensors; what is left goes round the
matrices. Left out: the key part of GPT-2's attention bias, whose gradient is zero up to rounding (softmax does not
change when all its inputs move by the same amount), so that honest machines would disagree on its sign.

Rows of an untied embedding whose token did not occur have gradient zero, which is what an honest recomputation finds
too; a tied embedding gets a dense gradient through the output head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distributed_training.model.layout import Layout, Tensor
from template.errors import ConfigurationError

Coordinates = npt.NDArray[np.int64]  # [C], ascending indices into the flat vector

_EMBEDDINGS = ("wte.weight", "wpe.weight", "embed_tokens.weight")
_DRAWS_PER_COORDINATE = 1000


def coordinates(run_id: str, epoch: int, layout: Layout, count: int) -> Coordinates:
    """`count` different indices into the flat vector, ascending.

    Raises:
        ConfigurationError: the model has hardly more parameters than coordinates.
    """
    tensors = _in_order(run_id, epoch, layout.tensors)
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    chosen: set[int] = set()
    for attempt in range(count * _DRAWS_PER_COORDINATE):
        if len(chosen) == count:
            break
        turn = attempt - len(tensors)
        tensor = tensors[attempt] if turn < 0 else matrices[turn % len(matrices)]
        chosen.add(tensor.offset + _element(tensor, f"{run_id}/{epoch}/{attempt}/{tensor.name}"))
    if len(chosen) < count:
        raise ConfigurationError(f"audit.coordinates = {count} is too many for a model of {layout.size} parameters")
    return np.array(sorted(chosen), dtype=np.int64)


def _in_order(run_id: str, epoch: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Embeddings first, the rest by a hash that depends on the epoch."""

    def rank(tensor: Tensor) -> tuple[bool, int]:
        return not tensor.name.endswith(_EMBEDDINGS), _hash(f"{run_id}/{epoch}/{tensor.name}")

    return sorted(tensors, key=rank)


def _element(tensor: Tensor, key: str) -> int:
    """An index into the flattened tensor, never one of the dead ones."""
    if not tensor.name.endswith("attn.c_attn.bias"):
        return _hash(key) % tensor.size
    part = tensor.size // 3  # query, key, value
    index = _hash(key) % (2 * part)
    return index if index < part else index + part


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
