"""N miners that average exactly follow one process that trains on all their samples, with overlap one update late."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from distributed_training.engine.engine import Engine
from distributed_training.model.build import build
from distributed_training.model.layout import flatten
from tests.engine.tiny import DECAYING, GPT2, LENGTH, VOCAB, batch, overlapping, spec

UPDATES, PER_EPOCH = 5, 8


def numbers(epoch: int) -> range:
    return range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH)


def rate(epoch: int) -> float:
    if epoch < 2:
        return 3e-3 * (epoch + 1) / 3
    return 3e-4 + (3e-3 - 3e-4) * (1 + math.cos(math.pi * (epoch - 2) / 4)) / 2


def single_process(delay: int = 0) -> np.ndarray:
    """A plain loop: one backward pass over the whole epoch's samples, torch's clipping and AdamW.

    The gradients of an epoch are taken at the parameters of `delay` updates before (at first: at the initial ones).
    """
    module, stale = (build(GPT2, VOCAB, LENGTH, seed=1) for _ in range(2))
    history = []
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-6)
    for epoch in range(UPDATES):
        examples = [batch(n, samples=1 + n % 3) for n in numbers(epoch)]
        inputs = torch.from_numpy(np.concatenate([example.input_ids for example in examples]))
        labels = torch.from_numpy(np.concatenate([example.labels for example in examples]))
        history.append({name: values.clone() for name, values in module.state_dict().items()})
        stale.load_state_dict(history[max(epoch - delay, 0)])
        stale.zero_grad()
        torch.nn.functional.cross_entropy(stale(input_ids=inputs).logits.flatten(0, 1), labels.flatten()).backward()
        for parameter, old in zip(module.parameters(), stale.parameters(), strict=True):
            parameter.grad = None if old.grad is None else old.grad.clone()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = rate(epoch)
        optimizer.step()
    return flatten(module)


@pytest.mark.parametrize("miners", [1, 2, 4])
def test_miners_follow_a_single_process(miners: int) -> None:
    """After five updates the parameters agree to 1e-6 of their norm, and all miners hold the same bits."""
    engines = [Engine(spec(optimizer=DECAYING), VOCAB) for _ in range(miners)]
    for epoch in range(UPDATES):
        for n in numbers(epoch):
            engines[n % miners].train(batch(n, samples=1 + n % 3))
        contributions = [engine.contribution() for engine in engines]
        total = sum(contribution.samples for contribution in contributions)
        mean = sum(c.vector.astype(np.float64) * (c.samples / total) for c in contributions)
        for engine in engines:
            engine.apply(np.asarray(mean, dtype=np.float32))
    expected = single_process()
    assert len({engine.state_hash for engine in engines}) == 1
    difference = np.linalg.norm(engines[0].state.params - expected) / np.linalg.norm(expected)
    assert difference < 1e-6
    started = flatten(build(GPT2, VOCAB, LENGTH, seed=1))
    assert np.linalg.norm(expected - started) > 1e-2 * np.linalg.norm(started)
    assert dataclasses.asdict(DECAYING)["clip_norm"] == 0.5


@pytest.mark.parametrize("miners", [1, 2, 4])
@pytest.mark.parametrize("early", [0, 3, PER_EPOCH])
def test_miners_that_overlap_follow_delayed_gradients(miners: int, early: int) -> None:
    """Whatever part of an epoch is trained before the one before it has ended; undelayed ones give something else."""
    engines = [Engine(overlapping(optimizer=DECAYING), VOCAB) for _ in range(miners)]

    def train(epoch: int, chosen: range) -> None:
        for n in chosen:
            assert engines[n % miners].in_training.epoch == epoch
            engines[n % miners].train(batch(n, samples=1 + n % 3))

    train(0, numbers(0))
    for epoch in range(UPDATES):
        contributions = [engine.set_aside() for engine in engines]
        train(epoch + 1, numbers(epoch + 1)[:early])  # while the round runs
        total = sum(contribution.samples for contribution in contributions)
        mean = sum(c.vector.astype(np.float64) * (c.samples / total) for c in contributions)
        for engine in engines:
            engine.apply(np.asarray(mean, dtype=np.float32))
        train(epoch + 1, numbers(epoch + 1)[early:])
    expected, undelayed = single_process(delay=1), single_process()
    assert len({engine.state_hash for engine in engines}) == 1
    params = engines[0].state.params
    assert np.linalg.norm(params - expected) < 1e-6 * np.linalg.norm(expected)
    assert np.linalg.norm(params - undelayed) > 1e-4 * np.linalg.norm(undelayed)
