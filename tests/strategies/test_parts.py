"""Which tensors are a block's, which are hidden matrices, and how a part of the vector is taken and put back."""

from __future__ import annotations

import pytest
import torch

from distributed_training.model.layout import Layout, Tensor
from distributed_training.strategies.parts import (
    Part,
    block_of,
    decaying,
    hidden_matrices,
    other_than_hidden_matrices,
    part_of,
)
from tests.strategies.problem import CPU, LAYOUT


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("transformer.h.11.mlp.c_fc.weight", 11),
        ("model.layers.3.self_attn.q_proj.weight", 3),
        ("transformer.wte.weight", None),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_blocks_of_both_families(name: str, block: int | None) -> None:
    """By the number in the name."""
    assert block_of(Tensor(name, (2, 2), 0)) == block


def test_hidden_matrices_are_neither_embeddings_nor_biases() -> None:
    """And the rest is everything else, once."""
    names = [tensor.name for tensor in hidden_matrices(LAYOUT)]
    assert len(names) == 5
    assert all(".h." in name and name.endswith("weight") for name in names)
    rest = other_than_hidden_matrices(LAYOUT)
    covered = torch.zeros(LAYOUT.size)
    for tensor in hidden_matrices(LAYOUT):
        covered[tensor.slice] += 1
    assert torch.equal(rest.put(covered, rest.take(covered) + 1), torch.ones(LAYOUT.size))


def test_neighbours_become_one_stretch() -> None:
    """However the tensors are ordered."""
    a, b, c = Tensor("a", (4,), 0), Tensor("b", (2, 3), 4), Tensor("c", (5,), 12)
    assert part_of((b, c, a)) == Part(((0, 10), (12, 17)))
    assert part_of((b, c, a)).size == 15


def test_a_part_is_taken_and_put_back() -> None:
    """In copies: the vector it came from stays as it is."""
    vector, part = torch.arange(10.0), Part(((1, 3), (7, 10)))
    values = part.take(vector)
    assert values.tolist() == [1, 2, 7, 8, 9]
    changed = part.put(vector, -values)
    assert changed.tolist() == [0, -1, -2, 3, 4, 5, 6, -7, -8, -9]
    assert torch.equal(vector, torch.arange(10.0))


def test_what_decays() -> None:
    """Everything of two or more dimensions."""
    layout = Layout((Tensor("a", (2,), 0), Tensor("b", (1, 2), 2), Tensor("c", (1, 1, 1), 4)))
    assert decaying(layout, CPU).tolist() == [0, 0, 1, 1, 1]
