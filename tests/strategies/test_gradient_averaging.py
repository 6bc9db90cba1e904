"""The base strategy against torch's optimiser, clipping and a cosine written by hand; refusals change nothing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from distributed_training.model.layout import Layout, Tensor
from distributed_training.model.state import State
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.gradient_averaging import GradientAveraging
from distributed_training.strategies.registry import find_strategy
from template.errors import ConfigurationError, CorruptState
from tests.engine.tiny import spec

LAYOUT = Layout((Tensor("a.bias", (40,), 0), Tensor("b.weight", (30, 40), 40), Tensor("c.weight", (5, 2, 2), 1240)))
OPTIMIZER = OptimizerSpec(
    learning_rate=0.02,
    minimum_learning_rate=0.002,
    warmup_epochs=2,
    decay_epochs=9,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.3,
    clip_norm=1.0,
)


def normal(seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(LAYOUT.size) * scale).astype(np.float32)


def initial(strategy: GradientAveraging) -> State:
    return State(LAYOUT, 0, normal(0), strategy.init(LAYOUT))


class Reference:
    """torch.optim.AdamW in float64 with two groups, clip_grad_norm_, and its own schedule."""

    def __init__(self, params: np.ndarray) -> None:
        pieces = [params[0:40], params[40:1240].reshape(30, 40), params[1240:].reshape(5, 2, 2)]
        self.parameters = [torch.nn.Parameter(torch.from_numpy(piece.copy()).double()) for piece in pieces]
        groups = [
            {"params": self.parameters[1:], "weight_decay": 0.3},
            {"params": self.parameters[:1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)

    def step(self, epoch: int, gradient: np.ndarray) -> np.ndarray:
        warm = min(1.0, (epoch + 1) / 3)
        cosine = 0.002 + 0.018 * 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - 2) / 7)))
        for group in self.optimizer.param_groups:
            group["lr"] = 0.02 * warm if epoch < 2 else cosine
        flat = torch.from_numpy(gradient).double()
        for parameter, piece in zip(self.parameters, flat.split([40, 1200, 20]), strict=True):
            parameter.grad = piece.reshape(parameter.shape).clone()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return torch.cat([parameter.detach().ravel() for parameter in self.parameters]).numpy()


def test_follows_torch() -> None:
    """Twelve updates, clipped and not, through warm-up, decay and the constant end."""
    strategy = GradientAveraging(OPTIMIZER)
    state = initial(strategy)
    reference = Reference(state.params)
    for epoch in range(12):
        average = normal(epoch + 1, scale=(1.0 if epoch % 2 else 0.01))  # norms of about 35 and 0.35
        expected = reference.step(epoch, average)
        state = strategy.update(average, state)
        assert np.linalg.norm(state.params - expected) < 1e-6 * np.linalg.norm(expected)
    assert state.epoch == 12


def test_only_matrices_decay() -> None:
    """With a zero average, biases stay and everything of two or more dimensions shrinks by lr * wd."""
    strategy = GradientAveraging(OPTIMIZER)
    before = initial(strategy)
    after = strategy.update(np.zeros(LAYOUT.size, dtype=np.float32), before)
    assert np.array_equal(after.params[:40], before.params[:40])
    np.testing.assert_allclose(after.params[40:], before.params[40:] * (1 - 0.02 / 3 * 0.3), rtol=2e-7)


def test_the_update_is_pure() -> None:
    """The same average and state give the same bits, and the old state is left as it was."""
    strategy = GradientAveraging(OPTIMIZER)
    state = initial(strategy)
    before = state.params.tobytes()
    first, second = (strategy.update(normal(1), state) for _ in range(2))
    assert first.hash == second.hash
    assert state.params.tobytes() == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_average_that_is_not_finite_is_refused(bad: float) -> None:
    """One bad number stops the update."""
    strategy = GradientAveraging(OPTIMIZER)
    average = normal(1)
    average[1239] = bad
    with pytest.raises(CorruptState, match="not finite"):
        strategy.update(average, initial(strategy))


@pytest.mark.parametrize("wrong", [np.zeros(3, np.float32), np.zeros(LAYOUT.size)])
def test_an_average_that_does_not_fit_is_refused(wrong: np.ndarray) -> None:
    """Another length or dtype stops the update."""
    strategy = GradientAveraging(OPTIMIZER)
    with pytest.raises(CorruptState, match="expected float32"):
        strategy.update(wrong, initial(strategy))


@pytest.mark.parametrize("change", [{"weight_decay": -0.1}, {"learning_rate": math.inf}, {"weight_decay": math.nan}])
def test_impossible_hyperparameters_are_refused(change: dict[str, float]) -> None:
    """What the run spec's types let through is named here."""
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        GradientAveraging(dataclasses.replace(OPTIMIZER, **change))


def test_unknown_strategies_are_refused() -> None:
    """The message lists the known ones."""
    with pytest.raises(ConfigurationError, match=r"unknown strategy 'sgd'; known: .*gradient-averaging"):
        find_strategy(spec(strategy="sgd"))


def test_overlap_needs_a_strategy_that_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot do with contributions made at the state before is named, with the remedy."""
    overlapping = spec(epoch=dataclasses.replace(spec().epoch, overlap=True))
    assert find_strategy(overlapping).allows_overlap
    monkeypatch.setattr(GradientAveraging, "allows_overlap", False)
    with pytest.raises(ConfigurationError, match=r"epoch\.overlap must be false: the strategy 'gradient-averaging'"):
        find_strategy(overlapping)
