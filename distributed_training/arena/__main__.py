"""The arena: `python -m distributed_training.arena run --strategy diloco --nodes 4 --steps 500 --model nano`.

Trains simulated nodes with a strategy in this process, on real text, and shows held-out loss, the bytes that each node
moved, and how long it would have taken over the declared links. `--output` writes the record of the run as JSON.
Hyper-parameters of the strategy are given by `--set`, for example `--set period=30 --set codec=int4-block64`.
`--submission FILE` takes a stranger's strategy instead, in sandboxes (sandbox/submission.py).
`python -m distributed_training.arena strategies` lists strategies and what can be set. The other commands are over
records (inspection.py) and of the contest (contest/command.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from distributed_training.arena.contest.command import (
    ChainConfig,
    ContestConfig,
    ReadyConfig,
    RevealConfig,
    SubmitConfig,
    judge,
    ready,
    reveal,
    submit,
)
from distributed_training.arena.contest.runner import sandboxed
from distributed_training.arena.contest.spec import links_of
from distributed_training.arena.corpus import Corpus, read_corpus
from distributed_training.arena.inspection import (
    CompareConfig,
    LeaderboardConfig,
    VerifyConfig,
    show_comparison,
    show_leaderboard,
    verify_records,
)
from distributed_training.arena.optimizer import InnerConfig
from distributed_training.arena.record import Subject, record, slowest, times
from distributed_training.arena.sandbox.backends import Choice, find_backend
from distributed_training.arena.sandbox.limits import Limits
from distributed_training.arena.sandbox.submission import run_submission, source_hash
from distributed_training.arena.simulator import Outcome, Plan, simulate
from distributed_training.arena.sizes import BYTES, size_named
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.catalogue import CATALOGUE, build, entry_named
from distributed_training.strategies.hyperparameters import Value
from template.chain.wallet import WalletConfig
from template.config import HelpRequested, option, parse
from template.console import print_error, print_text
from template.errors import ConfigurationError, SubnetError
from template.telemetry import TelemetryConfig, open_telemetry

USAGE = """usage: python -m distributed_training.arena COMMAND [...]

  run --strategy NAME            train simulated nodes, and write a record; or run --submission FILE
  strategies                     what there is, and what can be set
  leaderboard RECORDS            records side by side
  compare A B                    two entries, paired by seed
  verify RECORD                  run a record again: the same to the bit?
  submit FILE --contest SPEC     commit to a strategy of yours (miners)
  reveal FILE.sealed             reveal it once the round has closed (miners)
  ready --contest SPEC           can this machine judge it: text and sandbox (validators)
  contest --contest SPEC         judge the rounds and set the weights of mechanism 1 (validators)
"""
READABLE = "a submission can read the standard library, which is the corpus here; to compare strangers' give --text"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to run."""

    strategy: str | None = option("strategy by name", default=None)
    submission: Path | None = option("file that defines a strategy, run in a sandbox", default=None)
    sandbox: Choice = option("how it is shut in; auto: the first that works here", default="auto")
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

    def __post_init__(self) -> None:
        if (self.strategy is None) == (self.submission is None):
            raise ConfigurationError("give either --strategy NAME or --submission FILE")
        if self.submission is not None and self.set:
            raise ConfigurationError("--set is for strategies by name; a submission has its numbers in its file")


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


@dataclass(frozen=True)
class Contestant:
    """What is run, by its name in the record, and how."""

    name: str
    hyperparameters: Mapping[str, Value]
    simulate: Callable[[Plan, Corpus, torch.device, Callable[[int, float], None]], Outcome]
    submission: str | None = None
    sandbox: str | None = None


def contestant(config: RunConfig, optimizer: OptimizerSpec, limits: Limits) -> Contestant:
    """A built-in strategy in this process, or a submission in sandboxes.

    Raises:
        ConfigurationError: no such strategy or file.
        SandboxUnavailable: no sandbox works here.
    """
    if config.submission is not None:
        return _submission(config.submission, config.sandbox, optimizer, limits)
    assert config.strategy is not None
    strategy = build(config.strategy, optimizer, options_of(config.set))
    numbers = {name: getattr(strategy, name) for name in entry_named(config.strategy).hyperparameters()}
    return Contestant(config.strategy, numbers, functools.partial(simulate, strategy))


