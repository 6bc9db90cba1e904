"""What is held back until audits had their chance, and what hiding what one sent costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.scoring.combine import AGAIN, Outcome, Row, ScoreBook, advance, weights
from distributed_training.scoring.detection import caught_in_epoch, expected_pay
from distributed_training.scoring.explain import replay_epoch, score_epoch
from distributed_training.scoring.gradient import Finding
from template.errors import CorruptState
from tests.scoring.evidence import audit, evidence, rules

HELD = 5
MINER = {0: "hot0"}


def scored(samples: list[int], held: int, start: ScoreBook | None = None) -> tuple[ScoreBook, list[Row]]:
    """Epochs of one honest miner that trained so many samples in each."""
    book, rows = start or ScoreBook(), []
    first = 0 if book.epoch is None else book.epoch + 1
    for epoch, count in enumerate(samples, first):
        book, row = advance(book, epoch, MINER, [evidence(0, count, hotkey="hot0")], rules(held_epochs=held))
        rows += row
    return book, rows


@given(st.lists(st.integers(0, 1000), min_size=HELD + 1, max_size=30))
def test_what_is_held_back_is_paid_later_and_not_less(samples: list[int]) -> None:
    """The averages are those of a run that holds nothing back, so many epochs later."""
    _, late = scored(samples, HELD)
    _, at_once = scored(samples, 0)
    assert [row.after.ema for row in late[:HELD]] == [0.0] * HELD
    assert [row.after.ema for row in late[HELD:]] == [row.after.ema for row in at_once[:-HELD]]


def test_an_audit_that_fails_takes_what_is_held_back() -> None:
    """And the average: of a cheat that is caught in time nothing was ever paid."""
    book, _ = scored([100] * HELD, HELD)
    assert weights(book) is None
    failing = evidence(0, 100, hotkey="hot0", audits=(audit(agreement=0.0, finding=Finding.LOSS_DIFFERS),))
    book, (row,) = advance(book, HELD, MINER, [failing], rules(held_epochs=HELD))
    assert row.outcome is Outcome.FAILED_AUDIT
    assert (row.after.held, row.after.ema) == ((), 0.0)


def test_an_epoch_without_evidence_holds_everything_as_it_is() -> None:
    """Who was not sampled is neither paid sooner nor later."""
    book, _ = scored([100] * HELD, HELD)
    after, (row,) = advance(book, HELD, MINER, [], rules(held_epochs=HELD))
    assert row.after == row.before
    assert after.entries == book.entries


def test_the_log_replays_what_is_held_back() -> None:
    """To the bit, and a book survives its state dict."""
    before, _ = scored([7, 11, 13, 17, 19, 23, 29], HELD)
    after, rows = advance(before, 7, MINER, [evidence(0, 31, hotkey="hot0")], rules(held_epochs=HELD))
    event = score_epoch(before, after, rows, rules(held_epochs=HELD))
    assert replay_epoch(None, event) == after
    assert ScoreBook.load_state_dict(after.state_dict()) == after
    damaged = after.state_dict()
    damaged["entries"][0]["held"] = (float("nan"),)
    with pytest.raises(CorruptState):
        ScoreBook.load_state_dict(damaged)


@pytest.mark.parametrize("held", [0, 3, 12])
def test_the_pay_of_a_cheat_is_what_the_formula_says(held: int) -> None:
    """Against a simulation of the same rule: caught by chance, unpaid for the penalty, the rest held back."""
    share, records, chance, penalty = 0.5, 4.0, 0.1, 30
    p, random = caught_in_epoch(share, records, chance), np.random.default_rng(0)
    runs = random.geometric(p, 200_000)
    simulated = np.maximum(0, runs - 1 - held).sum() / (runs + penalty).sum()
    assert simulated == pytest.approx(expected_pay(share, records, chance, penalty, held), rel=0.05)


def test_hiding_what_one_sent_costs_the_epoch_and_twice_is_a_failed_audit() -> None:
    """Once is a broken line; again soon after is no accident."""
    book, _ = scored([100], 0)
    hiding = evidence(0, 100, hotkey="hot0", unshown="showed nothing")
    book, (row,) = advance(book, 1, MINER, [hiding], rules())
    assert (row.outcome, row.score.score, row.reason) == (Outcome.SCORED, 0.0, "showed nothing")
    _, (late,) = advance(book, 2 + AGAIN, MINER, [hiding], rules())
    assert late.outcome is Outcome.SCORED
    _, (soon,) = advance(book, 1 + AGAIN, MINER, [hiding], rules())
    assert soon.outcome is Outcome.FAILED_AUDIT
    assert soon.after.ema == 0
