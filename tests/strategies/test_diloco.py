"""The DiLoCo family and SparseLoCo against workers and an outer torch.optim.SGD, with losses written in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from distributed_training.strategies.base import Strategy
from distributed_training.strategies.catalogue import build
from distributed_training.strategies.diloco import DiLoCo
from distributed_training.strategies.inner import AdamW
from distributed_training.strategies.local_sgd import Apart
from distributed_training.strategies.muon import Muon
from distributed_training.strategies.sparseloco import SparseLoCo
from template.errors import ConfigurationError
from tests.strategies.lossy import four_bits, largest, two_bits
from tests.strategies.problem import SPEC, P, Worker, close, initial, play

INNER = AdamW(SPEC)
NODES, PERIOD, STEPS = 3, 4, 14  # three exchanges, and two steps behind the last one

Lossy = Callable[[np.ndarray], np.ndarray]


def reference(lossy: Lossy, feedback: float, rate: float, momentum: float) -> list[torch.Tensor]:
    """The nodes' parameters after STEPS."""
    workers = [Worker(node) for node in range(NODES)]
    shared = torch.nn.Parameter(initial().double())
    outer = torch.optim.SGD([shared], lr=rate, momentum=momentum, nesterov=momentum > 0)
    owed = [np.zeros(P) for _ in range(NODES)]
    for step in range(1, STEPS + 1):
        for worker in workers:
            worker.train()
        if step % PERIOD:
            continue
        sent = []
        for node, worker in enumerate(workers):
            wanted = feedback * owed[node] + (shared.detach() - worker.vector).numpy()
            sent.append(lossy(wanted))
            owed[node] = wanted - sent[-1]
        shared.grad = torch.from_numpy(np.mean(sent, axis=0))
        outer.step()
        for worker in workers:
            worker.take_over(shared.detach())
    return [worker.vector for worker in workers]


def sparse(values: np.ndarray) -> np.ndarray:
    where, result = largest(values, 32), np.zeros(values.size)
    result[where] = two_bits(values[where], 512)
    return result


@pytest.mark.parametrize(
    ("strategy", "lossy", "feedback", "rate", "momentum"),
    [
        (DiLoCo(inner=INNER, period=PERIOD), np.array, 0.0, 0.7, 0.9),
        (DiLoCo(inner=INNER, period=PERIOD, outer_momentum=0.0), np.array, 0.0, 0.7, 0.0),
        (build("diloco-int4", SPEC, {"period": PERIOD}), lambda v: four_bits(v, 64), 1.0, 0.7, 0.5),
        (build("diloco-int2", SPEC, {"period": PERIOD}), lambda v: two_bits(v, 512), 1.0, 0.7, 0.5),
        (DiLoCo(inner=INNER, period=PERIOD, codec="int2-block64"), lambda v: two_bits(v, 64), 0.0, 0.7, 0.9),
        (SparseLoCo(inner=INNER, period=PERIOD), sparse, 0.95, 1.0, 0.0),
    ],
    ids=["diloco", "no momentum", "4 bits", "2 bits", "2 bits without feedback", "sparseloco"],
)
def test_follows_the_reference(strategy: Strategy, lossy: Lossy, feedback: float, rate: float, momentum: float) -> None:
    """Three exchanges of three nodes, and what each does after the last one."""
    close(
        play(strategy, NODES, STEPS)[0], reference(lossy, feedback, rate, momentum), flips=0 if lossy is np.array else 3
    )


@pytest.mark.parametrize("inner", [INNER, Muon(SPEC)], ids=["diloco", "muloco"])
def test_one_node_with_a_plain_outer_step_is_its_inner_optimiser(inner: AdamW | Muon) -> None:
    """With rate 1 and no momentum the anchor is where the node has come to."""
    strategy = DiLoCo(inner=inner, period=3, outer_learning_rate=1.0, outer_momentum=0.0)
    alone = play(Apart(inner=inner), 1, 12)[0][0].params.double()
    close(play(strategy, 1, 12)[0], [alone], 1e-5)


def test_muloco_is_diloco_with_muon() -> None:
    """The first exchange: the mean of what Muon made of each node's way, through torch's Nesterov."""
    ends = [Apart(inner=Muon(SPEC))] * 2
    states = play(ends[0], 2, 5)[0]
    shared = torch.nn.Parameter(initial().double())
    shared.grad = torch.stack([initial().double() - state.params.double() for state in states]).mean(0)
    torch.optim.SGD([shared], lr=0.7, momentum=0.5, nesterov=True).step()
    close(play(build("muloco", SPEC, {"period": 5}), 2, 5)[0], [shared.detach()] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"period": 0}, "period must be at least 1"),
        ({"outer_learning_rate": 0.0}, "outer_learning_rate must be positive"),
        ({"outer_momentum": 1.0}, "outer_momentum must lie in"),
        ({"codec": "int3"}, "unknown codec"),
        ({"feedback": 0.5}, "feedback must be 0 with codec 'none'"),
        ({"codec": "int4-block64", "feedback": 1.5}, "feedback must lie in"),
        ({"codec": "topk32-fp16"}, "take the strategy sparseloco"),
    ],
)
def test_contradictions_are_refused(options: dict[str, float | str], message: str) -> None:
    """And the message names the remedy."""
    with pytest.raises(ConfigurationError, match=message):
        build("diloco", SPEC, options)


def test_sparseloco_has_no_outer_momentum() -> None:
    """It is not even a hyper-parameter; and the codec must be sparse."""
    with pytest.raises(ConfigurationError, match="no hyper-parameter 'outer_momentum'"):
        build("sparseloco", SPEC, {"outer_momentum": 0.9})
    with pytest.raises(ConfigurationError, match="codec must be sparse here, for example topk32"):
        build("sparseloco", SPEC, {"codec": "int2-block512"})
