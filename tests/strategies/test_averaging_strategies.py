"""DDP, FedAvg and SPARTA against loops in plain PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distributed_training.model.state import State
from distributed_training.strategies.data_parallel import DataParallel
from distributed_training.strategies.gradient_averaging import GradientAveraging
from distributed_training.strategies.inner import AdamW
from distributed_training.strategies.local_sgd import FedAvg
from distributed_training.strategies.sparta import Sparta, drawn
from template.errors import ConfigurationError
from tests.strategies.problem import LAYOUT, SPEC, P, Worker, close, gradient, initial, play

INNER = AdamW(SPEC)


def test_ddp_is_one_optimiser_on_the_mean_gradient() -> None:
    """Three nodes stay alike and follow one worker that is given the mean of their gradients."""
    workers = [Worker(node) for node in range(3)]
    for _ in range(20):
        mean = torch.stack([worker.gradient() for worker in workers]).mean(0)
        for worker in workers:
            worker.apply(mean)
    states = play(DataParallel(inner=INNER), 3, 20)[0]
    close(states, [worker.vector for worker in workers])
    assert all(torch.equal(state.params, states[0].params) for state in states)


def test_ddp_is_what_the_live_subnet_does() -> None:
    """The live subnet's update of the same gradients, in its own arithmetic, ends at the same parameters."""
    live = GradientAveraging(SPEC)
    state = State(LAYOUT, 0, initial().numpy(), live.init(LAYOUT))
    for step in range(10):
        parts = [gradient(node, step, state.params.astype(np.float64)) for node in range(2)]
        state = live.update(np.mean(parts, axis=0, dtype=np.float32), state)
    close(play(DataParallel(inner=INNER), 2, 10)[0], [torch.from_numpy(state.params.copy())] * 2)


def test_fedavg_averages_parameters_every_period() -> None:
    """Eleven steps of three nodes with an exchange every four: equal after the eighth, apart after the eleventh."""
    workers = [Worker(node) for node in range(3)]
    for step in range(1, 12):
        for worker in workers:
            worker.train()
        if step % 4 == 0:
            mean = torch.stack([worker.vector for worker in workers]).mean(0)
            for worker in workers:
                worker.take_over(mean)
    close(play(FedAvg(inner=INNER, period=4), 3, 11)[0], [worker.vector for worker in workers])


def test_sparta_averages_what_all_draw() -> None:
    """Each step the drawn parameters of all nodes become their mean, and no others."""
    workers = [Worker(node) for node in range(3)]
    for step in range(1, 9):
        for worker in workers:
            worker.train()
        stacked = torch.stack([worker.vector for worker in workers])
        where = torch.from_numpy(drawn(5, step, P, round(0.02 * P)))
        stacked[:, where] = stacked[:, where].mean(0)
        for worker, vector in zip(workers, stacked, strict=True):
            worker.take_over(vector)
    close(play(Sparta(inner=INNER, share=0.02), 3, 8)[0], [worker.vector for worker in workers])


def test_what_is_drawn() -> None:
    """The numbers of the smallest of uniform draws: distinct, ascending, others in each step, all equally often."""
    assert drawn(1, 1, 10_001, 10_001).tolist() == list(range(10_001))
    first, second = set(drawn(1, 1, 10_001, 50).tolist()), set(drawn(1, 2, 10_001, 50).tolist())
    assert len(first) == len(second) == 50
    assert len(first & second) < 10
    counts = np.bincount(np.concatenate([drawn(3, step, 40, 10) for step in range(2000)]), minlength=40)
    deviation = math.sqrt(2000 * 0.25 * 0.75)
    assert np.abs(counts - 500).max() < 5 * deviation


def test_equal_draws_count_in_order() -> None:
    """Of a million numbers hundreds of draws of 32 bits are equal; still exactly as many are taken as were asked."""
    assert np.unique(drawn(1, 1, 1_000_001, 400_000)).size == 400_000


@pytest.mark.parametrize("strategy", [DataParallel(inner=INNER), FedAvg(inner=INNER), Sparta(inner=INNER)])
def test_one_node_is_its_inner_optimiser(strategy: DataParallel | FedAvg | Sparta) -> None:
    """Alone, each is AdamW, and moves no bytes."""
    worker = Worker(0)
    for _ in range(12):
        worker.train()
    states, entries = play(strategy, 1, 12)
    close(states, [worker.vector])
    assert all(entry.sent == entry.received == 0 for entry in entries)


def test_impossible_numbers_are_refused() -> None:
    """With the limits in the message."""
    with pytest.raises(ConfigurationError, match="period must be at least 1"):
        FedAvg(inner=INNER, period=0)
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigurationError, match="share must lie in"):
            Sparta(inner=INNER, share=share)
