"""The flat vector: canonical order, tied weights once, exact round trips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distributed_training.model.build import build
from distributed_training.model.layout import Layout, flatten, unflatten
from distributed_training.run import ModelSpec
from template.errors import CorruptState
from tests.engine.tiny import GPT2, LLAMA


@pytest.mark.parametrize("spec", [GPT2, LLAMA])
def test_round_trip(spec: ModelSpec) -> None:
    """What is flattened and put into another model gives that model the same outputs."""
    one, two = build(spec, 61, 16, seed=1), build(spec, 61, 16, seed=2)
    unflatten(flatten(one), two)
    ids = torch.arange(16).reshape(1, 16)
    assert torch.equal(one(input_ids=ids).logits, two(input_ids=ids).logits)


def test_order_is_by_name_and_offsets_follow() -> None:
    """The vector is the concatenation of the parameters sorted by name."""
    module = build(GPT2, 61, 16, seed=1)
    expected = [p.detach().numpy().ravel() for _, p in sorted(module.named_parameters(), key=lambda item: item[0])]
    assert np.array_equal(flatten(module), np.concatenate(expected))
    assert Layout.of(module).size == sum(p.numel() for p in module.parameters())


def test_a_tied_weight_appears_once() -> None:
    """GPT-2's output head is its token embedding; Llama's is not."""
    gpt2 = [tensor.name for tensor in Layout.of(build(GPT2, 61, 16, seed=1)).tensors]
    llama = [tensor.name for tensor in Layout.of(build(LLAMA, 61, 16, seed=1)).tensors]
    assert "transformer.wte.weight" in gpt2
    assert "lm_head.weight" not in gpt2
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(llama)


def test_split_gives_views() -> None:
    """Pieces share the vector's memory."""
    layout = Layout.of(build(GPT2, 61, 16, seed=1))
    vector = np.arange(layout.size, dtype=np.float32)
    for (name, piece), tensor in zip(layout.split(vector), layout.tensors, strict=True):
        assert name == tensor.name
        assert piece.shape == tensor.shape
        assert piece.flat[0] == tensor.offset
        assert np.shares_memory(piece, vector)


@pytest.mark.parametrize("wrong", [np.zeros(5, np.float32), np.zeros((1, 5), np.float32)])
def test_a_vector_that_does_not_fit_changes_nothing(wrong: np.ndarray) -> None:
    """Size and dtype are checked before the first parameter is written."""
    module = build(GPT2, 61, 16, seed=1)
    before = flatten(module)
    for vector in (wrong, before.astype(np.float64)):
        with pytest.raises(CorruptState, match="expected float32"):
            unflatten(vector, module)
    assert np.array_equal(flatten(module), before)
