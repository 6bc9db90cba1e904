"""The simulator against loops without it, and what it promises: seeds, evaluation, delays, refusals."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from distributed_training.arena.corpus import Corpus
from distributed_training.arena.node import LocalNode, in_process
from distributed_training.arena.simulator import Plan, Simulator, simulate
from distributed_training.model.build import build as build_model
from distributed_training.strategies.base import LocalState, Strategy
from distributed_training.strategies.catalogue import CATALOGUE, build
from distributed_training.strategies.inner import AdamW
from distributed_training.strategies.local_sgd import Apart
from template.errors import ConfigurationError, StrategyError
from tests.arena.small import CPU, SIZE, SPEC, plan


def loop(corpus: Corpus, nodes: int, steps: int, seed: int) -> tuple[list[float], torch.nn.Module]:
    """One model, one torch.optim.AdamW, and in each step the samples of all nodes as one batch."""
    module = build_model(SIZE.spec, SIZE.vocabulary, SIZE.block, seed)
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in module.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer, losses = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8), []
    for step in range(steps):
        batches = [corpus.batch(seed, step + 1, node, SIZE) for node in range(nodes)]
        logits = module(input_ids=torch.cat([b.inputs for b in batches])).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), torch.cat([b.labels for b in batches]).flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - 2) / 10)))
            group["lr"] = 3e-3 * (step + 1) / 3 if step < 2 else 3e-4 + 2.7e-3 * cosine
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, module


def parameters(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for _, p in sorted(module.named_parameters())])


@pytest.mark.parametrize("nodes", [1, 4])
def test_ddp_equals_one_loop_over_the_big_batch(corpus: Corpus, nodes: int) -> None:
    """Losses of every step and the parameters at the end, to 1e-6 and to rounding."""
    outcome = simulate(build("ddp", SPEC, {}), plan(nodes, 12), corpus, CPU)
    losses, module = loop(corpus, nodes, 12, seed=1)
    assert outcome.training == pytest.approx(losses, rel=1e-6)
    assert outcome.training[-1] < outcome.training[0] - 0.5
    difference = outcome.params - parameters(module)
    assert float(difference.norm() / outcome.params.norm()) < 1e-6


@pytest.mark.parametrize("name", ["ddp", "fedavg", "sparta", "diloco", "muloco", "streaming-diloco"])
def test_one_node_equals_its_inner_optimiser(corpus: Corpus, name: str) -> None:
    """Where an outer optimiser steps with rate 1 and no momentum; it adds and subtracts, which costs a rounding."""
    outer = {"period": 4, "outer_learning_rate": 1.0, "outer_momentum": 0.0}
    streams = {"codec": "none", "overlap": 0, "mixing": 0.0} if name == "streaming-diloco" else {}
    options = {**outer, **streams} if "outer_momentum" in CATALOGUE[name].hyperparameters() else {}
    averaged = simulate(build(name, SPEC, options), plan(1, 12), corpus, CPU)
    alone = simulate(Apart(inner=CATALOGUE[name].inner(SPEC)), plan(1, 12), corpus, CPU)
    assert averaged.training == pytest.approx(alone.training, rel=1e-6)
    assert averaged.curve[-1].loss == pytest.approx(alone.curve[-1].loss, rel=1e-6)


def test_seeds_decide_on_everything(corpus: Corpus) -> None:
    """The same plan gives the same bits; another seed other weights, samples and another evaluation set."""
    strategy = build("sparta", SPEC, {})
    first, again, other = (simulate(strategy, plan(2, 5, seed), corpus, CPU) for seed in (1, 1, 2))
    assert torch.equal(first.params, again.params)
    assert (first.curve, first.training, first.ledger.entries) == (again.curve, again.training, again.ledger.entries)
    assert first.curve[0].loss != other.curve[0].loss
    assert first.training[0] != other.training[0]


def test_nodes_have_their_own_samples_and_the_same_weights(corpus: Corpus) -> None:
    """At the start nobody differs; after a step apart everybody does, and each in memory of its own."""
    simulator = Simulator(in_process(build("apart", SPEC, {})), plan(3, 1), corpus, CPU)
    assert all(torch.equal(node.params, simulator.nodes[0].params) for node in simulator.nodes)
    simulator.step(1)
    first, second, third = (node.params for node in simulator.nodes)
    assert not torch.equal(first, second)
    assert len({first.data_ptr(), second.data_ptr(), third.data_ptr()}) == 3


def test_the_curve_is_of_the_mean_parameters(corpus: Corpus) -> None:
    """Taken at the start, every five steps and at the end; nodes that exchanged are not apart, others are."""
    outcome = simulate(build("fedavg", SPEC, {"period": 5}), plan(2, 12), corpus, CPU)
    assert [point.step for point in outcome.curve] == [0, 5, 10, 12]
    spreads = [point.spread for point in outcome.curve]
    assert spreads[:3] == [0.0, 0.0, 0.0]
    assert spreads[3] > 0
    assert outcome.curve[-1].loss < outcome.curve[0].loss


def test_what_is_sent_with_a_delay_arrives_later(corpus: Corpus) -> None:
    """A fragment of step 4 with an overlap of 2 changes the anchor in step 6, not before."""
    options = {"period": 4, "fragments": 1, "overlap": 2}
    simulator = Simulator(in_process(build("streaming-diloco", SPEC, options)), plan(2, 6), corpus, CPU)
    node, changed = simulator.nodes[0], []
    assert isinstance(node, LocalNode)
    for step in range(1, 7):
        before = node.state.vectors["anchor"]
        simulator.step(step)
        changed.append(not torch.equal(before, node.state.vectors["anchor"]))
    assert changed == [False] * 5 + [True]


def test_arithmetic_is_counted(corpus: Corpus) -> None:
    """Three times the matrix products of one forward pass, less the gradient of what has no inputs to learn."""
    tokens, width = SIZE.samples * SIZE.block, SIZE.width
    matrices = SIZE.layers * 12 * width * width + SIZE.vocabulary * width
    flops = simulate(build("apart", SPEC, {}), plan(1, 1), corpus, CPU).step_flops
    assert 6 * tokens * matrices <= flops < 6 * tokens * matrices * 1.25  # the rest is attention


class Diverges(Apart):
    """An inner optimiser that leaves the numbers."""

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        return state.advanced().having(state.params * math.inf)


class Grows(Apart):
    """Parameters that do not fit the model."""

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        return state.advanced().having(state.params[:1])


class Hurries(Apart):
    """Two steps for one."""

    def local(self, state: LocalState, gradient: torch.Tensor) -> LocalState:
        return state.advanced().advanced()


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Diverges(inner=AdamW(SPEC)), "diverged"),
        (Grows(inner=AdamW(SPEC)), "parameters became"),
        (Hurries(inner=AdamW(SPEC)), "state of step 2"),
    ],
)
def test_a_strategy_that_breaks_its_contract_is_stopped(corpus: Corpus, strategy: Strategy, message: str) -> None:
    """With what it did."""
    with pytest.raises(StrategyError, match=message):
        simulate(strategy, plan(2, 2), corpus, CPU)


@pytest.mark.parametrize("name", ["nodes", "steps", "evaluate_every", "evaluation_samples"])
def test_impossible_plans_are_refused(name: str) -> None:
    """Nothing can be done no times; seeds are not negative."""
    with pytest.raises(ConfigurationError, match=f"{name} must be at least 1"):
        dataclasses.replace(plan(1, 1), **{name: 0})
    with pytest.raises(ConfigurationError, match="seed"):
        Plan(size=SIZE, nodes=1, steps=1, seed=-1, evaluate_every=1, evaluation_samples=1)
