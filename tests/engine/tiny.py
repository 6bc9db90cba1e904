"""A run small enough for unit tests, and micro-batches for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distributed_training.run import ModelSpec, OptimizerSpec, RunSpec, load_run

ROOT = Path(__file__).parents[2]
VOCAB = 61
LENGTH = 16
DECAYING = OptimizerSpec(
    learning_rate=3e-3,
    minimum_learning_rate=3e-4,
    warmup_epochs=2,
    decay_epochs=6,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-6,
    weight_decay=0.1,
    clip_norm=0.5,
)
GPT2 = ModelSpec(family="gpt2", config={"n_layer": 2, "n_head": 2, "n_embd": 32})
LLAMA = ModelSpec(
    family="llama",
    config={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
)


@dataclasses.dataclass(frozen=True)
class Batch:
    number: int
    pages: tuple[int, ...]
    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    samples: int


def spec(**changes: Any) -> RunSpec:
    """The nano run with a tiny GPT-2, and whatever else is to differ."""
    nano = load_run(ROOT / "runs" / "nano.toml")
    data = dataclasses.replace(nano.data, sequence_length=LENGTH)
    return dataclasses.replace(nano, **{"model": GPT2, "data": data, **changes})


def overlapping(**changes: Any) -> RunSpec:
    """The same with overlap."""
    return spec(epoch=dataclasses.replace(spec().epoch, overlap=True), **changes)


def batch(number: int, samples: int = 4, *, ignored: int = 0) -> Batch:
    """Tokens that depend on `number` alone; the first `ignored` labels of each sample do not count."""
    tokens = np.random.default_rng(number).integers(0, VOCAB, size=(samples, LENGTH + 1), dtype=np.int64)
    labels = tokens[:, 1:].copy()
    labels[:, :ignored] = -100
    return Batch(number, (10 * number, 10 * number + 1), tokens[:, :-1].copy(), labels, samples)
