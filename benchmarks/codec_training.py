"""What lossy codecs cost in loss: a run's model trained through each of them, all miners in one process.

Each configuration trains the same engines on the same micro-batches. Their contributions go through the codec as in a
round: cut into one share a miner and into chunks, each part encoded for its reducer, the average encoded once and
decoded by everybody. Only sockets are missing. After the last update the held-out loss is compared with that of codec
"none"; "other data" is "none" on other pages, and shows how much of a difference is chance.

    python -m benchmarks.codec_training [--updates 100] [--micro-batches 2] [--processes 2]
        [--only none int4-block64:sender] [--output benchmarks/results/codec_training.md]

Wanted after 100 updates with error feedback: within 1 % for 4 bits, within 2 % for 2 bits. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import math
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from distributed_training.averaging.codecs.codec import Floats
from distributed_training.averaging.codecs.registry import CodecPair, pair_named
from distributed_training.averaging.feedback import Attempt, ErrorFeedback
from distributed_training.averaging.partition import chunks, partition
from distributed_training.averaging.reducer import weighted_mean
from distributed_training.data.build import build_loader
from distributed_training.engine.engine import Engine
from distributed_training.run import load_run

CHUNK = 1 << 18  # values, as in a round


@dataclass(frozen=True)
class Setting:
    """One row: the codec, who keeps errors ("", "sender" or "both"), and the first uid, which decides on the data."""

    codec: str
    feedback: str = ""
    first_uid: int = 0

    @property
    def label(self) -> str:
        return self.codec + (", other data" if self.first_uid else "")


@dataclass(frozen=True)
class Result:
    setting: Setting
    loss: float
    bits: float  # sent by one miner, of parts and averages, for each parameter of either
    bytes_per_update: float
    seconds: float


SETTINGS = (
    Setting("none"),
    Setting("none", first_uid=8),
    Setting("fp16"),
    Setting("bf16"),
    Setting("int8-block256"),
    Setting("int4-block64"),
    Setting("int4-block64", "sender"),
    Setting("int4-block64", "both"),
    Setting("int2-block64"),
    Setting("int2-block64", "sender"),
    Setting("int2-block64", "both"),
    Setting("int2-block64+int8-block256", "sender"),
    Setting("int2-block64+int4-block64", "sender"),
    Setting("topk32-fp16+int8-block256", "sender"),
    Setting("topk32-int2-block64+int4-block64"),
    Setting("topk32-int2-block64+int4-block64", "sender"),
)


class Round:
    """Averages as a group of `n` would; counts the bytes that miner 0 sends."""

    def __init__(self, codecs: CodecPair, n: int, size: int, feedback: str) -> None:
        self.bytes = 0
        self.values = 0  # that they stand for
        self._codecs = codecs
        self._ranges = partition(size, [1.0] * n)
        self._senders = [ErrorFeedback(size) for _ in range(n)] if feedback else None
        self._reducers = [ErrorFeedback(size) for _ in range(n)] if feedback == "both" else None

    def average(self, vectors: Sequence[Floats], weights: Sequence[float]) -> Floats:
        """The average [P] of the contributions [P] that everybody ends with."""
        average = np.empty_like(vectors[0])
        senders = [keeper.attempt() for keeper in self._senders or ()]
        for reducer, (start, stop) in enumerate(self._ranges):
            keeper = self._reducers[reducer] if self._reducers else None
            attempt = keeper.attempt() if keeper else None
            for low, high in chunks(stop - start, CHUNK):
                where = slice(start + low, start + high)
                parts = [self._part(i, reducer, vectors[i][where], where.start, senders) for i in range(len(vectors))]
                mean, codec = np.empty_like(parts[0]), self._codecs.average
                weighted_mean(parts, weights, mean)
                payload = attempt.encode(codec, where.start, mean) if attempt else codec.encode(mean)
                codec.decode(payload, mean.size, out=average[where])
                if reducer == 0:
                    self._count(len(payload) * (len(vectors) - 1), mean.size * (len(vectors) - 1))
            if keeper and attempt:
                keeper.commit(attempt)
        for keeper, attempt in zip(self._senders or (), senders, strict=True):
            keeper.commit(attempt)
        return average

    def _part(self, sender: int, reducer: int, values: Floats, start: int, attempts: Sequence[Attempt]) -> Floats:
        """A part as its reducer sees it; its own one comes without loss."""
        codec = self._codecs.parts
        if sender == reducer:
            return attempts[sender].whole(start, values, codec.largest) if attempts else values
        payload = attempts[sender].encode(codec, start, values) if attempts else codec.encode(values)
        if sender == 0:
            self._count(len(payload), values.size)
        return codec.decode(payload, values.size)

    def _count(self, size: int, values: int) -> None:
        self.bytes += size
        self.values += values


def train(setting: Setting, run: Path, miners: int, updates: int, micro_batches: int) -> Result:
    """One configuration from the first update to the last."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    spec = load_run(run)
    loader = build_loader(spec)
    engines = [Engine(spec, loader.tokenizer.vocab_size) for _ in range(miners)]
    group = Round(pair_named(setting.codec), miners, engines[0].layout.size, setting.feedback)
    for epoch in range(updates):
        for uid, engine in enumerate(engines, setting.first_uid):
            for number in range(micro_batches):
                engine.train(loader.micro_batch(epoch, uid, number))
        given = [engine.contribution() for engine in engines]
        average = group.average([c.vector for c in given], [float(c.samples) for c in given])
        for engine in engines:
            engine.apply(average)
    if len({engine.state_hash for engine in engines}) != 1:
        raise RuntimeError(f"{setting.label}: the miners ended with different states")
    loss = engines[0].held_out_loss(loader.held_out())
    bits = 8 * group.bytes / group.values
    return Result(setting, loss, bits, group.bytes / updates, time.perf_counter() - began)


