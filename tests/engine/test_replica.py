"""Loss and gradient of a micro-batch against plain PyTorch and finite differences."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from distributed_training.engine.replica import Replica
from distributed_training.model.build import build
from distributed_training.model.layout import flatten
from distributed_training.run import ModelSpec
from template.errors import DataError, StateError
from tests.engine.tiny import GPT2, LENGTH, LLAMA, VOCAB, batch, spec


@pytest.mark.parametrize("family", [GPT2, LLAMA])
@pytest.mark.parametrize("ignored", [0, 5])
def test_against_plain_pytorch(family: ModelSpec, ignored: int) -> None:
    """Mean negative log-likelihood of the labels that count, and its gradient by autograd."""
    replica = Replica(spec(model=family), VOCAB)
    example = batch(3, ignored=ignored)
    loss, gradient = replica.gradient(example)
    module = build(family, VOCAB, LENGTH, seed=1)
    logits = module(input_ids=torch.from_numpy(example.input_ids)).logits
    labels = torch.from_numpy(example.labels)
    chosen = torch.log_softmax(logits, -1)[:, ignored:].gather(-1, labels[:, ignored:, None])
    expected = -chosen.mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    flat = torch.cat([p.grad.ravel() for _, p in sorted(module.named_parameters())])
    assert torch.linalg.norm(gradient - flat) < 1e-5 * torch.linalg.norm(flat)


@pytest.mark.parametrize("samples_at_once", [0, 1, 3, 7])
def test_a_long_micro_batch_goes_through_in_slices(samples_at_once: int) -> None:
    """The same loss and gradient as in one piece, with no more logits at a time than allowed, though one sample's
    labels do not count at all."""
    whole, sliced = Replica(spec(), VOCAB), Replica(spec(), VOCAB, logits=samples_at_once * LENGTH * VOCAB)
    example = batch(3, samples=7)
    seen: list[int] = []
    example.labels[2] = -100
    sliced.module.register_forward_hook(lambda module, inputs, output: seen.append(len(output.logits)))
    (loss, gradient), (other, again) = whole.gradient(example), sliced.gradient(example)
    assert max(seen) == max(1, samples_at_once)
    assert other == pytest.approx(loss, rel=1e-6)
    assert torch.linalg.norm(gradient - again) < 1e-6 * torch.linalg.norm(gradient)
    assert sliced.mean_loss([example]) == pytest.approx(whole.mean_loss([example]), rel=1e-6)


def test_labels_are_not_shifted_again() -> None:
    """The token at position t is scored against labels[t]: transformers' own loss would look one further."""
    replica = Replica(spec(), VOCAB)
    example = batch(1)
    tokens = torch.from_numpy(np.concatenate([example.input_ids, example.labels[:, -1:]], axis=1))
    with torch.no_grad():
        logits = replica.module(input_ids=tokens[:, :-1]).logits.double()
        probabilities = torch.softmax(logits, -1)
    total = 0.0
    for s in range(4):
        for t in range(LENGTH):
            total -= float(torch.log(probabilities[s, t, tokens[s, t + 1]]))
    assert replica.gradient(example)[0] == pytest.approx(total / (4 * LENGTH), rel=1e-6)


def test_gradient_is_the_slope_of_the_loss() -> None:
    """A central difference along the gradient gives its squared norm."""
    replica = Replica(spec(), VOCAB)
    params = flatten(replica.module)
    gradient = replica.gradient(batch(2))[1].numpy().copy()
    direction = gradient / np.linalg.norm(gradient)
    losses = []
    for side in (2e-3, -2e-3):
        replica.load(params + np.float32(side) * direction)
        losses.append(replica.mean_loss([batch(2)]))
    assert (losses[0] - losses[1]) / 4e-3 == pytest.approx(np.linalg.norm(gradient), rel=1e-3)


def test_repetition_gives_the_same_bits() -> None:
    """Nothing is left over from the batch before, and two models on one machine agree exactly."""
    one, two = Replica(spec(), VOCAB), Replica(spec(), VOCAB)
    loss, gradient = one.gradient(batch(1))
    kept = gradient.clone()
    one.gradient(batch(2))
    assert one.gradient(batch(1))[0] == loss
    assert torch.equal(one.gradient(batch(1))[1], kept)
    assert torch.equal(two.gradient(batch(1))[1], kept)


def test_mean_loss_weighs_labels() -> None:
    """Batches of different size count by their labels."""
    replica = Replica(spec(), VOCAB)
    small, large = batch(1, samples=1, ignored=LENGTH // 2), batch(2, samples=3)
    expected = (replica.gradient(small)[0] * LENGTH / 2 + replica.gradient(large)[0] * 3 * LENGTH) / (3.5 * LENGTH)
    assert replica.mean_loss([small, large]) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(DataError, match="no labels"):
        replica.mean_loss([])


def test_bfloat16_is_close_and_different() -> None:
    """Autocast is really on, and loss and gradient stay float32."""
    exact, half = Replica(spec(), VOCAB), Replica(spec(precision="bfloat16"), VOCAB)
    (loss, gradient), (other, rough) = exact.gradient(batch(1)), half.gradient(batch(1))
    assert rough.dtype == torch.float32
    assert loss != other
    assert other == pytest.approx(loss, rel=1e-2)
    distance = torch.linalg.norm(gradient - rough) / torch.linalg.norm(gradient)
    assert 1e-4 < distance < 5e-2


@pytest.mark.parametrize(
    "change",
    [
        {"input_ids": np.full((4, LENGTH), VOCAB)},
        {"input_ids": np.full((4, LENGTH), -1)},
        {"labels": np.full((4, LENGTH), VOCAB)},
        {"labels": np.full((4, LENGTH), -100)},
        {"labels": np.zeros((4, LENGTH - 1), dtype=np.int64)},
        {"input_ids": np.zeros(4, dtype=np.int64)},
        {"samples": 0},
        {"samples": 5},
    ],
)
def test_batches_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    """Shapes, ranges and counts are checked before the device sees them."""
    with pytest.raises(DataError, match="micro-batch 1"):
        Replica(spec(), VOCAB).gradient(dataclasses.replace(batch(1), **change))


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    """Parameters that have blown up do not give records."""
    replica = Replica(spec(), VOCAB)
    replica.load(np.full(replica.layout.size, 1e30, dtype=np.float32))
    with pytest.raises(StateError, match="not finite"):
        replica.gradient(batch(1))
