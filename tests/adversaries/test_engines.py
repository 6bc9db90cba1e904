"""Each way of cheating is caught by what is meant to catch it, and by nothing else: on the product's own model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from distributed_training.data.build import build_loader
from distributed_training.data.loader import Loader
from distributed_training.engine.audit import Auditor
from distributed_training.engine.engine import Engine
from distributed_training.localnet.__main__ import KINDS
from distributed_training.protocol import Record
from distributed_training.run import RunSpec
from distributed_training.scoring.gradient import AuditResult, Finding, judge
from tests.adversaries.engines import ENGINES
from tests.adversaries.miner import SABOTAGES
from tests.adversaries.poison import POISONS
from tests.roles import AUDIT, run_spec

UID = 3
BATCHES = 4
EPOCH = 1  # the second one: some cheats live on what they did in the first
ALL = list(range(BATCHES))
CALIBRATED = 3e-4  # honest float32 machines differ by less than a tenth of it, bfloat16 by several times as much


@dataclass
class Suspect:
    """An engine that trained the first micro-batches of its assignment in two epochs."""

    spec: RunSpec
    loader: Loader
    engine: Engine

    def recomputed(self, number: int) -> Record:
        auditor = Auditor(self.spec, self.loader.tokenizer.vocab_size)
        return auditor.recompute(EPOCH, self.engine.state.params, self.loader.micro_batch(EPOCH, UID, number))

    def audits(self) -> list[AuditResult]:
        results = []
        for record in self.engine.records:
            batch = self.loader.micro_batch(EPOCH, UID, record.number)
            results.append(judge(UID, EPOCH, record, self.recomputed(record.number), batch.pages, self.spec.audit))
        return results


def suspect(folder: Path, kind: str) -> Suspect:
    spec = run_spec(folder, audit=dataclasses.replace(AUDIT, gradient_tolerance=CALIBRATED))
    loader = build_loader(spec)
    engine = ENGINES[kind](spec, loader, UID, "cpu")
    for epoch in (0, EPOCH):
        for number in range(BATCHES):
            engine.train(loader.micro_batch(epoch, UID, number))
        if epoch < EPOCH:
            engine.contribution()
            gradient = np.random.default_rng(0).normal(0, 0.01, engine.layout.size)
            engine.apply(gradient.astype(np.float32))
    return Suspect(spec, loader, engine)


@pytest.mark.parametrize(
    ("kind", "passing"),
    [
        ("free-rider", []),
        ("lazy", [0, 2]),
        ("copycat", []),
        ("plagiarist", []),
        ("off-assignment", []),
        ("same-page", [0]),
        ("stale", []),
        ("no-backward", []),
        ("low-precision", []),
        ("quantised", []),
        ("replay", []),
        ("overclaim", []),
        ("dies-in-round", ALL),
        *((kind, ALL) for kind in POISONS),
    ],
)
def test_what_an_audit_finds(tmp_path: Path, kind: str, passing: list[int]) -> None:
    """Made-up, borrowed, old and rounded numbers fail; work that was done passes, whatever becomes of it later."""
    accused = suspect(tmp_path, kind)
    assert [audit.number for audit in accused.audits() if audit.passed] == passing


@pytest.mark.parametrize("kind", ["lazy-tenth", "copycat-part"])
def test_who_cheats_now_and_then_is_caught_where_it_does(tmp_path: Path, kind: str) -> None:
    """Its other records pass: that is what the number of audits is for."""
    for audit in (accused := suspect(tmp_path, kind)).audits():
        honest = accused.recomputed(audit.number).loss == pytest.approx(accused.engine.records[audit.number].loss)
        assert audit.passed is honest


@pytest.mark.parametrize(
    ("kind", "finding"),
    [
        ("plagiarist", Finding.OFF_ASSIGNMENT),
        ("off-assignment", Finding.OFF_ASSIGNMENT),
        ("overclaim", Finding.WRONG_SAMPLES),
        ("no-backward", Finding.GRADIENT_DIFFERS),
        ("quantised", Finding.GRADIENT_DIFFERS),
    ],
)
def test_what_gives_it_away(tmp_path: Path, kind: str, finding: Finding) -> None:
    """The finding says what was done, to whoever reads why a miner is not paid."""
    assert {audit.finding for audit in suspect(tmp_path, kind).audits()} == {finding}


@pytest.mark.parametrize("kind", sorted(ENGINES.keys() - {"plagiarist", "off-assignment", "overclaim"}))
def test_a_cheat_looks_like_a_miner(tmp_path: Path, kind: str) -> None:
    """Assigned pages, all of them, with the right samples: nothing but a recomputation shows it."""
    accused = suspect(tmp_path, kind)
    records = accused.engine.records
    assert [r.number for r in records] == ALL
    assert [r.pages for r in records] == [accused.loader.pages(EPOCH, UID, n) for n in ALL]
    assert accused.engine.samples == sum(accused.loader.micro_batch(EPOCH, UID, n).samples for n in ALL)
    assert all(len(r.gradient) == accused.spec.audit.coordinates for r in records)


@pytest.mark.parametrize("kind", sorted(ENGINES))
def test_what_goes_into_the_average(tmp_path: Path, kind: str) -> None:
    """Only NaN and infinities are stopped by the round itself; they reach the share of every reducer."""
    vector = suspect(tmp_path, kind).engine.contribution().vector
    assert bool(np.isfinite(vector).all()) is (kind not in ("nan", "infinite"))
    if not np.isfinite(vector).all():
        assert not any(np.isfinite(part).all() for part in np.array_split(vector, 6))


@pytest.mark.parametrize("kind", sorted(POISONS))
def test_poison_is_not_what_was_trained(tmp_path: Path, kind: str) -> None:
    """Reports are honest, and what goes into the average is something else."""
    accused = suspect(tmp_path, kind)
    honest = Engine.contribution(accused.engine).vector
    poison = accused.engine.contribution().vector
    with np.errstate(invalid="ignore"):
        assert not np.linalg.norm(poison - honest) < np.linalg.norm(honest) / 2


def test_the_localnet_offers_those_that_there_are() -> None:
    """Names on the command line and behaviours are the same; the one that kills itself is for tests only."""
    assert set(KINDS) == (ENGINES.keys() | SABOTAGES.keys()) - {"dies-in-round"}
