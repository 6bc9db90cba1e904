"""How far honest machines drift apart when a stretch of inner steps is replayed, and how far cheats are off.

    python -m benchmarks.replay [--run runs/nano-diloco.toml] [--stretches 4 16] [--epochs 2] [--output TABLE.md]

One miner trains; at the beginning of each epoch and in its middle, stretches of several lengths are computed again in
other ways: with more threads, in slices of one sample, both; and as cheats do: in bfloat16, with other pages, at a rate
that is 1 % higher, without any step. What is shown is what scoring/replay.py compares with `audit.replay.tolerance`:
the drift of the parameters or of a vector of the inner state, whichever is larger.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from distributed_training.calibrate.machines import threads_of
from distributed_training.data.build import build_loader
from distributed_training.data.loader import Loader, MicroBatch
from distributed_training.engine.inner_steps import Standing, inner_of, step
from distributed_training.engine.replica import Replica
from distributed_training.model.layout import flatten
from distributed_training.run import RunSpec, load_run
from distributed_training.scoring.replay import drift
from distributed_training.strategies.base import LocalState
from distributed_training.strategies.inner import Inner
from distributed_training.strategies.registry import find_strategy
from template.config import HelpRequested, option, parse
from template.console import print_error, print_text
from template.errors import SubnetError

ONE_SAMPLE = 1  # logits at a time
COORDINATES = torch.arange(1)
Batches = Callable[[int, int], MicroBatch]  # (epoch, number)


@dataclass(frozen=True, kw_only=True)
class ReplayBenchmarkConfig:
    """What to replay."""

    run: Path = option("run file with inner steps", default=Path("runs/nano-diloco.toml"))
    stretches: tuple[int, ...] = option("lengths in inner steps", default=(4, 16))
    epochs: int = option("epochs to train, two places in each", default=2)
    threads: int = option("threads of the other machine", default=2)
    output: Path | None = option("file for the table; default: print it", default=None)


@dataclass(frozen=True)
class Way:
    """One way to compute a stretch."""

    name: str
    replica: Replica
    inner: Callable[[int], Inner]
    batches: Batches
    threads: int = 1

    def run(self, epoch: int, start: LocalState, first: int, count: int) -> LocalState:
        """The state after `count` micro-batches of `epoch` from `first` on."""
        with threads_of(self.threads):
            self.replica.place(start.params)
            for number in range(first, first + count):
                inner = self.inner(epoch)
                _, start = step(self.replica, inner, start, self.batches(epoch, number), COORDINATES)
                self.replica.place(start.params)
        return start


def ways_of(spec: RunSpec, loader: Loader, count: int) -> tuple[Way, list[Way]]:
    """The miner's own way, and the others."""
    size, strategy = loader.tokenizer.vocab_size, find_strategy(spec)
    faster = dataclasses.replace(spec.optimizer, learning_rate=1.01 * spec.optimizer.learning_rate)
    raised = find_strategy(dataclasses.replace(spec, optimizer=faster))

    def honest(epoch: int) -> Inner:
        return inner_of(strategy, epoch)

    def own(epoch: int, number: int) -> MicroBatch:
        return loader.micro_batch(epoch, 1, number)

    def other(epoch: int, number: int) -> MicroBatch:
        return loader.micro_batch(epoch, 2, number)

    half = dataclasses.replace(spec, precision="bfloat16")
    plain, split = Replica(spec, size), Replica(spec, size, logits=ONE_SAMPLE)
    return Way("the miner", plain, honest, own), [
        Way(f"honest: {count} threads", plain, honest, own, count),
        Way("honest: one sample at a time", split, honest, own),
        Way(f"honest: both, {count} threads", split, honest, own, count),
        Way("bfloat16", Replica(half, size), honest, own),
        Way("rate 1 % higher", plain, lambda epoch: inner_of(raised, epoch), own),
        Way("other pages", plain, honest, other),
    ]


def compared(spec: RunSpec, loader: Loader, config: ReplayBenchmarkConfig) -> Mapping[str, Mapping[int, list[float]]]:
    """Drifts by way and length of the stretch."""
    miner, others = ways_of(spec, loader, config.threads)
    standing = Standing(miner.inner(0), miner.replica.layout, torch.device("cpu"))
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    at, half = standing.empty(flatten(miner.replica.module)), loader.micro_batches_per_epoch // 2
    for epoch in range(config.epochs):
        for first in (0, half):
            for count in config.stretches:
                reported = miner.run(epoch, at, first, count)
                for way in others:
                    replayed = way.run(epoch, at, first, count)
                    found[way.name][count].append(worst(at, replayed, reported, standing))
            at = miner.run(epoch, at, first, half)
    return found


def worst(start: LocalState, replayed: LocalState, reported: LocalState, standing: Standing) -> float:
    """The largest drift, as a validator finds it."""
    a, b, c = map(standing.state, (start, replayed, reported))
    vectors = [(a.params, b.params, c.params), *((a.optimizer[n], b.optimizer[n], c.optimizer[n]) for n in a.optimizer)]
    return max(drift(*each) for each in vectors)


def table(found: Mapping[str, Mapping[int, list[float]]]) -> str:
    """Markdown: honest ways with their largest drift, cheats with their smallest."""
    lengths = sorted({length for by_length in found.values() for length in by_length})
    lines = [f"| computed | {' | '.join(f'{n} steps' for n in lengths)} |", "|---|" + "---|" * len(lengths)]
    for name, by_length in found.items():
        pick = max if name.startswith("honest") else min
        lines.append(f"| {name} | {' | '.join(f'{pick(by_length[n]):.1e}' for n in lengths)} |")
    return "\n".join([*lines, "| no steps | " + " | ".join("1" for _ in lengths) + " |", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for bad arguments and runs that cannot be trained here."""
    try:
        found = parse({"": ReplayBenchmarkConfig}, argv, prog="benchmarks.replay", description=str(__doc__))
        config: ReplayBenchmarkConfig = found[""]
        torch.set_num_threads(1)
        spec = load_run(config.run)
        loader = build_loader(spec)
        text = table(compared(spec, loader, config))
        loader.close()
    except HelpRequested as wanted:
        print_text(str(wanted))
        return 0
    except SubnetError as error:
        print_error(str(error))
        return 2
    if config.output is None:
        Console().print(text, highlight=False, soft_wrap=True, markup=False)
    else:
        config.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
