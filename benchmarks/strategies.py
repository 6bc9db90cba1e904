"""All strategies on the CPU nano: held-out loss, bytes, and simulated time to DDP's loss. Writes docs/strategies.md.

    python -m benchmarks.strategies all                                  the three below, 40 minutes of one core
    python -m benchmarks.strategies run [--part 0/2] [--seconds 500]     trains what has no record yet
    python -m benchmarks.strategies sweep [FAMILY ...]                   what was tried before, seed 1001
    python -m benchmarks.strategies table                                writes docs/strategies.md and .png

Four nodes, 400 steps of 8 samples of 64 bytes, the standard library's sources. Every case is trained on three seeds; a
record is a file in `--records` and is not made twice, so that the command may be stopped and given again, or given
twice at the same time with other parts. A record of anything else than the case that its name says is refused. Learning
rates, and the few hyper-parameters that differ from the catalogue's, were chosen on another seed than the table's:
`SWEEPS` is what was tried.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from distributed_training.arena.contest.spec import links_of
from distributed_training.arena.corpus import Corpus, read_corpus
from distributed_training.arena.leaderboard import Row, entries, read_trials, rows
from distributed_training.arena.optimizer import InnerConfig
from distributed_training.arena.pareto import plot
from distributed_training.arena.record import Subject, record
from distributed_training.arena.simulator import Plan, simulate
from distributed_training.arena.sizes import SIZES
from distributed_training.arena.trial import read_record
from distributed_training.strategies.catalogue import Value, build, entry_named
from template.errors import RecordMismatch, StrategyError
from template.files import replace_file, replace_json

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "benchmarks" / "results" / "strategies"  # the records of the table in docs/strategies.md
NODES, STEPS, SEEDS, TRIED = 4, 400, (1, 2, 3), 1001
CONFIDENCE = 0.95
FLOPS = 2.5e10  # what a core of the machine that this was written on computes
BANDWIDTHS, LATENCY = (100.0, 1000.0), 0.05
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A strategy with its learning rate and what of its hyper-parameters is not the catalogue's."""

    strategy: str
    learning_rate: float
    options: Mapping[str, Value] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join([self.strategy, *(f"{key}={value}" for key, value in self.options.items())])

    @property
    def tried(self) -> str:
        return f"{self.name} at {self.learning_rate:g}"


CASES = (
    Case("ddp", 0.008),
    Case("apart", 0.002),
    Case("fedavg", 0.008),
    Case("diloco", 0.004),
    Case("diloco-int4", 0.004),
    Case("diloco-int2", 0.004),
    Case("muloco", 0.016),
    Case("muloco-int2", 0.016),
    Case("streaming-diloco", 0.004),
    Case("sparseloco", 0.004),
    Case("sparta", 0.004),
    Case("demo", 0.004),
)


def tried(strategy: str, *settings: tuple[float, Mapping[str, Value]]) -> tuple[Case, ...]:
    """Cases of one strategy: learning rate, and what was set."""
    return tuple(Case(strategy, rate, options) for rate, options in settings)


def outer(rate: float, momentum: float, **more: Value) -> dict[str, Value]:
    """An outer optimiser."""
    return {"outer_learning_rate": rate, "outer_momentum": momentum, **more}


SWEEPS: Mapping[str, Sequence[Case]] = {
    "ddp": tried("ddp", *((rate, {}) for rate in (0.002, 0.004, 0.008, 0.016))),
    "apart": tried("apart", *((rate, {}) for rate in (0.002, 0.004, 0.008))),
    "fedavg": tried("fedavg", (0.008, {"period": 1}), (0.004, {"period": 15})),
    "diloco": tried(
        "diloco",
        (0.004, outer(0.7, 0.9)),
        (0.008, outer(0.7, 0.9)),
        (0.004, outer(0.4, 0.9)),
        (0.004, outer(0.4, 0.7)),
        (0.002, outer(0.7, 0.5)),
        (0.004, outer(0.7, 0.5)),
        (0.006, outer(0.7, 0.5)),
        (0.008, outer(0.7, 0.5)),
        (0.002, outer(1.0, 0.5)),
        (0.004, outer(1.0, 0.5)),
        (0.004, outer(1.0, 0.3)),
        (0.004, outer(1.0, 0.0)),
        (0.008, outer(1.0, 0.0)),
    ),
    "diloco, 4 and 2 bits": (
        *tried("diloco-int4", (0.004, outer(0.7, 0.5))),
        *tried("diloco-int2", (0.004, outer(0.7, 0.5))),
    ),
    "muloco": tried(
        "muloco",
        (0.004, outer(0.7, 0.9)),
        (0.008, outer(0.7, 0.9)),
        (0.016, outer(0.7, 0.9)),
        (0.008, outer(0.7, 0.5)),
        (0.016, outer(0.7, 0.5)),
        (0.03, outer(0.7, 0.5)),
        (0.008, outer(1.0, 0.0)),
    ),
    "muloco-int2": tried("muloco-int2", (0.008, outer(0.7, 0.9))),
    "streaming-diloco": tried(
        "streaming-diloco",
        (0.004, outer(0.7, 0.9)),
        (0.006, outer(0.7, 0.9)),
        (0.004, outer(0.7, 0.5)),
        (0.004, outer(1.0, 0.5, mixing=0.0)),
        (0.004, outer(0.4, 0.9, mixing=0.0)),
    ),
    "sparseloco": tried(
        "sparseloco",
        (0.004, {"outer_learning_rate": 1.0}),
        (0.008, {"outer_learning_rate": 1.0}),
        (0.004, {"outer_learning_rate": 1.5}),
        (0.004, {"outer_learning_rate": 2.0}),
        (0.006, {"outer_learning_rate": 2.0}),
        (0.004, {"outer_learning_rate": 3.0}),
        (0.004, {"outer_learning_rate": 2.0, "feedback": 1.0}),
    ),
    "sparta": tried("sparta", *((rate, {}) for rate in (0.002, 0.004, 0.006))),
    "demo": tried(
        "demo",
        (0.001, {"decay": 0.999}),
        (0.003, {"decay": 0.99}),
        (0.003, {"decay": 0.97}),
        (0.001, {"decay": 0.95}),
        (0.002, {"decay": 0.95}),
        (0.004, {"decay": 0.95}),
        (0.006, {"decay": 0.95}),
        (0.004, {"decay": 0.9}),
    ),
}