def table(results: Sequence[Result]) -> str:
    """The results in Markdown, each against codec "none"."""
    base = next((r.loss for r in results if r.setting == Setting("none")), math.nan)
    lines = [
        "| codec | error feedback | bits/parameter | bytes sent, a miner and update | held-out loss | against none |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for r in results:
        kept = {"": "", "sender": "senders", "both": "senders and reducers"}[r.setting.feedback]
        change = f"{100 * (r.loss / base - 1):+.2f} %"
        lines.append(
            f"| {r.setting.label} | {kept} | {r.bits:.2f} | {r.bytes_per_update:,.0f} | {r.loss:.4f} | {change} |"
        )
    return "\n".join(lines)


def _setting(text: str) -> Setting:
    codec, _, feedback = text.partition(":")
    if feedback not in ("", "sender", "both"):
        raise SystemExit(f"feedback '{feedback}' of '{text}': nothing, sender or both")
    return Setting(codec, feedback)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/nano.toml"))
    parser.add_argument("--miners", type=int, default=4)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--micro-batches", type=int, default=2, help="of one miner and update")
    parser.add_argument("--only", nargs="*", default=None, metavar="CODEC[:FEEDBACK]", help="these rows, not all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None, help="a Markdown file for the table")
    arguments = parser.parse_args()
    console = Console()
    fixed = (arguments.run, arguments.miners, arguments.updates, arguments.micro_batches)
    context = multiprocessing.get_context("spawn")
    chosen = SETTINGS if arguments.only is None else [_setting(text) for text in arguments.only]
    results: list[Result] = []
    with concurrent.futures.ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        for result in pool.map(train, chosen, *(itertools.repeat(value) for value in fixed)):
            results.append(result)
            label = f"{result.setting.label} {result.setting.feedback}"
            console.print(f"{label}: {result.loss:.4f} in {result.seconds:.0f} s", highlight=False)
    spec = load_run(arguments.run)
    samples = arguments.miners * arguments.micro_batches * spec.data.pages_per_micro_batch
    samples *= -(-spec.data.page_size // spec.data.sequence_length)
    text = (
        f"# Codecs: loss of the {spec.name} run after {arguments.updates} updates\n\n"
        f"`python -m benchmarks.codec_training`: {arguments.miners} miners, about {samples} samples an update "
        f"(the run itself takes {spec.epoch.target_samples}; fewer make noisier gradients).\n\n{table(results)}\n"
    )
    console.print(text, highlight=False, soft_wrap=True)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
