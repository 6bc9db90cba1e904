"""What the simulator costs: N nodes of a strategy against a plain loop that trains one model on the same tokens.

Each subject runs in a process of its own, in turns, on one thread: the fixture (4 layers, 128 wide, block 128, 256
bytes; 842,496 parameters), 8 samples a node and step, of which the loop makes one batch. CPU-seconds are user and
system time of the whole process, start-up included; memory is its largest resident set. Of several repeats the least
time and the most memory count. The package `exogym` that PyPI has (0.0.0a0) is a name without code, so that it is not
among the subjects.

    python -m benchmarks.arena [--nodes 4] [--steps 100] [--repeats 2] [--subjects plain ddp diloco]
        [--output benchmarks/results/arena.md]

Wanted: DiLoCo of 4 nodes and 100 steps in at most 1.15 times the CPU-seconds of the loop, in at most 0.8 GB. The ratio
of "training" leaves out start-up: imports, text, building the model. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch.nn import functional

from distributed_training.arena.corpus import Corpus, read_corpus
from distributed_training.arena.simulator import Plan, simulate
from distributed_training.arena.sizes import SIZES
from distributed_training.model.build import build as build_model
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.catalogue import build

PLAIN = "plain"
LIMIT = 540  # seconds of one process


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one process took."""

    cpu: float
    training: float
    memory: float  # MB
    loss: float


def optimizer(steps: int) -> OptimizerSpec:
    return OptimizerSpec(
        learning_rate=1e-3,
        minimum_learning_rate=1e-3,
        warmup_epochs=0,
        decay_epochs=steps,
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        weight_decay=0.1,
        clip_norm=1.0,
    )


def plain(plan: Plan, corpus: Corpus) -> float:
    """One model, torch's AdamW, one batch a step; the loss on the evaluation set, taken twice as by the simulator."""
    size = plan.size
    module = build_model(size.spec, size.vocabulary, size.block, plan.seed)
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in module.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    evaluation = corpus.evaluation(plan.seed, plan.evaluation_samples, size)

    def loss_of(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = module(input_ids=inputs, use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    for step in range(plan.steps + 1):
        if step in (0, plan.steps):
            with torch.no_grad():
                held_out = float(loss_of(evaluation.inputs, evaluation.labels))
        if step < plan.steps:
            batches = [corpus.batch(plan.seed, step + 1, node, size) for node in range(plan.nodes)]
            adamw.zero_grad()
            loss_of(torch.cat([b.inputs for b in batches]), torch.cat([b.labels for b in batches])).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            adamw.step()
    return held_out


def work(subject: str, nodes: int, steps: int) -> Cost:
    """One subject in this process."""
    torch.set_num_threads(1)
    size = SIZES["fixture"]
    plan = Plan(size=size, nodes=nodes, steps=steps, seed=1, evaluate_every=steps, evaluation_samples=64)
    corpus = read_corpus(None, "bytes", size)
    began = time.process_time()
    if subject == PLAIN:
        loss = plain(plan, corpus)
    else:
        strategy = build(subject, optimizer(steps), {})
        loss = simulate(strategy, plan, corpus, torch.device("cpu")).curve[-1].loss
    now = time.process_time()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return Cost(cpu=now, training=now - began, memory=memory, loss=loss)


def measured(subject: str, nodes: int, steps: int) -> Cost:
    """The same in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.arena",
        "--work",
        subject,
        "--nodes",
        str(nodes),
        "--steps",
        str(steps),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True, env=environment)
    return Cost(**json.loads(done.stdout))


def best(costs: list[Cost]) -> Cost:
    return Cost(
        cpu=min(c.cpu for c in costs),
        training=min(c.training for c in costs),
        memory=max(c.memory for c in costs),
        loss=costs[0].loss,
    )


def report(costs: dict[str, Cost], nodes: int, steps: int, repeats: int) -> str:
    """The table in Markdown."""
    base = costs[PLAIN]
    lines = [
        "# What the simulator costs",
        "",
        f"`python -m benchmarks.arena --nodes {nodes} --steps {steps} --repeats {repeats}`: the fixture, one thread, "
        f"torch {torch.__version__}.",
        "",
        "| subject | held-out loss | CPU-seconds | times plain | training only | times plain | memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {c.loss:.6f} | {c.cpu:.1f} | {c.cpu / base.cpu:.3f} | {c.training:.1f} "
        f"| {c.training / base.training:.3f} | {c.memory:.0f} |"
        for name, c in costs.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--subjects", nargs="+", default=[PLAIN, "ddp", "diloco"])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        sys.stdout.write(json.dumps(vars(work(given.work, given.nodes, given.steps))))
        return
    subjects = list(dict.fromkeys([PLAIN, *given.subjects]))
    costs: dict[str, list[Cost]] = {subject: [] for subject in subjects}
    for _ in range(given.repeats):
        for subject in subjects:
            costs[subject].append(measured(subject, given.nodes, given.steps))
    text = report({name: best(found) for name, found in costs.items()}, given.nodes, given.steps, given.repeats)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    if given.output:
        given.output.write_text(text)


if __name__ == "__main__":
    main()
