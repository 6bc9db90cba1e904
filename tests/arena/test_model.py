"""The model that all nodes share: its gradient is the module's own, in slices or at once, and nobody's memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from distributed_training.arena.corpus import Corpus
from distributed_training.arena.model import SharedModel
from distributed_training.model.build import build
from distributed_training.model.layout import flatten
from tests.arena.small import CPU, SIZE


def test_loss_and_gradient_are_the_module_s(corpus: Corpus) -> None:
    """As a module that is built from the same seed has them."""
    batch, model = corpus.batch(1, 1, 0, SIZE), SharedModel(SIZE, 3, CPU)
    module = build(SIZE.spec, SIZE.vocabulary, SIZE.block, 3)
    assert model.initial.numpy().tobytes() == flatten(module).tobytes()
    logits = module(input_ids=batch.inputs).logits
    loss = functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    loss.backward()
    expected = torch.cat([p.grad.reshape(-1) for _, p in sorted(module.named_parameters()) if p.grad is not None])
    found, gradient = model.gradient(model.initial, batch)
    assert found == pytest.approx(float(loss.detach()), rel=1e-6)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-6
    assert model.loss(model.initial, batch) == pytest.approx(found, rel=1e-6)


def test_slices_change_nothing(corpus: Corpus) -> None:
    """One sample at a time, for the memory's sake, gives the same loss and gradient."""
    batch = corpus.batch(1, 1, 0, SIZE)
    whole, sliced = SharedModel(SIZE, 1, CPU), SharedModel(SIZE, 1, CPU, logits=1)
    (loss, gradient), (other, same) = (model.gradient(model.initial, batch) for model in (whole, sliced))
    assert other == pytest.approx(loss, rel=1e-6)
    assert float((same - gradient).norm() / gradient.norm()) < 1e-6


def test_what_it_gives_away_stays_as_it_is(corpus: Corpus) -> None:
    """Another node's gradient does not run into one that was given before, nor into anybody's parameters."""
    model = SharedModel(SIZE, 1, CPU)
    params = model.initial
    _, first = model.gradient(params, corpus.batch(1, 1, 0, SIZE))
    copies = first.clone(), params.clone()
    model.gradient(params + 1, corpus.batch(1, 1, 1, SIZE))
    assert torch.equal(first, copies[0])
    assert torch.equal(params, copies[1])
