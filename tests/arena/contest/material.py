"""Trials, entries and a contest small enough for unit tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from distributed_training.arena.contest.fingerprint import Fingerprint
from distributed_training.arena.contest.judgement import Entry, Trials
from distributed_training.arena.contest.spec import (
    CalendarSpec,
    ContestSpec,
    PaymentSpec,
    RevealSpec,
    RuleSpec,
    TrialSpec,
    links_of,
)
from distributed_training.arena.corpus import Corpus
from distributed_training.arena.optimizer import InnerConfig
from distributed_training.arena.simulator import Outcome, Plan, simulate
from distributed_training.arena.trial import Mark, Trial
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import Strategy
from tests.arena.small import CPU

SEEDS = (11, 12, 13, 14)
LINKS = links_of((100.0, 1000.0), 0.05)
RULES = RuleSpec(entries=8, replicates=4, confidence=0.99, epsilon=0.005, quality=0.7, similarity=0.9)
BUDGET = 100.0
START = 5.5  # loss of an initial model


def trial(name: str, seed: int, loss: float, sent: int = 1000, spread: float = 0.0, params: str = "") -> Trial:
    """One that ends at `loss` after 20 steps of one second each."""
    curve = tuple(
        Mark(step, START + (loss - START) * step / 20, spread if step else 0.0, {link: float(step) for link in LINKS})
        for step in (0, 10, 20)
    )
    return Trial(
        name=name,
        source=None,
        seed=seed,
        task="task",
        nodes=4,
        steps=20,
        parameters=1_000_000,
        links=LINKS,
        curve=curve,
        sent=(sent,) * 4,
        received=(sent,) * 4,
        params_sha256=params or f"{name}/{seed}",
    )


def trials(name: str, loss: float, noise: tuple[float, ...] = (0.0, 0.01, -0.01, 0.005), **changes: int) -> Trials:
    """One of each seed; `noise` is what the seeds do to the loss of everybody."""
    pairs = zip(SEEDS, noise, strict=True)
    return {seed: trial(name, seed, loss * (1 + part), **changes) for seed, part in pairs}  # type: ignore[arg-type]


REFERENCES = {"ddp": trials("ddp", 2.0), "diloco": trials("diloco", 2.2), "apart": trials("apart", 2.5, sent=0)}


def entry(hotkey: str, loss: float, block: int = 1, words: int | None = None) -> Entry:
    """Its code is its own, unless it has the `words` of another."""
    first = 1000 * (sum(map(ord, hotkey)) if words is None else words)
    code = Fingerprint(range(first, first + 100))
    return Entry(hotkey, (block, hotkey), f"source-of-{hotkey}", code, trials(hotkey, loss))


def contest(folder: Path) -> ContestSpec:
    """Five steps of two nodes on the text in `folder`; rounds of 20 blocks from block 10 on.

    Seeds come from the chain, and with one in some hundreds so short a training goes astray: the confidence is so low
    that one such seed of three decides nothing.
    """
    return ContestSpec(
        name="tiny",
        calendar=CalendarSpec(start=10, length=20, commit=8, reveal=4, seed_delay=2),
        trial=TrialSpec(
            model="nano",
            tokenizer="bytes",
            nodes=2,
            samples=2,
            steps=5,
            evaluate_every=5,
            evaluation_samples=8,
            text=str(folder / "text"),
            flops=1e10,
            bandwidths=(100.0, 1000.0),
            latency=0.05,
            budget=1e6,
        ),
        optimizer=InnerConfig(),
        references={"ddp": 0.002, "apart": 0.001},
        rules=dataclasses.replace(RULES, replicates=3, quality=0.2, confidence=0.5, epsilon=0.001),
        reveals=RevealSpec(place=str(folder / "reveals"), largest=20_000),
        weights=PaymentSpec(interval=50),
    )


def trusted(source: bytes, optimizer: OptimizerSpec, plan: Plan, corpus: Corpus) -> Outcome:
    """Runs a source of these tests in this process."""
    space: dict[str, Callable[[OptimizerSpec], Strategy]] = {}
    exec(source, space)
    return simulate(space["strategy"](optimizer), plan, corpus, CPU)
