"""From evidence to weights: what is paid, what is not, and what nobody can do to another."""

from __future__ import annotations

import json
import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.scoring.bandwidth import Measured
from distributed_training.scoring.combine import Evidence, Outcome, Row, ScoreBook, Source, advance, combine, weights
from distributed_training.scoring.gradient import Finding
from distributed_training.scoring.participation import Standing
from template.errors import CorruptState
from tests.scoring.evidence import FAILED, RULES, any_evidence, audit, epochs_of, evidence, rules, silent

EMPTY = ScoreBook()


def hotkeys(items: list[Evidence]) -> dict[int, str]:
    return {item.uid: item.hotkey for item in items}


def run(epochs: list[list[Evidence]], book: ScoreBook = EMPTY) -> tuple[ScoreBook, tuple[Row, ...]]:
    """Advance over the epochs, counted on from the book's."""
    rows: tuple[Row, ...] = ()
    for items in epochs:
        epoch = 0 if book.epoch is None else book.epoch + 1
        book, rows = advance(book, epoch, hotkeys(items), items, RULES)
    return book, rows


def ema(book: ScoreBook, uid: int = 0) -> float:
    return next(entry.ema for entry in book.entries if entry.uid == uid)


def test_score_is_the_formula() -> None:
    """g s (1 - beta + beta b) p in exact fractions: 0.95 * 120 * (0.8 + 0.2 * 0.25) * 1/2."""
    item = evidence(
        samples=120,
        audits=(audit(agreement=0.95),),
        transfers=(Measured(bytes=250_000, seconds=1.0),),
        standings=(Standing.DELIVERED, Standing.FAILED),
    )
    expected = Fraction(95, 100) * 120 * (Fraction(8, 10) + Fraction(2, 10) * Fraction(1, 4)) * Fraction(1, 2)
    assert combine(item, None, RULES).score == pytest.approx(float(expected), rel=1e-14)


def test_moving_average_is_the_closed_form() -> None:
    """After n equal epochs the average is score * (1 - (1 - alpha)^n)."""
    book, _ = run([[evidence(samples=50)]] * 7)
    assert ema(book) == pytest.approx(50 * (1 - 0.8**7), rel=1e-12)


def test_weights_are_proportional_to_verified_samples() -> None:
    """Three times the samples is three times the pay."""
    book, rows = run([[evidence(0, 30), evidence(1, 90)]])
    assert weights(book) == {0: 0.25, 1: 0.75}
    assert [row.weight for row in rows] == [0.25, 0.75]


def test_nobody_earned_anything_is_burn() -> None:
    """All zero is None, never a share for everybody; so is an empty subnet."""
    book, rows = run([[silent(0), silent(1), evidence(2, audits=(FAILED,))]])
    assert weights(book) is None
    assert [row.weight for row in rows] == [0.0, 0.0, 0.0]
    assert weights(EMPTY) is None


def test_failed_audit_takes_the_average_and_the_next_epochs() -> None:
    """Zero at once, nothing for penalty_epochs epochs of honest work, then it earns again from nothing."""
    book, _ = run([[evidence()]] * 5)
    book, rows = run([[evidence(audits=(audit(), FAILED))]], book)
    assert (rows[0].outcome, ema(book)) == (Outcome.FAILED_AUDIT, 0.0)
    assert rows[0].reason == "record 0: gradient differs"
    for _ in range(RULES.scoring.penalty_epochs):
        book, rows = run([[evidence()]], book)
        assert (rows[0].outcome, ema(book)) == (Outcome.PENALTY, 0.0)
    book, _ = run([[evidence()]], book)
    assert ema(book) == pytest.approx(0.2 * 100)


def test_failed_at_most_nothing_less_than_honest() -> None:
    """A cheat earns no more than one who did nothing, who earns less than an honest miner."""
    cheat = evidence(2, 10_000, audits=(audit(agreement=0.0, finding=Finding.OFF_ASSIGNMENT),))
    book, _ = run([[evidence(0, 10), silent(1), cheat]] * 3)
    assert ema(book, 2) <= ema(book, 1) < ema(book, 0)


def test_withholding_in_the_round_earns_less() -> None:
    """The same work delivered in no round, or in half of them, is paid nothing, or half."""
    absent = evidence(1, standings=(Standing.ABSENT,))
    half = evidence(2, standings=(Standing.DELIVERED, Standing.FAILED))
    book, _ = run([[evidence(0), absent, half]])
    assert (ema(book, 0), ema(book, 1), ema(book, 2)) == (20.0, 0.0, 10.0)


def test_void_rounds_do_not_punish() -> None:
    """A leader's or validator's fault leaves the full score and says that the term was left out."""
    score = combine(evidence(standings=(Standing.VOID, Standing.LEFT_OUT)), None, RULES)
    assert score.score == 100.0
    assert (score.participation, score.participation_source) == (None, Source.EXCUSED)