def plan_of(seed: int) -> Plan:
    """The same for all cases."""
    return Plan(size=SIZES["nano"], nodes=NODES, steps=STEPS, seed=seed, evaluate_every=25, evaluation_samples=256)


def subject_of(case: Case) -> Subject:
    """The strategy with all its settings."""
    optimizer = InnerConfig(learning_rate=case.learning_rate).spec(STEPS)
    strategy = build(case.strategy, optimizer, case.options)
    names = entry_named(case.strategy).hyperparameters()
    return Subject(
        strategy=case.strategy,
        hyperparameters={name: getattr(strategy, name) for name in names},
        optimizer=optimizer,
        model="nano",
        tokenizer="bytes",
        flops=FLOPS,
        links=links_of(BANDWIDTHS, LATENCY),
    )


def train(case: Case, seed: int, corpus: Corpus) -> dict[str, object]:
    """The record of a case."""
    plan, subject = plan_of(seed), subject_of(case)
    strategy = build(case.strategy, subject.optimizer, case.options)
    return record(subject, plan, corpus, simulate(strategy, plan, corpus, CPU), CPU)


def read(path: Path, case: Case, seed: int) -> dict[str, Any]:
    """A record that is there.

    Raises:
        RecordMismatch: it is damaged, or of something else than this case and seed.
    """
    found = read_record(path)
    wanted = {"plan": dataclasses.asdict(plan_of(seed)), "subject": dataclasses.asdict(subject_of(case))}
    if any(found[name] != json.loads(json.dumps(value)) for name, value in wanted.items()):
        raise RecordMismatch(f"{path} is not of {case.tried}, seed {seed}: move it away to run it again")
    return found


def path_of(case: Case, seed: int, folder: Path) -> Path:
    """Of a record."""
    return folder / f"{case.tried.replace(' ', '_')}-{seed}.json"


def pending(cases: Sequence[Case], seeds: Sequence[int], folder: Path) -> Iterator[tuple[Case, int, Path]]:
    """What has no record yet, seed by seed, so that an early stop leaves whole columns; raises as `read`."""
    for seed in seeds:
        for case in cases:
            path = path_of(case, seed, folder)
            if path.exists():
                read(path, case, seed)
            else:
                yield case, seed, path


def work(cases: Sequence[Case], seeds: Sequence[int], given: argparse.Namespace, console: Console) -> bool:
    """Train until all is there (True) or the time is over (False)."""
    torch.set_num_threads(1)
    part, parts = map(int, given.part.split("/"))
    began, corpus = time.monotonic(), read_corpus(None, "bytes", SIZES["nano"])
    for case, seed, path in pending(cases, seeds, given.records):
        if cases.index(case) % parts != part:
            continue
        if time.monotonic() - began > given.seconds:
            return False
        try:
            found = train(case, seed, corpus)
        except StrategyError as error:
            console.print(f"{case.tried}, seed {seed}: {error}", markup=False)
            replace_json(path.with_suffix(".failed"), {"reason": str(error)})
            continue
        replace_json(path, found)
        console.print(f"{case.tried}, seed {seed}: {found['loss']:.4f}", markup=False)
    return True


