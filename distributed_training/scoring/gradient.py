"""The gradient score: does what a miner reported agree with the validator's own recomputation?

A record is judged against the same micro-batch recomputed at the same base state. The validator's numbers set every
scale, so nothing that a miner reports can widen its own tolerance. Reference: design of the run spec's [audit] section.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from distributed_training.protocol import Record
from distributed_training.run import AuditSpec
from distributed_training.scoring.improvement import Improvement
from template.errors import StateError

# Rounding in the logits is absolute, so a loss near zero (nats per token) is compared on this scale, not on its own.
LOSS_SCALE_FLOOR = 0.01


class Finding(StrEnum):
    """What an audit of one record found. Only the first one is paid."""

    AGREES = "agrees"
    WRONG_NUMBER = "another micro-batch was reported"
    OFF_ASSIGNMENT = "pages are not the assigned ones"
    WRONG_SAMPLES = "samples are not what the pages hold"
    WRONG_LENGTH = "wrong number of gradient values"
    NOT_FINITE = "NaN or infinity reported"
    LOSS_DIFFERS = "loss differs"
    GRADIENT_DIFFERS = "gradient differs"
    WRONG_WEIGHT = "what was put into the average weighs another number of samples than the records"
    NOT_THE_SUM = "what was put into the average is not what the records add up to"
    NOT_ITS_WORK = "what was put into the average does not hold the recomputed work"
    INFLATED = "what was put into the average is larger than the work"
    NOT_COMMITTED = "it did not commit to the states that its steps led to"
    OTHER_BASE = "its steps began at other parameters than the epoch's"
    OTHER_INNER_STATE = "its steps began with another inner state than its last epoch ended with"
    STEPS_DIFFER = "its steps lead elsewhere"
    NO_IMPROVEMENT = "what was put into the average does the model no good, on its own pages or on others"
    NOT_ITS_STEPS = "what was put into the average is not what its steps have led to"
    NOT_SHOWN = "it does not show a state that it has committed to"
    NOT_REDUCED = "the average that it gave everybody is not that of what it was sent"


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """One recomputed record or, where `number` is None, what was put into the average (contribution.py).

    `agreement` lies in [0, 1]: 1 within both tolerances, beyond them the inverse of the larger excess. The differences
    are relative to the validator's numbers; None where they were not compared or do not fit a float. `alignment` and
    `inflation` are those of a contribution with a recomputed record, `drift` that of replayed steps (replay.py).
    `improvement` is what a contribution does to the loss.
    """

    uid: int
    epoch: int
    number: int | None
    agreement: float
    passed: bool
    finding: Finding
    loss_difference: float | None
    gradient_difference: float | None
    alignment: float | None = None
    inflation: float | None = None
    drift: float | None = None
    improvement: Improvement | None = None


def on_contribution(
    uid: int,
    epoch: int,
    finding: Finding,
    *,
    difference: float | None = None,
    surplus: float | None = None,
    size: float | None = None,
) -> AuditResult:
    """What was found of what a miner put into the average, or made of others' parts: all right, or not at all.

    `surplus` is the alignment, `size` the inflation; a `difference` that does not fit a float is left out.
    """
    passed = finding is Finding.AGREES
    return AuditResult(
        uid=uid,
        epoch=epoch,
        number=None,
        agreement=1.0 if passed else 0.0,
        passed=passed,
        finding=finding,
        loss_difference=None,
        gradient_difference=difference if difference is not None and math.isfinite(difference) else None,
        alignment=surplus,
        inflation=size,
    )


def judge(
    uid: int, epoch: int, record: Record, recomputed: Record, assigned_pages: tuple[int, ...], audit: AuditSpec
) -> AuditResult:
    """Compare a reported record with the validator's own one of the same micro-batch.

    Raises:
        StateError: the validator's own numbers are not finite; no miner can be judged by them.
    """
    _require_finite(recomputed)
    finding = _compare_form(record, recomputed, assigned_pages)
    if finding is not None:
        return _result(uid, epoch, record, finding)
    loss = relative_loss_difference(record.loss, recomputed.loss)
    gradient = relative_gradient_difference(record.gradient, recomputed.gradient)
    agreement = min(_agreement(loss, audit.loss_tolerance), _agreement(gradient, audit.gradient_tolerance))
    if agreement >= audit.threshold:
        finding = Finding.AGREES
    elif loss / audit.loss_tolerance > gradient / audit.gradient_tolerance:
        finding = Finding.LOSS_DIFFERS
    else:
        finding = Finding.GRADIENT_DIFFERS
    return _result(uid, epoch, record, finding, agreement, loss, gradient)


def relative_loss_difference(reported: float, reference: float) -> float:
    """|reported - reference| / max(|reference|, LOSS_SCALE_FLOOR); may be infinite."""
    return abs(reported - reference) / max(abs(reference), LOSS_SCALE_FLOOR)


def relative_gradient_difference(reported: Sequence[float], reference: Sequence[float]) -> float:
    """Relative L2 difference |reported - reference| / |reference| of two vectors of one length; may be infinite.

    A reference of exact zeros is matched by exact zeros only.
    """
    scale = math.hypot(*reference)
    distance = math.dist(reported, reference)
    if scale == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / scale


def gradient_score(audits: Sequence[AuditResult], threshold: float) -> float | None:
    """g of a miner for one epoch: its worst audit, 0 below `threshold` or if any failed; None if none was made.

    The worst and not the mean, because an honest record always agrees: one fabricated record that is found says more
    than any number of honest ones beside it.
    """
    if not audits:
        return None
    worst = min(audit.agreement for audit in audits)
    return worst if worst >= threshold and all(audit.passed for audit in audits) else 0.0


def _require_finite(recomputed: Record) -> None:
    if not all(map(math.isfinite, (recomputed.loss, *recomputed.gradient))):
        raise StateError(
            f"the validator's own recomputation of micro-batch {recomputed.number} is not finite; "
            "fetch the epoch's state again before judging anyone"
        )


def _compare_form(record: Record, recomputed: Record, assigned_pages: tuple[int, ...]) -> Finding | None:
    """Everything that is wrong whatever the numbers are."""
    if tuple(record.pages) != tuple(assigned_pages):
        return Finding.OFF_ASSIGNMENT
    if record.number != recomputed.number:
        return Finding.WRONG_NUMBER
    if record.samples != recomputed.samples:
        return Finding.WRONG_SAMPLES
    if len(record.gradient) != len(recomputed.gradient):
        return Finding.WRONG_LENGTH
    if not all(map(math.isfinite, (record.loss, *record.gradient))):
        return Finding.NOT_FINITE
    return None


def _agreement(difference: float, tolerance: float) -> float:
    return 1.0 if difference <= tolerance else tolerance / difference


def _result(
    uid: int,
    epoch: int,
    record: Record,
    finding: Finding,
    agreement: float = 0.0,
    loss: float = math.inf,
    gradient: float = math.inf,
) -> AuditResult:
    return AuditResult(
        uid=uid,
        epoch=epoch,
        number=record.number,
        agreement=agreement,
        passed=finding is Finding.AGREES,
        finding=finding,
        loss_difference=loss if math.isfinite(loss) else None,
        gradient_difference=gradient if math.isfinite(gradient) else None,
    )
