"""A model, a corpus and a plan small enough for unit tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from distributed_training.arena.corpus import Corpus, read_corpus
from distributed_training.arena.simulator import Plan
from distributed_training.arena.sizes import Size
from distributed_training.run import OptimizerSpec

CPU = torch.device("cpu")
SIZE = Size(layers=2, heads=2, width=32, block=16, vocabulary=256, samples=4)
PAGE = 512
TEXT = "a tree of nodes that train one model together sends few bytes and learns from every page of text"
WORDS = TEXT.split()
SPEC = OptimizerSpec(
    learning_rate=3e-3,
    minimum_learning_rate=3e-4,
    warmup_epochs=2,
    decay_epochs=12,
    beta1=0.9,
    beta2=0.95,
    epsilon=1e-8,
    weight_decay=0.1,
    clip_norm=1.0,
)


def plan(nodes: int, steps: int, seed: int = 1) -> Plan:
    return Plan(size=SIZE, nodes=nodes, steps=steps, seed=seed, evaluate_every=5, evaluation_samples=16)


def write_text(folder: Path) -> None:
    """Three documents, 30 kB in all."""
    random = np.random.default_rng(0)
    for name in ("a.txt", "b.txt", "c.txt"):
        (folder / name).write_text(" ".join(random.choice(WORDS, 2000)))


def corpus(folder: Path) -> Corpus:
    write_text(folder)
    return read_corpus(folder, "bytes", SIZE, PAGE)
