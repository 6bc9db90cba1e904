"""One node alone: what of it is its inner optimiser, and what is not.

Averaging with nobody changes nothing, so FedAvg, SPARTA, DDP and DiLoCo with an outer step of 1 and no momentum are
their inner optimiser. That is not so where something else stands between the node and itself: an outer optimiser with
another step or momentum, a lossy codec (what it keeps is what the node goes on with, and feedback pays the rest later),
or DeMo, which has no inner optimiser's update at all: it moves by the sign of what it has sent.
"""

from __future__ import annotations

import math

import pytest
import torch

from distributed_training.strategies.base import Strategy
from distributed_training.strategies.data_parallel import DataParallel
from distributed_training.strategies.demo import DeMo
from distributed_training.strategies.diloco import DiLoCo
from distributed_training.strategies.inner import AdamW
from distributed_training.strategies.local_sgd import Apart, FedAvg
from distributed_training.strategies.muon import Muon
from distributed_training.strategies.sparseloco import SparseLoCo
from distributed_training.strategies.sparta import Sparta
from distributed_training.strategies.streaming import StreamingDiLoCo
from tests.strategies.problem import SPEC, P, Worker, initial, play, rate

INNER, MUON = AdamW(SPEC), Muon(SPEC)
STEPS = 12
PLAIN = {"outer_learning_rate": 1.0, "outer_momentum": 0.0}


def end(strategy: Strategy, steps: int = STEPS) -> torch.Tensor:
    """Parameters of the one node."""
    return play(strategy, 1, steps)[0][0].params.double()


@pytest.mark.parametrize(
    "strategy",
    [
        DataParallel(inner=INNER),
        FedAvg(inner=INNER, period=4),
        Sparta(inner=INNER, share=0.02),
        DiLoCo(inner=INNER, period=4, **PLAIN),
        StreamingDiLoCo(inner=INNER, period=4, fragments=2, overlap=0, mixing=0.0, codec="none", **PLAIN),
    ],
    ids=["ddp", "fedavg", "sparta", "diloco", "streaming"],
)
def test_averaging_with_nobody_is_the_inner_optimiser(strategy: Strategy) -> None:
    """torch's AdamW with torch's clipping, to rounding."""
    worker = Worker(0)
    for _ in range(STEPS):
        worker.train()
    assert float((end(strategy) - worker.vector).abs().max()) < 2e-6


def test_muloco_alone_is_muon() -> None:
    """The same with Muon inside, which test_inner.py holds against an independent one."""
    assert float((end(DiLoCo(inner=MUON, period=4, **PLAIN)) - end(Apart(inner=MUON))).abs().max()) < 2e-6


def test_an_outer_optimiser_of_its_own_is_not_the_inner_one() -> None:
    """DiLoCo as published, alone: each round is stretched by rate times (1 + momentum) and what is left of before."""
    inner = end(Apart(inner=INNER), 4) - initial().double()
    moved = end(DiLoCo(inner=INNER, period=4), 4) - initial().double()
    assert torch.allclose(moved, inner * 0.7 * 1.9, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("codec", ["int4-block64", "int2-block512"])
def test_a_lossy_codec_loses_alone_too_and_owes_it(codec: str) -> None:
    """One round of DiLoCo with error feedback: what the node has moved, and what it owes, is the inner optimiser."""
    strategy = DiLoCo(inner=INNER, period=STEPS, codec=codec, feedback=1.0, **PLAIN)
    state = play(strategy, 1, STEPS)[0][0]
    inner = end(Apart(inner=INNER))
    assert float((state.params.double() - inner).abs().max()) > 1e-3
    assert torch.allclose(state.params.double() - state.vectors["residual"].double(), inner, atol=2e-6)


def test_sparseloco_alone_sends_a_part_and_owes_the_rest() -> None:
    """At most one value in 32 has moved after a round; with the residual it is the inner optimiser."""
    strategy = SparseLoCo(inner=INNER, period=STEPS)
    state = play(strategy, 1, STEPS)[0][0]
    moved = int((state.params != initial()).sum())
    assert 0 < moved <= math.ceil(P / 32)
    inner = end(Apart(inner=INNER))
    assert torch.allclose(state.params.double() - state.vectors["residual"].double(), inner, atol=2e-6)


def test_demo_alone_is_no_adamw() -> None:
    """Alone it still moves by a sign: one step of exactly the learning rate, or none, in each parameter that decays
    not; and the part of the momentum that it sent is gone."""
    strategy = DeMo(inner=INNER)
    state = play(strategy, 1, 1)[0][0]
    moved = (state.params - initial()).double()
    layout = state.node.layout
    plain = torch.cat([moved[t.slice] for t in layout.tensors if len(t.shape) == 1])
    sizes = plain.abs()
    assert torch.all((sizes < 1e-6) | ((sizes - rate(0)).abs() < 1e-6))
    assert float(sizes.max()) > 1e-3
    assert float((end(strategy, 1) - end(Apart(inner=INNER), 1)).abs().max()) > 1e-4
