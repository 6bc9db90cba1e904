"""Samples a second of the miner's engine against a plain PyTorch loop on the same model and micro-batches.

Both do one epoch at a time, in turns, in one process: forward, loss and backward of every micro-batch, then clipping
and AdamW. The engine also keeps records, checks that gradients are finite, and makes the canonical update and its hash.

    python -m benchmarks.engine [--run runs/nano.toml] [--device cuda] [--repetitions 7]

Wanted: a ratio of at least 0.95. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from distributed_training.engine.engine import Engine
from distributed_training.model.build import build
from distributed_training.run import RunSpec, load_run


@dataclass(frozen=True)
class Batch:
    """Random tokens in the loader's form."""

    number: int
    pages: tuple[int, ...]
    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    samples: int


class PlainLoop:
    """What one would write for a single machine."""

    def __init__(self, spec: RunSpec, vocab_size: int, device: str) -> None:
        module = build(spec.model, vocab_size, spec.data.sequence_length, spec.seed)
        self.module = module.to(device).train()
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=spec.optimizer.learning_rate)
        self.clip = spec.optimizer.clip_norm
        self.half = spec.precision == "bfloat16"
        self.device = device

    def epoch(self, batches: list[Batch]) -> None:
        for batch in batches:
            inputs = torch.from_numpy(batch.input_ids).to(self.device)
            labels = torch.from_numpy(batch.labels).to(self.device)
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.half):
                logits = self.module(input_ids=inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
            (loss / len(batches)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def engine_epoch(engine: Engine, batches: list[Batch]) -> None:
    for batch in batches:
        engine.train(batch)
    engine.apply(engine.contribution().vector)


def random_batches(spec: RunSpec, vocab_size: int, count: int, samples: int) -> list[Batch]:
    generator = np.random.default_rng(0)
    shape = (count, samples, spec.data.sequence_length + 1)
    tokens = generator.integers(0, vocab_size, size=shape, dtype=np.int64)
    return [Batch(k, (k,), t[:, :-1].copy(), t[:, 1:].copy(), samples) for k, t in enumerate(tokens)]


def seconds(function: Callable[[], None], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def report(times: dict[str, list[float]], samples: int, title: str) -> Table:
    table = Table(title=title)
    for column in ("loop", "samples/s, median", "slowest", "fastest", "ratio"):
        table.add_column(column, justify="left" if column == "loop" else "right")
    plain = statistics.median(times["plain PyTorch"])
    for name, values in times.items():
        middle = statistics.median(values)
        rates = [f"{samples / value:.1f}" for value in (middle, max(values), min(values))]
        table.add_row(name, *rates, f"{plain / middle:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/nano.toml"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vocab-size", type=int, default=257)
    parser.add_argument("--micro-batches", type=int, default=16, help="of one epoch")
    parser.add_argument("--samples", type=int, default=8, help="of one micro-batch")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = load_run(arguments.run)
    batches = random_batches(spec, arguments.vocab_size, arguments.micro_batches, arguments.samples)
    plain = PlainLoop(spec, arguments.vocab_size, arguments.device)
    engine = Engine(spec, arguments.vocab_size, arguments.device)
    loops: dict[str, Callable[[], None]] = {
        "plain PyTorch": lambda: plain.epoch(batches),
        "engine": lambda: engine_epoch(engine, batches),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for repetition in range(arguments.repetitions + 1):
        for name, loop in loops.items():
            taken = seconds(loop, arguments.device)
            if repetition:  # the first one warms up
                times[name].append(taken)
    samples = arguments.micro_batches * arguments.samples
    size = f"{engine.layout.size:,} parameters, {arguments.micro_batches} x {arguments.samples} samples an epoch"
    Console().print(report(times, samples, f"{spec.name} on {arguments.device}: {size}"))


if __name__ == "__main__":
    main()
