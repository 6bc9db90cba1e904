"""N nodes in one process, one after another in each step, with one model between them.

The simulator computes losses and gradients, gives each node its own samples, and moves messages through the ledger; a
strategy sees its state, its gradient and what comes back. Its code runs in this process and is trusted to keep to that:
a stranger's does not belong here. Seeds decide on the initial weights, the order of the data, the evaluation set and
what strategies draw: the same numbers again on the same machine, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from distributed_training.arena.corpus import Corpus
from distributed_training.arena.ledger import Ledger, exchange
from distributed_training.arena.model import SharedModel
from distributed_training.arena.sizes import Size
from distributed_training.strategies.base import LocalState, Node, Strategy
from distributed_training.strategies.message import Received, mean_of
from template.errors import ConfigurationError, StrategyError


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
    return Simulator(strategy, plan, corpus, device).run(progress)


class Simulator:
    """The nodes of one run."""

    def __init__(self, strategy: Strategy, plan: Plan, corpus: Corpus, device: torch.device) -> None:
        self._strategy, self._plan, self._corpus, self._device = strategy, plan, corpus, device
        self._model = SharedModel(plan.size, plan.seed, device)
        self._evaluation = corpus.evaluation(plan.seed, plan.evaluation_samples, plan.size)
        nodes = (Node(rank, plan.nodes, plan.seed, self._model.layout) for rank in range(plan.nodes))
        self._states = [strategy.init(self._model.initial, node) for node in nodes]
        self._due: list[tuple[int, Received]] = []
        self._ledger = Ledger()

    @property
    def states(self) -> Sequence[LocalState]:
        """The nodes' states by rank."""
        return tuple(self._states)

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
        state = self._states[rank]
        batch = self._corpus.batch(self._plan.seed, step, rank, self._plan.size)
        loss, gradient = self._model.gradient(state.params, batch)
        self._states[rank] = _sound(self._strategy.local(state, gradient), step, state)
        return loss

    def _communicate(self, step: int) -> None:
        outgoing = []
        for rank, state in enumerate(self._states):
            sent, messages = self._strategy.send(state)
            self._states[rank] = _sound(sent, step, state)
            outgoing.append(messages)
        entries, results = exchange(step, outgoing, self._device)
        self._ledger.enter(entries)
        self._due.extend(results)
        arrived = [received for due, received in self._due if due == step]
        self._due = [(due, received) for due, received in self._due if due != step]
        for received in arrived:
            states = (self._strategy.receive(state, received) for state in self._states)
            self._states = [_sound(new, step, old) for new, old in zip(states, self._states, strict=True)]

    def _mean(self) -> torch.Tensor:
        return mean_of([state.params for state in self._states])

    def _point(self, step: int) -> Point:
        mean = self._mean()
        squares = [float((state.params - mean).square().mean()) for state in self._states]
        return Point(step, self._model.loss(mean, self._evaluation), (sum(squares) / len(squares)) ** 0.5)


def _sound(new: LocalState, step: int, old: LocalState) -> LocalState:
    """`new`, unless it is not a state of this node after `step` steps."""
    params = new.params
    if new.node is not old.node or new.step != step:
        raise StrategyError(f"a state of step {new.step} of node {new.node.rank} where {step} was expected")
    if params.shape != old.params.shape or params.dtype != torch.float32 or params.device != old.params.device:
        raise StrategyError(f"parameters became {params.dtype} {list(params.shape)} on {params.device}")
    return new