def test_work_that_went_into_no_average_is_not_paid() -> None:
    """Whoever is left out of every round, and so puts nothing in, must not gain by it, however much it reports."""
    idle = evidence(uid=1, samples=10_000, standings=(Standing.LEFT_OUT,))
    book, _ = run([[evidence(uid=0, samples=10), idle]] * 5)
    assert weights(book) == {0: 1.0, 1: 0.0}


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (evidence(unobserved="hub unavailable"), "hub unavailable"),
        (evidence(standings=(Standing.VOID,)), "in no round that counts, through no doing of its own"),
        (None, "not sampled"),
    ],
)
def test_unobserved_keeps_its_average(item: Evidence | None, reason: str) -> None:
    """The validator's own failure, an unsampled miner, records it did not audit: nothing changes, with the reason."""
    before, _ = run([[evidence()]] * 4)
    after, rows = advance(before, 9, {0: "hot0"}, [item] if item else [], RULES)
    assert ema(after) == ema(before)
    assert (rows[0].outcome, rows[0].reason) == (Outcome.KEPT, reason)


def test_failed_audit_counts_even_if_the_rest_was_not_observed() -> None:
    """An outage after the proof does not undo the proof."""
    book, rows = run([[evidence(audits=(FAILED,), unobserved="source unavailable")]])
    assert (rows[0].outcome, ema(book)) == (Outcome.FAILED_AUDIT, 0.0)


def test_silent_miner_decays() -> None:
    """A miner that went away is paid less each epoch."""
    book, _ = run([[evidence()]])
    book, rows = run([[silent()]], book)
    assert ema(book) == pytest.approx(0.8 * 20)
    assert rows[0].reason == "no verified samples"


def test_unmeasured_bandwidth_is_the_last_known_one_or_left_out() -> None:
    """Never a silent default: the source of the number is part of the row."""
    slow = evidence(transfers=(Measured(bytes=500_000, seconds=1.0),))
    unmeasured = evidence(transfers=())
    _, rows = run([[unmeasured]])
    assert (rows[0].score.bandwidth, rows[0].score.bandwidth_source) == (None, Source.LEFT_OUT)
    assert rows[0].score.score == 100.0
    _, rows = run([[slow], [unmeasured]])
    assert (rows[0].score.bandwidth, rows[0].score.bandwidth_source) == (0.5, Source.LAST_KNOWN)
    assert rows[0].score.score == pytest.approx(90.0)


def test_replaced_hotkey_starts_from_nothing() -> None:
    """A new hotkey on an old uid inherits neither average, bandwidth nor penalty; the old one does not come back."""
    book, _ = run([[evidence()]] * 3)
    new = evidence(hotkey="other")
    book, rows = run([[new]], book)
    assert rows[0].before.ema == 0.0
    assert rows[0].before.bandwidth is None
    assert ema(book) == pytest.approx(0.2 * 100)
    book, rows = run([[evidence()]], book)
    assert rows[0].before.ema == 0.0


def test_evidence_of_a_replaced_hotkey_is_not_used() -> None:
    """What the old owner of a uid did is neither paid nor charged to the new one."""
    book, rows = advance(EMPTY, 0, {0: "new"}, [evidence(0, hotkey="old")], RULES)
    assert (ema(book), rows[0].outcome) == (0.0, Outcome.KEPT)


def test_an_epoch_is_scored_once() -> None:
    """A restart cannot count an epoch twice, and a miner has one piece of evidence."""
    book, _ = run([[evidence()]])
    with pytest.raises(ValueError, match="epoch 0 cannot be scored after epoch 0"):
        advance(book, 0, {0: "hot0"}, [evidence()], RULES)
    with pytest.raises(ValueError, match="two pieces of evidence of uid 0"):
        advance(EMPTY, 0, {0: "hot0"}, [evidence(), evidence()], RULES)


def test_newcomer_reaches_its_fair_share() -> None:
    """Beside nine old miners an equal newcomer has 95 % of its tenth after ln 0.05 / ln(1 - alpha) epochs."""
    book, _ = run([[evidence(uid) for uid in range(9)]] * 60)
    epochs = math.ceil(math.log(0.05) / math.log(1 - RULES.scoring.ema))
    book, _ = run([[evidence(uid) for uid in range(10)]] * epochs, book)
    assert (weights(book) or {})[9] >= 0.95 * 0.1


@pytest.mark.parametrize("miners", [0, 1, 2, 64, 256, 1024])
def test_any_size_of_metagraph(miners: int) -> None:
    """Weights are one a miner and sum to one, from an empty subnet to a large one."""
    book, rows = run([[evidence(uid, uid + 1) for uid in range(miners)]])
    shares = weights(book)
    assert len(rows) == miners
    assert (shares is None) == (miners == 0)
    assert miners == 0 or math.fsum((shares or {}).values()) == pytest.approx(1.0, rel=1e-12)


