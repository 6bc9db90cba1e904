"""Audits of records: what agrees, what does not, and why."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.scoring.gradient import (
    AuditResult,
    Finding,
    gradient_score,
    judge,
    relative_gradient_difference,
    relative_loss_difference,
)
from template.errors import StateError
from tests.scoring.evidence import AUDIT, FAILED, audit, record

PAGES = (6, 7)
HUGE = sys.float_info.max
finite = st.floats(allow_nan=False, allow_infinity=False)
ordinary = st.floats(min_value=-1e3, max_value=1e3)


def judged(reported: dict[str, object], recomputed: dict[str, object] | None = None) -> AuditResult:
    return judge(5, 2, record(**reported), record(**(recomputed or {})), PAGES, AUDIT)


def test_honest_record_agrees_fully() -> None:
    """The same numbers give an agreement of exactly 1."""
    result = judged({})
    assert (result.uid, result.epoch, result.number) == (5, 2, 3)
    assert (result.agreement, result.passed, result.finding) == (1.0, True, Finding.AGREES)
    assert (result.loss_difference, result.gradient_difference) == (0.0, 0.0)


def test_rounding_within_the_tolerances_agrees_fully() -> None:
    """Another machine's rounding costs nothing."""
    result = judged({"loss": 5.5 * (1 + 9e-5), "gradient": (0.1005, -0.201, 0.0, 0.402)})
    assert result.agreement == 1.0


def test_agreement_falls_with_the_excess() -> None:
    """Half as much again is two thirds, twice the tolerance a half of the agreement; below the threshold it fails."""
    assert judged({"loss": 5.5 * (1 + 1.5e-4)}).agreement == pytest.approx(2 / 3, rel=1e-6)
    result = judged({"loss": 5.5 * (1 + 2e-4)})
    assert result.agreement == pytest.approx(0.5, rel=1e-6)
    assert result.finding is Finding.LOSS_DIFFERS
    assert not result.passed


@pytest.mark.parametrize(
    ("reported", "finding"),
    [
        ({"pages": (6, 8)}, Finding.OFF_ASSIGNMENT),
        ({"pages": (6, 7, 8)}, Finding.OFF_ASSIGNMENT),
        ({"pages": (6, 6)}, Finding.OFF_ASSIGNMENT),
        ({"pages": (7, 6)}, Finding.OFF_ASSIGNMENT),
        ({"pages": ()}, Finding.OFF_ASSIGNMENT),
        ({"number": 4}, Finding.WRONG_NUMBER),
        ({"samples": 9}, Finding.WRONG_SAMPLES),
        ({"samples": 0}, Finding.WRONG_SAMPLES),
        ({"gradient": (0.1, -0.2, 0.0)}, Finding.WRONG_LENGTH),
        ({"gradient": ()}, Finding.WRONG_LENGTH),
        ({"gradient": (0.1, -0.2, math.nan, 0.4)}, Finding.NOT_FINITE),
        ({"gradient": (0.1, -math.inf, 0.0, 0.4)}, Finding.NOT_FINITE),
        ({"loss": math.nan}, Finding.NOT_FINITE),
        ({"loss": HUGE}, Finding.LOSS_DIFFERS),
        ({"loss": -5.5}, Finding.LOSS_DIFFERS),
        ({"gradient": (0.0, 0.0, 0.0, 0.0)}, Finding.GRADIENT_DIFFERS),
        ({"gradient": (-0.1, 0.2, 0.0, -0.4)}, Finding.GRADIENT_DIFFERS),
        ({"gradient": (0.2, -0.4, 0.0, 0.8)}, Finding.GRADIENT_DIFFERS),
        ({"gradient": (0.1, 0.2, 0.0, 0.4)}, Finding.GRADIENT_DIFFERS),
        ({"gradient": (0.4, -0.2, 0.0, 0.1)}, Finding.GRADIENT_DIFFERS),
        ({"gradient": (HUGE, -HUGE, HUGE, HUGE)}, Finding.GRADIENT_DIFFERS),
    ],
)
def test_what_is_not_the_work_fails_with_its_reason(reported: dict[str, object], finding: Finding) -> None:
    """Fabricated, flipped, scaled, shuffled, zeroed, malformed: each is named and none is paid."""
    result = judged(reported)
    assert result.finding is finding
    assert not result.passed
    assert gradient_score([audit(), result], AUDIT.threshold) == 0.0


def test_off_assignment_is_worth_nothing_even_with_right_numbers() -> None:
    """Right numbers of other pages do not count: the assignment is what is paid for."""
    result = judged({"pages": (1, 2)}, {"pages": (1, 2)})
    assert result.agreement == 0.0
    assert result.loss_difference is None


def test_differences_that_do_not_fit_a_float_are_none() -> None:
    """No infinity reaches the log."""
    assert judged({"gradient": (HUGE, -HUGE, HUGE, HUGE)}).gradient_difference is None


def test_zero_reference_is_matched_by_zeros_only() -> None:
    """A micro-batch whose gradient really is zero there is not a free pass, nor a division by zero."""
    zeros = (0.0, 0.0, 0.0, 0.0)
    assert judged({"gradient": zeros}, {"gradient": zeros}).passed
    assert judged({"gradient": (1e-300, 0.0, 0.0, 0.0)}, {"gradient": zeros}).agreement == 0.0


def test_tiny_and_huge_scales_are_compared_relatively() -> None:
    """Neither underflow nor overflow of squares changes a relative difference."""
    for scale in (1e-200, 1e200):
        assert relative_gradient_difference((3 * scale, 4.04 * scale), (3 * scale, 4 * scale)) == pytest.approx(0.008)


def test_validators_own_fault_judges_nobody() -> None:
    """A recomputation with NaN is an error of the validator, not a score of the miner."""
    with pytest.raises(StateError, match="own recomputation of micro-batch 3"):
        judged({}, {"loss": math.nan})
    with pytest.raises(StateError):
        judged({}, {"gradient": (math.inf, 0.0, 0.0, 0.0)})


@given(st.lists(st.tuples(ordinary, ordinary), min_size=1, max_size=20))
def test_gradient_difference_is_numpys(pairs: list[tuple[float, float]]) -> None:
    """The relative L2 difference agrees with numpy's norms."""
    a, b = np.array(pairs).T
    norm = np.linalg.norm(b)
    if norm > 1e-100:
        expected = np.linalg.norm(a - b) / norm
        assert relative_gradient_difference(tuple(a), tuple(b)) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@given(loss=finite, gradient=st.tuples(finite, finite, finite, finite))
def test_any_finite_report_gets_an_agreement_in_unit_range(loss: float, gradient: tuple[float, ...]) -> None:
    """Whatever is reported, the agreement is a number in [0, 1] and passing means reaching the threshold."""
    result = judged({"loss": loss, "gradient": gradient})
    assert 0.0 <= result.agreement <= 1.0
    assert result.passed == (result.agreement >= AUDIT.threshold)


def test_loss_near_zero_is_compared_on_the_floor() -> None:
    """Rounding of a loss of zero is not an infinite relative difference."""
    assert relative_loss_difference(1e-7, 0.0) == pytest.approx(1e-5)
    assert relative_loss_difference(5.0, 4.0) == 0.25


def test_score_is_the_worst_audit() -> None:
    """One half-good record decides; no audit is no score, which is not zero."""
    assert gradient_score([audit(), audit(agreement=0.93)], 0.9) == 0.93
    assert gradient_score([audit(), FAILED], 0.9) == 0.0
    assert gradient_score([], 0.9) is None