def _submission(file: Path, choice: Choice, optimizer: OptimizerSpec, limits: Limits) -> Contestant:
    try:
        source = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--submission: {file} cannot be read: {error.strerror}") from error
    backend = find_backend(choice)

    def simulated(plan: Plan, corpus: Corpus, device: torch.device, progress: Callable[[int, float], None]) -> Outcome:
        return run_submission(source, optimizer, plan, corpus, device, backend, limits, progress)

    return Contestant("submission", {}, simulated, source_hash(source), backend.name)


def run(config: RunConfig, inner: InnerConfig, limits: Limits) -> None:
    """Simulate, show, and write the record."""
    torch.set_num_threads(config.threads)
    device = torch.device(config.device)
    plan, optimizer = plan_of(config), inner.spec(max(config.steps, 1))
    who = contestant(config, optimizer, limits)
    subject = _subject(config, plan, who, optimizer)
    corpus = read_corpus(config.text, subject.tokenizer, plan.size)
    console = Console()
    if who.sandbox is not None:
        console.print(f"submission {who.submission}, each node in a sandbox of kind '{who.sandbox}'", soft_wrap=True)
        if config.text is None:
            console.print(f"[yellow]{READABLE}", soft_wrap=True)
    with _progress(console) as progress:
        task = progress.add_task(who.name, total=plan.steps, loss=float("nan"))
        outcome = who.simulate(
            plan, corpus, device, lambda step, loss: progress.update(task, completed=step, loss=loss)
        )
    console.print(_table(subject, plan, outcome))
    if config.output is not None:
        config.output.write_text(json.dumps(record(subject, plan, corpus, outcome, device), indent=1) + "\n")
        console.print(f"record: {config.output}", soft_wrap=True)


def _subject(config: RunConfig, plan: Plan, who: Contestant, optimizer: OptimizerSpec) -> Subject:
    if not config.flops > 0:
        raise ConfigurationError(f"--flops must be positive; found {config.flops}")
    tokenizer = config.tokenizer or ("bytes" if plan.size.vocabulary == BYTES else "distilgpt2")
    return Subject(
        strategy=who.name,
        hyperparameters=who.hyperparameters,
        optimizer=optimizer,
        model=config.model,
        tokenizer=tokenizer,
        flops=config.flops,
        links=links_of(config.bandwidths, config.latency),
        submission=who.submission,
        sandbox=who.sandbox,
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
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv == ["strategies"]:
        Console().print(_strategies())
        return 0
    if not argv or argv[0] not in COMMANDS:
        print_text(USAGE)
        return 0 if argv in (["--help"], ["-h"]) else 2
    sections, command = COMMANDS[argv[0]]
    try:
        given = parse(sections, argv[1:], prog=f"arena {argv[0]}", description=_summary(sections[""]))
        command(given)
    except HelpRequested as request:
        print_text(str(request))
    except SubnetError as error:
        print_error(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _summary(section: type) -> str:
    return (section.__doc__ or "").partition("\n")[0]


def _judge(given: Given) -> None:
    telemetry = open_telemetry(given["telemetry"])
    try:
        asyncio.run(judge(given[""], given["subtensor"], given["wallet"], sandboxed, telemetry))
    finally:
        telemetry.close()


Given = Mapping[str, Any]
_ON_CHAIN: Mapping[str, type] = {"subtensor": ChainConfig, "wallet": WalletConfig}

COMMANDS: Mapping[str, tuple[Mapping[str, type], Callable[[Given], None]]] = {
    "run": (
        {"": RunConfig, "optimizer": InnerConfig, "limits": Limits},
        lambda given: run(given[""], given["optimizer"], given["limits"]),
    ),
    "leaderboard": ({"": LeaderboardConfig}, lambda given: show_leaderboard(given[""], Console())),
    "compare": ({"": CompareConfig}, lambda given: show_comparison(given[""], Console())),
    "verify": ({"": VerifyConfig}, lambda given: verify_records(given[""], sandboxed(Limits()), Console())),
    "submit": (
        {"": SubmitConfig, **_ON_CHAIN},
        lambda given: asyncio.run(submit(given[""], given["subtensor"], given["wallet"], Console())),
    ),
    "reveal": (
        {"": RevealConfig, "subtensor": ChainConfig},
        lambda given: asyncio.run(reveal(given[""], given["subtensor"], Console())),
    ),
    "ready": ({"": ReadyConfig}, lambda given: ready(given[""], Console())),
    "contest": ({"": ContestConfig, **_ON_CHAIN, "telemetry": TelemetryConfig}, _judge),
}


if __name__ == "__main__":
    sys.exit(main())