@given(epochs_of(), st.integers())
def test_order_of_evidence_does_not_matter(epochs: list[list[Evidence]], seed: int) -> None:
    """Shuffled evidence gives the same book, to the bit."""
    shuffled = [random.Random(seed).sample(items, len(items)) for items in epochs]
    assert run(shuffled) == run(epochs)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 10_000))
def test_more_verified_samples_never_pay_less(fewer: int, more: int, other: int) -> None:
    """Score and weight are monotone in the samples."""
    low, high = sorted((fewer, more))
    shares = [(weights(run([[evidence(0, n), evidence(1, other)]])[0]) or {})[0] for n in (low, high)]
    assert shares[0] <= shares[1]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8), st.integers(1, 4000), st.integers(1, 6))
def test_splitting_a_machine_pays_nothing(parts: list[int], others: int, epochs: int) -> None:
    """k uids that share one machine's samples together weigh what the one uid would."""
    split = [evidence(uid + 1, part) for uid, part in enumerate(parts)]
    one, _ = run([[evidence(0, others), evidence(1, sum(parts))]] * epochs)
    many, _ = run([[evidence(0, others), *split]] * epochs)
    together = math.fsum(share for uid, share in (weights(many) or {}).items() if uid > 0)
    assert together <= (weights(one) or {})[1] * (1 + 1e-12)


@given(st.integers(2, 500), st.integers(2, 6), st.integers(0, 2**32))
@settings(max_examples=25)
def test_splitting_pays_nothing_when_miners_are_sampled(samples: int, k: int, seed: int) -> None:
    """Being seen with few others in an epoch is no advantage: an average that is kept is not a share of a sample."""
    split = [evidence(uid + 1, samples // k) for uid in range(k)]
    whole = [evidence(1, samples // k * k)]
    shares = []
    for sybils in (whole, split):
        generator, book = random.Random(seed), EMPTY
        everyone = [evidence(0, 1000), *sybils]
        for epoch in range(120):
            seen = [item for item in everyone if generator.random() < 0.5]
            book, _ = advance(book, epoch, hotkeys(everyone), seen, RULES)
        shares.append(sum(share for uid, share in (weights(book) or {}).items() if uid > 0))
    assert shares[1] <= shares[0] * 1.001


@given(st.data())
def test_nobody_changes_anothers_average(data: st.DataObject) -> None:
    """Whatever the others do, and however many they are, a miner's row is the same but for its share of the sum."""
    mine = data.draw(any_evidence(0))
    others = [data.draw(any_evidence(uid)) for uid in range(1, data.draw(st.integers(1, 5)))]
    alone, in_company = run([[mine]] * 2)[0], run([[mine, *others]] * 2)[0]
    assert alone.entries[0] == in_company.entries[0]


@given(epochs_of())
def test_averages_are_finite_and_weights_sum_to_one(epochs: list[list[Evidence]]) -> None:
    """No evidence gives a negative, infinite or NaN weight."""
    book, rows = run(epochs)
    shares = weights(book)
    assert all(math.isfinite(entry.ema) and entry.ema >= 0 for entry in book.entries)
    assert all(row.outcome is not Outcome.FAILED_AUDIT or row.weight == 0 for row in rows)
    assert shares is None or math.fsum(shares.values()) == pytest.approx(1.0, rel=1e-12)


@given(epochs_of())
def test_book_survives_a_restart(epochs: list[list[Evidence]]) -> None:
    """A book written as JSON and read again is the same book, to the bit."""
    book, _ = run(epochs)
    assert ScoreBook.load_state_dict(json.loads(json.dumps(book.state_dict()))) == book


ENTRY = {"uid": 1, "hotkey": "hot1"}


@pytest.mark.parametrize(
    "state",
    [
        {"epoch": "later"},
        {"entries": [{"uid": 1}]},
        {"entries": 3},
        {"entries": [ENTRY, ENTRY]},
        {"entries": [{**ENTRY, "ema": math.nan}]},
        {"entries": [{**ENTRY, "ema": math.inf}]},
        {"entries": [{**ENTRY, "ema": -1.0}]},
    ],
)
def test_damaged_book_is_refused(state: dict[str, object]) -> None:
    """A state that is not one does not become an empty book."""
    with pytest.raises(CorruptState, match="score book"):
        ScoreBook.load_state_dict(state)


def test_full_bandwidth_share_pays_by_the_line_alone() -> None:
    """beta = 1 and beta = 0 are the two ends of the formula."""
    slow = evidence(transfers=(Measured(bytes=100_000, seconds=1.0),))
    assert combine(slow, None, rules(bandwidth_share=1.0)).score == pytest.approx(10.0)
    assert combine(slow, None, rules(bandwidth_share=0.0)).score == pytest.approx(100.0)
