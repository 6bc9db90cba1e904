"""N nodes, one after another in each step, with one model between them.

The simulator computes losses and gradients, gives each node its own samples, and moves messages through the ledger; a
strategy sees its state, its gradient and what comes back. `simulate` runs its code in this process and trusts it to
keep to that; a stranger's belongs in a sandbox (sandbox/submission.py), where the same simulator drives it. Seeds
decide on the initial weights, the order of the data, the evaluation set and what strategies draw: the same numbers
again on the same machine, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from distributed_training.arena.corpus import Corpus
from distributed_training.arena.ledger import Ledger, exchange
from distributed_training.arena.model import SharedModel
from distributed_training.arena.node import Place, SimulatedNode, in_process
from distributed_training.arena.sizes import Size
from distributed_training.strategies.base import Node, Strategy
from distributed_training.strategies.message import Received, mean_of
from template.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run. Held-out loss is taken before the first step, every `evaluate_every` steps, and at the end."""

    size: Size
    nodes: int
    steps: int
    seed: int
    evaluate_every: int
    evaluation_samples: int

    def __post_init__(self) -> None:
        for name in ("nodes", "steps", "evaluate_every", "evaluation_samples"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1; found {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigurationError(f"seed must not be negative; found {self.seed}")


@dataclass(frozen=True)
class Point:
    """After `step` steps: held-out loss of the mean of all nodes' parameters, and how far they are from it (RMS)."""

    step: int
    loss: float
    spread: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """A run: the curve, mean training loss of each step [steps], the ledger, and the mean parameters at its end [P].

    `step_flops`: operations of one node's forward and backward in one step. `seconds`: of this machine's wall clock.
    """

    curve: tuple[Point, ...]
    training: tuple[float, ...]
    ledger: Ledger
    params: torch.Tensor
    step_flops: int
    seconds: float


def simulate(
    strategy: Strategy,
    plan: Plan,
    corpus: Corpus,
    device: torch.device,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Outcome:
    """Train `plan.nodes` nodes; `progress` is told step and training loss.

    Raises:
        ConfigurationError: model or strategy cannot be built as asked.
        StrategyError: training diverged, or the strategy broke its contract.
    """
    return Simulator(in_process(strategy), plan, corpus, device).run(progress)


class Simulator:
    """The nodes of one run, each where `place` puts it."""

    def __init__(self, place: Place, plan: Plan, corpus: Corpus, device: torch.device) -> None:
        self._plan, self._corpus, self._device = plan, corpus, device
        self._model = SharedModel(plan.size, plan.seed, device)
        self._evaluation = corpus.evaluation(plan.seed, plan.evaluation_samples, plan.size)
        nodes = (Node(rank, plan.nodes, plan.seed, self._model.layout) for rank in range(plan.nodes))
        self._nodes = [place(self._model.initial, node) for node in nodes]
        self._due: list[tuple[int, Received]] = []
        self._ledger = Ledger()

    @property
    def nodes(self) -> Sequence[SimulatedNode]:
        """The nodes by rank."""
        return tuple(self._nodes)

    def run(self, progress: Callable[[int, float], None]) -> Outcome:
        """All steps."""
        plan, begin = self._plan, time.monotonic()
        flops = self._model.flops(self._corpus.batch(plan.seed, 1, 0, plan.size))
        curve, training = [self._point(0)], []
        for step in range(1, plan.steps + 1):
            training.append(self.step(step))
            progress(step, training[-1])
            if step % plan.evaluate_every == 0 or step == plan.steps:
                curve.append(self._point(step))
        seconds = time.monotonic() - begin
        return Outcome(tuple(curve), tuple(training), self._ledger, self._mean(), flops, seconds)

    def step(self, step: int) -> float:
        """One step of every node, and what is due after it; the mean training loss. Steps count from 1."""
        losses = [self._compute(rank, step) for rank in range(self._plan.nodes)]
        self._communicate(step)
        return sum(losses) / len(losses)

    def _compute(self, rank: int, step: int) -> float:
        node = self._nodes[rank]
        batch = self._corpus.batch(self._plan.seed, step, rank, self._plan.size)
        loss, gradient = self._model.gradient(node.params, batch)
        node.local(gradient)
        return loss

    def _communicate(self, step: int) -> None:
        entries, results = exchange(step, [node.send() for node in self._nodes], self._device)
        self._ledger.enter(entries)
        self._due.extend(results)
        arrived = [received for due, received in self._due if due == step]
        self._due = [(due, received) for due, received in self._due if due != step]
        for received in arrived:
            for node in self._nodes:
                node.receive(received)

    def _mean(self) -> torch.Tensor:
        return mean_of([node.params for node in self._nodes])

    def _point(self, step: int) -> Point:
        mean = self._mean()
        squares = [float((node.params - mean).square().mean()) for node in self._nodes]
        return Point(step, self._model.loss(mean, self._evaluation), (sum(squares) / len(squares)) ** 0.5)
