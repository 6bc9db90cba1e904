"""Each way of cheating is caught by what is meant to catch it, and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from distributed_training.data.build import build_loader
from distributed_training.data.loader import Loader
from distributed_training.engine.audit import Auditor
from distributed_training.engine.engine import Engine
from distributed_training.localnet.__main__ import KINDS
from distributed_training.run import RunSpec
from distributed_training.scoring.gradient import AuditResult, judge
from tests.adversaries.engines import ENGINES
from tests.roles import run_spec

UID = 3
BATCHES = 4


@dataclass
class Suspect:
    """An engine that trained the first micro-batches of its assignment."""

    spec: RunSpec
    loader: Loader
    engine: Engine

    def audits(self) -> list[AuditResult]:
        auditor = Auditor(self.spec, self.loader.tokenizer.vocab_size)
        results = []
        for record in self.engine.records:
            batch = self.loader.micro_batch(0, UID, record.number)
            recomputed = auditor.recompute(0, self.engine.state.params, batch)
            results.append(judge(UID, 0, record, recomputed, batch.pages, self.spec.audit))
        return results


def suspect(folder: Path, kind: str) -> Suspect:
    spec = run_spec(folder)
    loader = build_loader(spec)
    engine = ENGINES[kind](spec, loader, UID, "cpu")
    for number in range(BATCHES):
        engine.train(loader.micro_batch(0, UID, number))
    return Suspect(spec, loader, engine)


@pytest.mark.parametrize(
    ("kind", "passing"),
    [
        ("free-rider", []),
        ("lazy", [0, 2]),
        ("copycat", []),
        ("nan", [0, 1, 2, 3]),
        ("dies-in-round", [0, 1, 2, 3]),
    ],
)
def test_what_an_audit_finds(tmp_path: Path, kind: str, passing: list[int]) -> None:
    """Made-up and borrowed numbers fail; work that was done passes, whatever becomes of it later."""
    accused = suspect(tmp_path, kind)
    assert [audit.number for audit in accused.audits() if audit.passed] == passing


@pytest.mark.parametrize("kind", ENGINES)
def test_a_cheat_looks_like_a_miner(tmp_path: Path, kind: str) -> None:
    """Assigned pages, all of them, with the right samples: nothing but a recomputation shows it."""
    accused = suspect(tmp_path, kind)
    records = accused.engine.records
    assert [r.number for r in records] == list(range(BATCHES))
    assert [r.pages for r in records] == [accused.loader.pages(0, UID, n) for n in range(BATCHES)]
    assert accused.engine.samples == sum(accused.loader.micro_batch(0, UID, n).samples for n in range(BATCHES))
    assert all(len(r.gradient) == accused.spec.audit.coordinates for r in records)


@pytest.mark.parametrize(("kind", "finite"), [("free-rider", True), ("lazy", True), ("copycat", True), ("nan", False)])
def test_what_goes_into_the_average(tmp_path: Path, kind: str, finite: bool) -> None:
    """Only one of them is stopped by the round itself; its poison reaches the share of every reducer."""
    accused = suspect(tmp_path, kind)
    vector = accused.engine.contribution().vector
    assert bool(np.isfinite(vector).all()) is finite
    if not finite:
        assert all(np.isnan(part).any() for part in np.array_split(vector, 6))


def test_the_localnet_offers_those_that_there_are() -> None:
    """Names on the command line and engines are the same; the one that kills itself is for tests only."""
    assert set(KINDS) == ENGINES.keys() - {"dies-in-round"}
