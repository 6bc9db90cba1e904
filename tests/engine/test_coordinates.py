"""Audit coordinates: a pure function, every tensor covered, informative values."""

from __future__ import annotations

import numpy as np
import pytest

from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.replica import Replica
from distributed_training.model.build import build
from distributed_training.model.layout import Layout, Tensor
from template.errors import ConfigurationError
from tests.engine.tiny import GPT2, LENGTH, LLAMA, VOCAB, batch, spec

LAYOUTS = {family.family: Layout.of(build(family, VOCAB, LENGTH, seed=1)) for family in (GPT2, LLAMA)}


@pytest.mark.parametrize("family", LAYOUTS)
@pytest.mark.parametrize("count", [1, 5, 28, 64, 1024])
def test_as_many_different_indices_as_asked(family: str, count: int) -> None:
    """Ascending, unique, inside the vector, and the same when asked again."""
    chosen = coordinates("run-1", 3, LAYOUTS[family], count)
    assert len(set(chosen.tolist())) == count
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen.min() <= chosen.max() < LAYOUTS[family].size
    assert np.array_equal(chosen, coordinates("run-1", 3, LAYOUTS[family], count))


@pytest.mark.parametrize("family", LAYOUTS)
def test_every_tensor_has_one(family: str) -> None:
    """With enough coordinates no layer can be left untrained unseen."""
    chosen = coordinates("run-1", 3, LAYOUTS[family], 64)
    for tensor in LAYOUTS[family].tensors:
        inside = (chosen >= tensor.offset) & (chosen < tensor.offset + tensor.size)
        assert inside.any(), tensor.name


def test_few_coordinates_start_with_the_embeddings() -> None:
    """Their gradient takes the whole backward pass; the others take turns from epoch to epoch."""
    embeddings = [tensor for tensor in LAYOUTS["gpt2"].tensors if tensor.name.endswith(("wte.weight", "wpe.weight"))]
    seen = set()
    for epoch in range(200):
        chosen = coordinates("run-1", epoch, LAYOUTS["gpt2"], 4)
        for tensor in embeddings:
            assert ((chosen >= tensor.offset) & (chosen < tensor.offset + tensor.size)).any()
        offsets = [tensor.offset for tensor in LAYOUTS["gpt2"].tensors]
        seen |= set(np.searchsorted(offsets, chosen, side="right").tolist())
    assert len(seen) == len(LAYOUTS["gpt2"].tensors)


def test_run_and_epoch_change_them() -> None:
    """Nobody can keep the same few values up to date and nothing else."""
    base = set(coordinates("run-1", 3, LAYOUTS["gpt2"], 64).tolist())
    for other in (coordinates("run-1", 4, LAYOUTS["gpt2"], 64), coordinates("run-2", 3, LAYOUTS["gpt2"], 64)):
        assert len(base & set(other.tolist())) < 32


def test_values_are_no_rounding_noise() -> None:
    """Over many epochs no coordinate of a tied GPT-2 falls on a gradient that is zero in exact arithmetic."""
    replica = Replica(spec(), VOCAB)
    _, gradient = replica.gradient(batch(0, 8))
    scale = gradient.abs().max().item()
    for epoch in range(30):
        values = gradient[coordinates("run-1", epoch, replica.layout, 64)].abs()
        assert values.min().item() > 1e-7 * scale


def test_too_small_a_model_is_refused() -> None:
    """More coordinates than parameters cannot be had, and the search for them ends."""
    layout = Layout((Tensor("a", (4, 2), 0),))
    assert coordinates("r", 0, layout, 8).tolist() == list(range(8))
    with pytest.raises(ConfigurationError, match="too many"):
        coordinates("r", 0, layout, 9)