def swept(folder: Path) -> list[str]:
    """A line of Markdown for each family: what was tried, and how it ended."""
    lines = []
    for family, cases in SWEEPS.items():
        found = []
        for case in cases:
            path = path_of(case, TRIED, folder)
            if path.exists():
                found.append((read(path, case, TRIED)["loss"], case))
        found.sort(key=lambda pair: pair[0])
        texts = [f"{case.tried.removeprefix(family).strip()}: {loss:.3f}" for loss, case in found]
        lines.append(f"| {family} | {'; '.join(texts)} |")
    return lines


def report(found: Sequence[Row], folder: Path, machine: Mapping[str, object]) -> str:
    """docs/strategies.md."""
    links = list(found[0].seconds)
    head = ["strategy, learning rate", "held-out loss", "bytes a parameter and step", "MB sent by a node"]
    head += [f"seconds at {link}" for link in links] + [f"to DDP's loss at {link}" for link in links]
    lines = [
        __doc__.partition("\n")[0].replace("Writes docs/strategies.md.", "").strip(),
        "",
        f"`python -m benchmarks.strategies all`: {NODES} nodes, {STEPS} steps "
        f"of 8 samples of 64 bytes a node, seeds {', '.join(map(str, SEEDS))}, mean and {CONFIDENCE:.0%} interval.",
    ]
    lines += ["", "| " + " | ".join(head) + " |", "|---|" + "---|" * (len(head) - 1)]
    for row in found:
        half = 0.0 if row.loss is None else row.loss.high - row.loss.mean
        texts = [f"{row.mean:.3f} ± {half:.3f}", f"{row.rate:.4f}", f"{row.sent / 1e6:.2f}"]
        texts += [f"{seconds:.1f}" for seconds in row.seconds.values()]
        texts += ["-" if until is None else f"{until:.1f}" for until in row.until.values()]
        lines.append(f"| {row.name} | " + " | ".join(texts) + " |")
    environment = ", ".join(f"{key} {value}" for key, value in machine.items() if key != "wall_seconds")
    return "\n".join([*lines, "", *NOTES, f"Run on: {environment}.", "", *SWEEP_HEAD, *swept(folder)]) + "\n"


NOTES = (
    f"A node computes {FLOPS:.3g} operations a second and has a link of {LATENCY * 1000:.0f} ms latency (declared; "
    "bytes are counted). The loss is that of the mean of all nodes' parameters. DDP's loss is that of the same seed at "
    "the end; - means that a strategy had not reached it with every seed after these steps. Intervals are of so few "
    "seeds that strategies whose intervals touch are not told apart; `arena compare` pairs them by seed. The sizes "
    "`small` and `base` need a GPU and were not run. The records are in `benchmarks/results/strategies`, for `arena "
    "leaderboard`, `compare` and `verify`.",
    "",
    "![loss against bytes and time](strategies.png)",
    "",
)
SWEEP_HEAD = (
    "## What was tried",
    "",
    f"Seed {TRIED}, the same {STEPS} steps; held-out loss after them. What is not named is the catalogue's. The "
    "papers' outer momentum of 0.9 has not come to its speed after 26 exchanges: DiLoCo with it ends where nodes do "
    "that train apart with the same learning rate. The catalogue's 0.5 is for runs of this length; one of hundreds of "
    "exchanges should try 0.9 again. The same goes for SparseLoCo's outer learning rate (2 instead of the paper's 1) "
    "and DeMo's decay (0.95 instead of 0.999).",
    "",
    "| strategy | tried: loss |",
    "|---|---|",
)


def made_rows(folder: Path) -> tuple[list[Row], Mapping[str, object]]:
    """The table's rows, best first, and the machine that its first record was made on.

    Raises:
        RecordMismatch: a record is missing, or of something else.
    """
    checked = [read(path_of(case, seed, folder), case, seed) for case in CASES for seed in SEEDS]
    made = rows(entries(read_trials(path_of(case, seed, folder) for case in CASES for seed in SEEDS)), CONFIDENCE)
    rates = {case.strategy: case.learning_rate for case in CASES}
    return [dataclasses.replace(row, name=f"{row.name}, {rates[row.name]:g}") for row in made], checked[0]["machine"]


def make_table(given: argparse.Namespace, console: Console) -> None:
    made, machine = made_rows(given.records)
    text = "# Strategies compared\n\n" + report(made, given.records, machine)
    replace_file(given.output, text.encode())
    plot(made, given.output.with_suffix(".png"))
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["all", "run", "sweep", "table"])
    parser.add_argument("families", nargs="*", help="of the sweep; default: all")
    parser.add_argument("--records", type=Path, default=ROOT / ".strategies")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "strategies.md")
    parser.add_argument("--part", default="0/1", help="which part of how many")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after so many")
    given, console = parser.parse_args(), Console()
    before = [case for family in given.families or SWEEPS for case in SWEEPS[family]]
    for what, cases, seeds in (("run", CASES, SEEDS), ("sweep", before, (TRIED,))):
        if given.what in (what, "all") and not work(cases, seeds, given, console):
            return 9
    if given.what in ("table", "all"):
        make_table(given, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
