"""Speed of the codecs on one core: float32 MB/s of encoding, decoding and both, against NumPy's cast to half precision.

If hivemind is installed its own codecs are measured in the same run. All take turns, chunk by chunk; the best of all
repetitions is shown, because the machine may be doing other things.

    python -m benchmarks.codecs [--values 262144] [--repetitions 30] [--output benchmarks/results/codecs.md]

Wanted for both directions together: 400 MB/s at 8 bits, 200 MB/s at 4 and 2 bits. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from distributed_training.averaging.codecs.codec import Floats
from distributed_training.averaging.codecs.registry import codec_named

NAMES = (
    "none", "fp16", "bf16", "int8-block256", "int4-block64", "int2-block64", "topk32-fp16", "topk32-int2-block64",
)  # fmt: skip
BASELINE = "numpy: cast to half and back"
COLUMNS = ("codec", "bits/value", "encode MB/s", "decode MB/s", "both MB/s", "against numpy's half", "relative error")


@dataclass
class Subject:
    """Something that encodes and decodes; the best seconds of each, and what comes back."""

    name: str
    encode: Callable[[Floats], Any]
    decode: Callable[[Any], Floats]
    size: Callable[[Any], int]
    encoding: float = math.inf
    decoding: float = math.inf

    def measure(self, values: Floats) -> None:
        began = time.perf_counter()
        data = self.encode(values)
        middle = time.perf_counter()
        self.decode(data)
        ended = time.perf_counter()
        self.encoding, self.decoding = min(self.encoding, middle - began), min(self.decoding, ended - middle)

    @property
    def both(self) -> float:
        return self.encoding + self.decoding

    def row(self, values: Floats, baseline: float) -> list[str]:
        data = self.encode(values)
        error = np.linalg.norm(self.decode(data) - values) / np.linalg.norm(values)
        speeds = [f"{values.nbytes / seconds / 1e6:,.0f}" for seconds in (self.encoding, self.decoding, self.both)]
        bits = 8 * self.size(data) / values.size
        return [self.name, f"{bits:.2f}", *speeds, f"{baseline / self.both:.2f}x", f"{error:.4f}"]


def ours(name: str, n: int) -> Subject:
    codec, out = codec_named(name), np.empty(n, dtype=np.float32)
    return Subject(name, codec.encode, lambda data: codec.decode(data, n, out), len)


def numpys() -> Subject:
    return Subject(BASELINE, lambda x: x.astype(np.float16), lambda x: x.astype(np.float32), lambda x: x.nbytes)


def hiveminds() -> list[Subject]:
    """Its codecs of the same bits; none if it is not installed."""
    try:
        from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor
        from hivemind.proto.runtime_pb2 import CompressionType
    except ImportError:
        return []

    def subject(label: str, kind: int) -> Subject:
        return Subject(
            f"hivemind {label}",
            lambda x: serialize_torch_tensor(torch.from_numpy(x), kind),
            lambda message: deserialize_torch_tensor(message).numpy(),
            lambda message: len(message.buffer),
        )

    kinds = [("FLOAT16", CompressionType.FLOAT16), ("UNIFORM_8BIT", CompressionType.UNIFORM_8BIT)]
    return [subject(label, kind) for label, kind in [*kinds, ("QUANTILE_8BIT", CompressionType.QUANTILE_8BIT)]]


def measure(subjects: list[Subject], values: Floats, repetitions: int) -> tuple[list[Subject], list[str]]:
    """Let all take turns. What cannot run with the installed libraries is left out, and named with its error."""
    able, unable = [], []
    for subject in subjects:
        try:
            subject.measure(values)
            able.append(subject)
        except TypeError as error:  # hivemind 1.1.12 cannot decode 8 bits with NumPy 2.4
            unable.append(f"{subject.name}: {error}")
    for _ in range(repetitions):
        for subject in able:
            subject.measure(values)
    return able, unable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=1 << 18, help="of one chunk; a round's chunks have 262,144")
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--output", type=Path, default=None, help="a Markdown file for the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values = np.random.default_rng(0).standard_normal(arguments.values, dtype=np.float32)
    subjects = [numpys(), *(ours(name, values.size) for name in NAMES), *hiveminds()]
    able, unable = measure(subjects, values, arguments.repetitions)
    rows = [subject.row(values, able[0].both) for subject in able]
    table = Table(*COLUMNS, title=f"Codecs: {values.size:,} normal values, one core", caption="\n".join(unable) or None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if arguments.output is not None:
        lines = [f"# Codecs: speed on one core, {values.size:,} normal values", "", "`python -m benchmarks.codecs`", ""]
        lines += [f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines += ["", *(f"Cannot run here: {text}." for text in unable)]
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
