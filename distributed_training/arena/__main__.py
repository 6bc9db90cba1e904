"""The arena: `python -m distributed_training.arena run --strategy diloco --nodes 4 --steps 500 --model nano`.

Trains simulated nodes with a strategy in this process, on real text, and shows held-out loss, the bytes that each node
moved, and how long it would have taken over the declared links. `--output` writes the record of the run as JSON.
Hyper-parameters of the strategy are given by `--set`, for example `--set period=30 --set codec=int4-block64`.
`python -m distributed_training.arena strategies` lists strategies and what can be set.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from distributed_training.arena.corpus import read_corpus
from distributed_training.arena.links import Link
from distributed_training.arena.record import Subject, record, slowest, times
from distributed_training.arena.simulator import Outcome, Plan, simulate
from distributed_training.arena.sizes import BYTES, size_named
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import Strategy
from distributed_training.strategies.catalogue import CATALOGUE, build, entry_named
from distributed_training.strategies.hyperparameters import Value
from template.config import HelpRequested, option, parse
from template.console import print_error, print_text
from template.errors import ConfigurationError, SubnetError

USAGE = "usage: python -m distributed_training.arena run --strategy NAME [...] | strategies\n"
MEGABIT = 1e6


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to run."""

    strategy: str = option("strategy by name")
    set: tuple[str, ...] = option("its hyper-parameters, name=value", default=())
    nodes: int = option("simulated nodes", default=4)
    steps: int = option("local steps of each node", default=500)
    model: str = option("model by name", default="nano")
    samples: int | None = option("samples a node and step; default: the model's", default=None)
    seed: int = option("seed of weights, data, evaluation set and what strategies draw", default=1)
    text: Path | None = option("folder of text files; default: the standard library's sources", default=None)
    tokenizer: str | None = option("'bytes', or a tokenizer by name; default: by the model", default=None)
    evaluate_every: int = option("steps between two evaluations", default=50)
    evaluation_samples: int = option("held-out samples", default=256)
    device: Literal["cpu", "cuda"] = option("where to compute", default="cpu")
    threads: int = option("threads of the CPU", default=1)
    flops: float = option("operations a second that a node is declared to compute", default=1e13)
    bandwidths: tuple[float, ...] = option("declared links, Mbit/s each way", default=(100.0, 1000.0))
    latency: float = option("seconds of latency of one exchange", default=0.05)
    output: Path | None = option("file for the record", default=None)


@dataclass(frozen=True, kw_only=True)
class InnerConfig:
    """The inner optimiser: clipping, linear warm-up and a cosine over the whole run."""

    learning_rate: float = option("highest learning rate", default=2e-3)
    minimum: float = option("the last one, as a share of it", default=0.1)
    warmup: float = option("share of the steps", default=0.1)
    beta1: float = option("AdamW", default=0.9)
    beta2: float = option("AdamW", default=0.95)
    epsilon: float = option("AdamW", default=1e-8)
    weight_decay: float = option("decoupled; of matrices only", default=0.1)
    clip_norm: float = option("largest norm of a gradient", default=1.0)

    def spec(self, steps: int) -> OptimizerSpec:
        """For a run of so many steps; raises ConfigurationError for impossible numbers."""
        return OptimizerSpec(
            learning_rate=self.learning_rate,
            minimum_learning_rate=self.learning_rate * self.minimum,
            warmup_epochs=min(round(self.warmup * steps), steps - 1),
            decay_epochs=steps,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
        )


def options_of(settings: Sequence[str]) -> dict[str, Value]:
    """`name=value` by name.

    Raises:
        ConfigurationError: another form, or a name twice.
    """
    options: dict[str, Value] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name in options:
            raise ConfigurationError(f"--set takes each hyper-parameter once, as name=value; found '{setting}'")
        options[name] = value
    return options


