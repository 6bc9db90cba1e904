"""Builds records, audits and evidence for the tests of scoring."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from distributed_training.protocol import Record
from distributed_training.run import load_run
from distributed_training.scoring.bandwidth import Measured
from distributed_training.scoring.combine import Evidence, Rules
from distributed_training.scoring.gradient import AuditResult, Finding
from distributed_training.scoring.participation import Standing
from distributed_training.scoring.steps import Steps

NANO = load_run(Path(__file__).parents[2] / "runs" / "nano.toml")
AUDIT = dataclasses.replace(NANO.audit, coordinates=4, loss_tolerance=1e-4, gradient_tolerance=1e-2, threshold=0.9)
SCORING = dataclasses.replace(NANO.scoring, ema=0.2, bandwidth_share=0.2, reference_rate=1e6, penalty_epochs=3)
RULES = Rules(audit=AUDIT, scoring=SCORING)


def rules(**scoring: Any) -> Rules:
    return Rules(audit=AUDIT, scoring=dataclasses.replace(SCORING, **scoring))


def record(**fields: Any) -> Record:
    """A well-formed record; `fields` may break it in ways that the wire would refuse."""
    honest = {"number": 3, "pages": (6, 7), "samples": 8, "loss": 5.5, "gradient": (0.1, -0.2, 0.0, 0.4)}
    return Record.model_construct(**{**honest, **fields})


def audit(*, agreement: float = 1.0, finding: Finding = Finding.AGREES, number: int = 0, uid: int = 0) -> AuditResult:
    return AuditResult(
        uid=uid,
        epoch=0,
        number=number,
        agreement=agreement,
        passed=finding is Finding.AGREES,
        finding=finding,
        loss_difference=0.0,
        gradient_difference=0.0,
    )


FAILED = audit(agreement=0.1, finding=Finding.GRADIENT_DIFFERS)


def evidence(uid: int = 0, samples: int = 100, **fields: Any) -> Evidence:
    """An honest miner at full speed, that delivered in the epoch's one round."""
    honest = {
        "hotkey": f"hot{uid}",
        "audits": (audit(uid=uid),),
        "steps": Steps(samples=samples, counted=1),
        "transfers": (Measured(bytes=2_000_000, seconds=1.0),),
        "standings": (Standing.DELIVERED,),
    }
    return Evidence(uid=uid, **{**honest, **fields})


def silent(uid: int = 0) -> Evidence:
    """A miner that did not answer."""
    return Evidence(uid=uid, hotkey=f"hot{uid}", standings=(Standing.ABSENT,))


seconds = st.floats(min_value=1e-3, max_value=1e3)
transfers = st.lists(st.builds(Measured, bytes=st.integers(0, 10**9), seconds=seconds), max_size=3).map(tuple)
audits = st.lists(st.sampled_from([audit(), audit(agreement=0.95), FAILED]), max_size=3).map(tuple)
standings = st.lists(st.sampled_from(Standing), max_size=3).map(tuple)


@st.composite
def any_evidence(draw: st.DrawFn, uid: int) -> Evidence:
    """Whatever a validator can see of a miner, honest or not, observed or not."""
    return evidence(
        uid,
        draw(st.integers(0, 10_000)),
        audits=draw(audits),
        transfers=draw(transfers),
        standings=draw(standings),
        unobserved=draw(st.sampled_from(["", "", "hub unavailable"])),
    )


@st.composite
def epochs_of(draw: st.DrawFn, max_miners: int = 5, max_epochs: int = 4) -> list[list[Evidence]]:
    """Evidence of some miners over some epochs."""
    miners = draw(st.integers(1, max_miners))
    return [[draw(any_evidence(uid)) for uid in range(miners)] for _ in range(draw(st.integers(1, max_epochs)))]
