"""What the live subnet's strategies make of an average, against torch's; which run specs they refuse, and how."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from distributed_training.model.layout import Layout, Tensor
from distributed_training.model.state import State
from distributed_training.strategies.outer import nesterov
from distributed_training.strategies.registry import STRATEGIES, find_strategy
from template.errors import ConfigurationError, CorruptState
from tests.engine.tiny import spec
from tests.strategies.live import live

LAYOUT = Layout((Tensor("a.bias", (40,), 0), Tensor("b.weight", (500, 400), 40)))  # several blocks


def normal(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=LAYOUT.size).astype(np.float32)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_keeps_the_contract(name: str) -> None:
    """Named vectors that fit, the next epoch after an update, equal bits for equal inputs, no NaN let in."""
    strategy = find_strategy(live(name))
    vectors = strategy.init(LAYOUT)
    assert tuple(sorted(vectors)) == strategy.vectors
    state = State(LAYOUT, 0, normal(0), vectors)
    updated = strategy.update(normal(1), state)
    assert updated.epoch == 1
    assert set(updated.optimizer) == set(strategy.vectors)
    assert updated.hash == strategy.update(normal(1), state).hash
    with pytest.raises(CorruptState):
        strategy.update(np.full(LAYOUT.size, np.nan, dtype=np.float32), state)
    with pytest.raises(CorruptState):
        strategy.update(normal(1)[1:], state)


def test_the_outer_optimiser_is_torch_s_sgd() -> None:
    """With Nesterov's momentum, over a few updates; to the bit what the simulator's DiLoCo does."""
    strategy = find_strategy(live("diloco", hyperparameters={"outer_learning_rate": 0.5, "outer_momentum": 0.8}))
    state = State(LAYOUT, 0, normal(0), strategy.init(LAYOUT))
    params = torch.nn.Parameter(torch.from_numpy(normal(0)))
    torchs = torch.optim.SGD([params], lr=0.5, momentum=0.8, nesterov=True)
    ours = torch.from_numpy(normal(0)), torch.zeros(LAYOUT.size)
    for epoch in range(4):
        average = normal(epoch + 1)
        state = strategy.update(average, state)
        params.grad = torch.from_numpy(average)
        torchs.step()
        ours = nesterov(*ours, torch.from_numpy(average), 0.5, 0.8)
    np.testing.assert_allclose(state.params, params.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert np.array_equal(state.params, ours[0].numpy())
    assert np.array_equal(state.optimizer["outer_momentum"], ours[1].numpy())


@pytest.mark.parametrize("name", ["fedavg", "diloco"])
def test_rate_one_without_momentum_is_the_mean_of_the_parameters(name: str) -> None:
    """Which has no vectors of its own."""
    options = {} if name == "fedavg" else {"outer_learning_rate": 1, "outer_momentum": 0}
    strategy = find_strategy(live(name, hyperparameters=options))
    base, one, two = normal(0), normal(1), normal(2)
    updated = strategy.update(((base - one) + (base - two)) / 2, State(LAYOUT, 0, base, strategy.init(LAYOUT)))
    np.testing.assert_allclose(updated.params, (one + two) / 2, atol=1e-6)
    assert not updated.optimizer


def test_the_inner_rate_follows_the_schedule_by_epochs() -> None:
    """Constant within an epoch; who only averages gradients has no inner optimiser."""
    run = live("diloco")
    strategy, rates = find_strategy(run), []
    for epoch in (0, 1, 2, 1000):
        inner = strategy.inner(epoch)
        assert inner is not None
        rates.append(inner.spec.learning_rate)
        assert inner.spec.minimum_learning_rate == inner.spec.learning_rate
    peak = run.optimizer.learning_rate
    assert rates == [peak / 3, peak * (2 / 3), peak, run.optimizer.minimum_learning_rate]
    assert find_strategy(live("gradient-averaging")).inner(0) is None


REFUSED = [
    ("diloco", {"hyperparameters": {"outer_momentun": 0.5}}, "did you mean 'outer_momentum'"),
    ("diloco", {"hyperparameters": {"period": 30}}, r"set data\.pages_per_epoch"),
    ("diloco", {"hyperparameters": {"codec": "fp16"}}, r"set averaging\.codec"),
    ("diloco", {"hyperparameters": {"outer_momentum": 1.0}}, "outer_momentum must lie in"),
    ("diloco", {"hyperparameters": {"outer_learning_rate": "fast"}}, "must be a number"),
    ("fedavg", {"hyperparameters": {"outer_momentum": 0.5}}, "it has none"),
    ("gradient-averaging", {"hyperparameters": {"outer_momentum": 0.5}}, "it has none"),
    ("sparseloco", {"hyperparameters": {"outer_momentum": 0.5}}, "has no hyper-parameter 'outer_momentum'"),
    ("sparseloco", {"hyperparameters": {"feedback": 1.5}}, "feedback must lie in"),
    ("sparseloco", {"averaging": {"codec": "int4-block64"}}, "must be sparse for sparseloco"),
    ("sparseloco", {"averaging": {"error_feedback": False}}, "error_feedback must be true for sparseloco"),
    ("diloco", {"averaging": {"codec": "topk32-fp16+fp16"}}, "take the strategy sparseloco"),
    ("diloco", {"audit": spec().audit}, r"\[audit\.replay\] is missing"),
    ("gradient-averaging", {"audit": live("diloco").audit}, r"\[audit\.replay\] must be left out"),
    ("diloco", {"data": dataclasses.replace(spec().data, pages_per_epoch=5000)}, "stretch is too short"),
    ("muloco", {"epoch": dataclasses.replace(spec().epoch, overlap=True)}, r"epoch\.overlap must be false"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_contradictions_are_refused_with_the_remedy(name: str, changes: dict, message: str) -> None:
    """Hyper-parameters that a strategy does not have, and sections that do not suit it."""
    with pytest.raises(ConfigurationError, match=message):
        find_strategy(live(name, **changes))
