"""Replays of a miner's own steps, as pure functions: marks, draws, and how far two ends may lie apart."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.protocol import Mark, Record
from distributed_training.run import ReplaySpec
from distributed_training.scoring.gradient import Finding
from distributed_training.scoring.replay import (
    Fidelity,
    Origin,
    Replayed,
    as_records,
    drawn_stretches,
    drift,
    judge_chain,
    judge_end,
    judge_replay,
    replay_rate,
)
from tests.roles import AUDIT

REPLAY = ReplaySpec(stretch=4, share=0.5, tolerance=0.01)
BASE, EMPTY, BEFORE = "b" * 64, "e" * 64, "c" * 64


def record(number: int, **changes: object) -> Record:
    fields = {"number": number, "pages": (number,), "samples": 2, "loss": 1.0, "gradient": (0.1 * (number + 1), 0.2)}
    return Record(**{**fields, **changes})


def mark(after: int, steps: int | None = None, **changes: object) -> Mark:
    fields = {"after": after, "steps": after if steps is None else steps, "state": f"{after:064x}", "moved": (1.0, 2.0)}
    return Mark(**{"params": BASE, "inner": EMPTY, **fields, **changes})


RECORDS = tuple(record(number) for number in range(10))
MARKS = tuple(mark(after) for after in (0, 4, 8, 10))


def chain(marks: tuple[Mark, ...] = MARKS, before: str | None = BEFORE) -> Finding:
    return judge_chain(1, 0, RECORDS, marks, Origin(BASE, EMPTY, before), REPLAY.stretch).finding


def test_a_sound_chain_passes() -> None:
    """From an empty inner state, from the one that the last epoch ended with, or where that is not known."""
    assert chain() is Finding.AGREES
    later = tuple(mark(m.after, 100 + m.after, inner=BEFORE) for m in MARKS)
    assert chain(later) is chain(later, None) is Finding.AGREES
    even = judge_chain(1, 0, RECORDS[:8], MARKS[:3], Origin(BASE, EMPTY, None), REPLAY.stretch)
    assert even.passed


@pytest.mark.parametrize(
    ("marks", "finding"),
    [
        ((), Finding.NOT_COMMITTED),
        ((MARKS[0], MARKS[-1]), Finding.NOT_COMMITTED),
        ((*MARKS[:2], mark(7), *MARKS[2:]), Finding.NOT_COMMITTED),
        ((*MARKS[:3], mark(10, 11)), Finding.NOT_COMMITTED),
        ((mark(0, params="d" * 64), *MARKS[1:]), Finding.OTHER_BASE),
        ((mark(0, inner="d" * 64), *MARKS[1:]), Finding.OTHER_INNER_STATE),
    ],
)
def test_other_chains_fail(marks: tuple[Mark, ...], finding: Finding) -> None:
    """Missing or surplus marks, steps that were not made, another beginning."""
    assert chain(marks) is finding


def test_one_record_stands_for_the_sum() -> None:
    """With the samples of all, and what the last mark has moved; without marks they stand for themselves."""
    (whole,) = as_records(RECORDS, (mark(0), mark(10, moved=(3.0, 4.0))))
    assert (whole.samples, whole.gradient) == (20, (3.0, 4.0))
    assert as_records(RECORDS, ()) == RECORDS
    assert as_records((), MARKS) == ()


@given(st.floats(-3, 3), st.integers(0, 10_000))
def test_the_drift_of_scaled_steps_is_their_excess(factor: float, seed: int) -> None:
    """Who goes `factor` times as far is off by |factor - 1|: 1 for nothing at all, 2 for the other way."""
    start, way = np.random.default_rng(seed).normal(size=(2, 500)).astype(np.float32)
    found = drift(start, start + way, start + np.float32(factor) * way)
    assert found == pytest.approx(abs(factor - 1), abs=1e-4)


def test_the_drift_of_nothing() -> None:
    """A stretch that moves nothing is matched by the same bits only."""
    here = np.ones(4, dtype=np.float32)
    assert drift(here, here, here) == 0
    assert drift(here, here, here + 1) == math.inf


def replayed(off: float, **changes: object) -> Replayed:
    part = RECORDS[4:8]
    return Replayed(**{"records": part, "pages": tuple(r.pages for r in part), "drift": off, **changes})


@pytest.mark.parametrize(
    ("off", "passed"), [(0.0, True), (0.01, True), (0.011, True), (0.012, False), (1.0, False), (math.inf, False)]
)
def test_ends_may_lie_apart_by_the_tolerance(off: float, passed: bool) -> None:
    """Divided by the threshold, as with records; the result says how far they do."""
    found = judge_replay(1, 0, RECORDS[4:8], replayed(off), AUDIT, REPLAY)
    assert found.passed is passed
    assert found.finding is (Finding.AGREES if passed else Finding.STEPS_DIFFER)
    assert found.drift == (off if math.isfinite(off) else None)
    assert found.number == 4


def test_the_first_record_is_held_to_the_usual_tolerances() -> None:
    """Its gradient is taken at known parameters; those of later ones drift, but their form may not."""
    off = {"gradient": (0.7, 0.2)}
    first = replayed(0.0, records=(record(4, **off), *RECORDS[5:8]))
    assert judge_replay(1, 0, RECORDS[4:8], first, AUDIT, REPLAY).finding is Finding.GRADIENT_DIFFERS
    second = replayed(0.0, records=(RECORDS[4], record(5, **off), *RECORDS[6:8]))
    assert judge_replay(1, 0, RECORDS[4:8], second, AUDIT, REPLAY).passed
    pages = replayed(0.0, pages=((4,), (5,), (60,), (7,)))
    assert judge_replay(1, 0, RECORDS[4:8], pages, AUDIT, REPLAY).finding is Finding.OFF_ASSIGNMENT
    samples = replayed(0.0, records=(*RECORDS[4:7], record(7, samples=1)))
    assert judge_replay(1, 0, RECORDS[4:8], samples, AUDIT, REPLAY).finding is Finding.WRONG_SAMPLES


def test_the_end_is_what_was_put_in() -> None:
    """To the bit where nothing is lost on the way; else its signs and size are."""
    moved = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    other = np.random.default_rng(1).normal(size=5000).astype(np.float32)

    def finding(sent: np.ndarray, fidelity: Fidelity) -> Finding | None:
        found = judge_end(1, 0, sent, moved, AUDIT, fidelity, zeros=False)
        return None if found is None else found.finding

    exact, lossy, sparse = Fidelity.EXACT, Fidelity.LOSSY, Fidelity.SPARSE
    assert finding(moved, exact) is finding(moved, lossy) is Finding.AGREES
    rounded = moved.astype(np.float16).astype(np.float32)
    assert (finding(rounded, exact), finding(rounded, lossy)) == (Finding.NOT_ITS_STEPS, Finding.AGREES)
    assert finding(other, lossy) is finding(-moved, lossy) is Finding.NOT_ITS_STEPS
    assert finding(10 * moved, lossy) is finding(10 * moved, sparse) is Finding.INFLATED
    assert finding(0.1 * moved, sparse) is None


def test_replays_cost_no_more_than_they_may() -> None:
    """All miners' together at most `overhead` times what one does; with few miners the share decides."""
    reported = {uid: RECORDS for uid in range(5)}
    audit = dataclasses.replace(AUDIT, overhead=0.4)
    rate = replay_rate(reported, audit, REPLAY)
    assert rate * REPLAY.stretch * len(reported) == pytest.approx(0.4 * len(RECORDS))
    assert replay_rate(reported, AUDIT, REPLAY) == replay_rate({}, audit, REPLAY) == REPLAY.share


def test_stretches_are_drawn_alike_and_copies_always() -> None:
    """Each miner with the chance `share`, each stretch as often; equal gradients are looked at where they stand."""
    rng, counts = random.Random(0), np.zeros((2, 3))
    own = tuple(record(n, gradient=(n + 100.0, 1.0)) for n in range(10))
    for _ in range(2000):
        found = drawn_stretches({1: RECORDS, 2: own}, {1: MARKS, 2: MARKS}, AUDIT, REPLAY, rng)
        for uid, stretch in found.items():
            counts[uid - 1, stretch] += 1
    np.testing.assert_allclose(counts / 2000, 0.5 / 3, atol=0.04)
    copied = {1: RECORDS, 2: (*own[:9], record(9))}
    for _ in range(20):
        assert drawn_stretches(copied, {1: MARKS, 2: MARKS}, AUDIT, REPLAY, rng).items() >= {(1, 2), (2, 2)}
    assert drawn_stretches({1: RECORDS}, {1: ()}, AUDIT, REPLAY, rng) == {}
