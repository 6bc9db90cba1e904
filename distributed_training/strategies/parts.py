"""Parts of the parameter vector: the tensors of a model's blocks, its hidden matrices, and the rest of it.

A tensor belongs to block i if a component of its name is the number i, as in "transformer.h.3.mlp.c_fc.weight" and
"model.layers.3.mlp.up_proj.weight". What belongs to no block is embeddings, output head and the last norm.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from distributed_training.model.layout import Layout, Tensor


@dataclass(frozen=True)
class Part:
    """Stretches [start, stop) of the vector, ascending."""

    stretches: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many values."""
        return sum(stop - start for start, stop in self.stretches)

    def take(self, vector: torch.Tensor) -> torch.Tensor:
        """A copy of the part of `vector` [P], float32 [size]."""
        return torch.cat([vector[start:stop] for start, stop in self.stretches])

    def put(self, vector: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """A copy of `vector` [P] that has `values` [size] there."""
        changed = vector.clone()
        pieces = torch.split(values, [stop - start for start, stop in self.stretches])
        for (start, stop), piece in zip(self.stretches, pieces, strict=True):
            changed[start:stop] = piece
        return changed


def part_of(tensors: tuple[Tensor, ...]) -> Part:
    """The part that these tensors make up; neighbours become one stretch."""
    stretches: list[tuple[int, int]] = []
    for tensor in sorted(tensors, key=lambda t: t.offset):
        start, stop = tensor.offset, tensor.offset + tensor.size
        if stretches and stretches[-1][1] == start:
            start = stretches.pop()[0]
        stretches.append((start, stop))
    return Part(tuple(stretches))


def block_of(tensor: Tensor) -> int | None:
    """The number of the block that a tensor belongs to, or None."""
    return next((int(word) for word in tensor.name.split(".") if word.isdecimal()), None)


@functools.lru_cache(maxsize=32)
def hidden_matrices(layout: Layout) -> tuple[Tensor, ...]:
    """The matrices of the blocks: neither embeddings nor head, no biases, no norms."""
    return tuple(t for t in layout.tensors if len(t.shape) == 2 and block_of(t) is not None)


@functools.lru_cache(maxsize=32)
def other_than_hidden_matrices(layout: Layout) -> Part:
    """All the rest."""
    hidden = set(hidden_matrices(layout))
    return part_of(tuple(t for t in layout.tensors if t not in hidden))


@functools.lru_cache(maxsize=32)
def decaying(layout: Layout, device: torch.device) -> torch.Tensor:
    """1 where weight decay applies (tensors of two or more dimensions), else 0; float32 [P]. Only to be read."""
    mask = torch.zeros(layout.size, device=device)
    for tensor in layout.tensors:
        mask[tensor.slice] = float(len(tensor.shape) > 1)
    return mask