def plan_of(config: RunConfig) -> Plan:
    """What is simulated; raises ConfigurationError for impossible numbers."""
    size = size_named(config.model)
    return Plan(
        size=size if config.samples is None else dataclasses.replace(size, samples=config.samples),
        nodes=config.nodes,
        steps=config.steps,
        seed=config.seed,
        evaluate_every=config.evaluate_every,
        evaluation_samples=config.evaluation_samples,
    )


def run(config: RunConfig, inner: InnerConfig) -> None:
    """Simulate, show, and write the record."""
    torch.set_num_threads(config.threads)
    device = torch.device(config.device)
    plan, optimizer = plan_of(config), inner.spec(max(config.steps, 1))
    strategy = build(config.strategy, optimizer, options_of(config.set))
    subject = _subject(config, plan, strategy, optimizer)
    corpus = read_corpus(config.text, subject.tokenizer, plan.size)
    console = Console()
    with _progress(console) as progress:
        task = progress.add_task(config.strategy, total=plan.steps, loss=float("nan"))
        outcome = simulate(
            strategy, plan, corpus, device, lambda step, loss: progress.update(task, completed=step, loss=loss)
        )
    console.print(_table(subject, plan, outcome))
    if config.output is not None:
        config.output.write_text(json.dumps(record(subject, plan, corpus, outcome, device), indent=1) + "\n")
        console.print(f"record: {config.output}", soft_wrap=True)


def _subject(config: RunConfig, plan: Plan, strategy: Strategy, optimizer: OptimizerSpec) -> Subject:
    if not config.flops > 0:
        raise ConfigurationError(f"--flops must be positive; found {config.flops}")
    tokenizer = config.tokenizer or ("bytes" if plan.size.vocabulary == BYTES else "distilgpt2")
    names = entry_named(config.strategy).hyperparameters()
    links = {f"{m:g} Mbit/s": Link(bandwidth=m * MEGABIT, latency=config.latency) for m in config.bandwidths}
    return Subject(
        strategy=config.strategy,
        hyperparameters={name: getattr(strategy, name) for name in names},
        optimizer=optimizer,
        model=config.model,
        tokenizer=tokenizer,
        flops=config.flops,
        links=links,
    )


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.3f}"), console=console)


def _table(subject: Subject, plan: Plan, outcome: Outcome) -> Table:
    parameters, traffic = outcome.params.numel(), slowest(outcome, plan.nodes)
    table = Table(title=f"{subject.strategy}, {plan.nodes} nodes, {subject.model} ({parameters:,} parameters)")
    table.add_column("what")
    table.add_column("value", justify="right")
    rows = {
        f"held-out loss after {plan.steps} steps": f"{outcome.curve[-1].loss:.4f}",
        "sent by a node, bytes": f"{traffic.sent:,}",
        "received by a node, bytes": f"{traffic.received:,}",
        "most in one step, bytes": f"{traffic.peak:,}",
        "sent, bytes a parameter and step": f"{traffic.sent / parameters / plan.steps:.5f}",
        **{
            f"simulated seconds at {name}": f"{clock[-1]:,.2f}" for name, clock in times(subject, plan, outcome).items()
        },
        "seconds of this machine": f"{outcome.seconds:,.1f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _strategies() -> Table:
    table = Table("strategy", "inner", "hyper-parameters")
    for name, entry in CATALOGUE.items():
        settings: Mapping[str, Value] = entry.hyperparameters()
        table.add_row(name, entry.inner.__name__, ", ".join(f"{key}={value}" for key, value in settings.items()))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    match argv:
        case ["strategies"]:
            Console().print(_strategies())
            return 0
        case ["run", *rest]:
            pass
        case _:
            print_text(USAGE)
            return 0 if argv in (["--help"], ["-h"]) else 2
    try:
        given = parse(
            {"": RunConfig, "optimizer": InnerConfig}, rest, prog="arena run", description=__doc__.partition("\n")[0]
        )
        run(given[""], given["optimizer"])
    except HelpRequested as request:
        print_text(str(request))
    except SubnetError as error:
        print_error(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
