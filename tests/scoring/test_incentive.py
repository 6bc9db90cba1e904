"""What the scores make it worth doing: properties over whole histories, and none of them a matter of luck."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distributed_training.scoring.combine import (
    Entry,
    Evidence,
    Outcome,
    ScoreBook,
    absent,
    advance,
    epochs_to_fair_share,
    score_miner,
    weights,
)
from distributed_training.scoring.participation import Standing
from tests.scoring.evidence import FAILED, RULES, any_evidence, epochs_of, evidence, rules, silent

ALPHA = RULES.scoring.ema
MISSED = (Standing.FAILED, Standing.ABSENT)
emas = st.floats(0, 1e6)


def after(before: Entry, item: Evidence) -> Entry:
    return score_miner(before, item, 0, RULES).after


def entry(ema: float = 0.0, **fields: object) -> Entry:
    return Entry(uid=0, hotkey="hot0", ema=ema, **fields)  # type: ignore[arg-type]


def history(items: Sequence[Evidence], before: Entry | None = None) -> list[float]:
    """The average of uid 0 after each of these epochs."""
    now, seen = before or entry(), []
    for epoch, item in enumerate(items):
        now = score_miner(now, item, epoch, RULES).after
        seen.append(now.ema)
    return seen


# --- who is paid more than whom


@given(epochs_of(), st.randoms(use_true_random=False))
def test_names_do_not_matter(epochs: list[list[Evidence]], rng: random.Random) -> None:
    """Other uids, with any gaps between them, get the same weights, to the bit."""
    count = len(epochs[0])
    uids = rng.sample(range(4096), count)
    here, there = ScoreBook(), ScoreBook()
    for epoch, items in enumerate(epochs):
        moved = [dataclasses.replace(item, uid=uids[item.uid]) for item in items]
        here, _ = advance(here, epoch, {item.uid: item.hotkey for item in items}, items, RULES)
        there, _ = advance(there, epoch, {item.uid: item.hotkey for item in moved}, moved, RULES)
    ours, theirs = weights(here), weights(there)
    assert (ours is None) == (theirs is None)
    assert {uids[uid]: share for uid, share in (ours or {}).items()} == (theirs or {})


@given(st.lists(any_evidence(0), min_size=1, max_size=5), st.data())
def test_more_verified_work_is_never_paid_less(items: list[Evidence], data: st.DataObject) -> None:
    """In any epoch of any history, left out of rounds or unpaid in between."""
    at, more = data.draw(st.integers(0, len(items) - 1)), data.draw(st.integers(1, 1000))
    steps = items[at].steps
    better = dataclasses.replace(items[at], steps=dataclasses.replace(steps, samples=steps.samples + more))
    assert history([*items[:at], better, *items[at + 1 :]])[-1] >= history(items)[-1]


@given(emas, st.integers(1, 10_000))
def test_failed_at_most_nothing_less_than_honest(ema: float, samples: int) -> None:
    """Whatever was earned before."""
    cheat, idle, honest = (
        after(entry(ema), e).ema for e in (evidence(audits=(FAILED,)), silent(), evidence(0, samples))
    )
    assert cheat == 0.0
    assert cheat <= idle < honest


@given(emas, st.integers(1, 10_000), st.lists(st.sampled_from(Standing), min_size=1, max_size=4))
def test_who_delivers_is_paid_most(ema: float, samples: int, standings: list[Standing]) -> None:
    """No way of not taking part is worth more than taking part, and to withhold is worth less."""
    delivered = after(entry(ema), evidence(0, samples, standings=(Standing.DELIVERED,))).ema
    other = after(entry(ema), evidence(0, samples, standings=tuple(standings))).ema
    assert ema > samples or other <= delivered * (1 + 1e-12)  # an excused epoch keeps what more work earned before
    if any(standing in MISSED for standing in standings):
        assert other < delivered


# --- being left out of rounds


@given(st.integers(1, 1000), st.lists(st.booleans(), min_size=1, max_size=40))
def test_a_leader_that_leaves_a_worker_out_does_it_no_harm(samples: int, asked: list[bool]) -> None:
    """Who goes on working keeps its average through every such epoch, however many there are."""
    work = [evidence(0, samples, standings=(Standing.DELIVERED if yes else Standing.LEFT_OUT,)) for yes in asked]
    without = [item for item, yes in zip(work, asked, strict=True) if yes]
    assert history(work)[-1] == pytest.approx(history(without)[-1] if without else 0.0, rel=1e-12)


@given(emas, st.integers(0, 20))
def test_being_left_out_pays_nobody_who_does_not_work(ema: float, samples: int) -> None:
    """Alive, never in a round: the average falls to what is verifiably done, as fast as that of one who left."""
    idle = history([evidence(0, samples, standings=(Standing.LEFT_OUT,))] * 30, entry(ema))
    gone = history([silent()] * 30, entry(ema))
    assert idle[-1] <= gone[-1] + samples
    assert idle[-1] <= ema


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_who_is_left_out_never_earns_more(samples: int, before: int) -> None:
    """Work that went into no average is not paid, however much it is."""
    row = score_miner(entry(float(before)), evidence(0, 10**6 + samples, standings=(Standing.LEFT_OUT,)), 0, RULES)
    assert (row.outcome, row.after.ema) == (Outcome.LEFT_OUT, float(before))


# --- not being audited


@given(emas, st.integers(1, 10_000), st.sampled_from([Standing.DELIVERED, Standing.LEFT_OUT]))
def test_what_nobody_looked_at_is_not_paid_and_harms_nobody(ema: float, samples: int, seen: Standing) -> None:
    """An unaudited miner that says it worked as before keeps its average; more it cannot get by saying so."""
    unseen = evidence(0, samples, audits=(), standings=(seen,))
    assert after(entry(ema), unseen).ema == (
        ema if samples >= ema else pytest.approx((1 - ALPHA) * ema + ALPHA * samples)
    )
    assert after(entry(float(samples)), unseen).ema == samples


@pytest.mark.parametrize("missed", MISSED)
def test_not_being_audited_is_no_shelter(missed: Standing) -> None:
    """Who delivers nothing earns nothing, whether anybody looked at its records or not; nor does a token of work."""
    assert after(entry(100.0), evidence(0, 500, audits=(), standings=(missed,))).ema == pytest.approx(80.0)
    assert history([evidence(0, 1, audits=())] * 30, entry(100.0))[-1] < 2


# --- newcomers, and coming and going


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0])
def test_a_newcomer_reaches_its_fair_share(alpha: float) -> None:
    """Beside nine old miners, within 5 % of a tenth after R epochs and not one before; R follows from alpha alone."""
    given_rules, needed = rules(ema=alpha), epochs_to_fair_share(alpha)
    old = tuple(Entry(uid=uid, hotkey=f"hot{uid}", ema=100.0) for uid in range(9))
    book, shares = ScoreBook(entries=old), []
    for epoch in range(needed):
        items = [evidence(uid) for uid in range(10)]
        book, _ = advance(book, epoch, {item.uid: item.hotkey for item in items}, items, given_rules)
        shares.append((weights(book) or {})[9])
    assert shares[-1] >= 0.95 * 0.1
    assert needed == 1 or book.entries[9].ema >= 95.0 > 100 * (1 - (1 - alpha) ** (needed - 1))


def test_how_long_that_is() -> None:
    """R for the runs that come with this: 14 epochs at alpha 0.2, 59 at 0.05."""
    assert [epochs_to_fair_share(alpha) for alpha in (1.0, 0.5, 0.2, 0.1, 0.05)] == [1, 5, 14, 29, 59]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60))
def test_work_is_paid_once(samples: list[int]) -> None:
    """Summed over time, until it has faded, an average is the work that went into it: when it was done is all the same.

    So there is nothing in coming and going, in working every other epoch, or in beginning anew.
    """
    assume(sum(samples) > 0)
    fading = [silent()] * 300
    paid = math.fsum(history([*(evidence(0, n) for n in samples), *fading]))
    assert paid == pytest.approx(sum(samples), rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), min_size=1, max_size=60))
def test_another_hotkey_is_never_worth_it(epochs: list[tuple[int, bool]]) -> None:
    """Who registers anew loses what was still to be paid, and gains nothing by being new."""
    loyal = history([evidence(0, n) for n, _ in epochs])
    churning, now = [], entry()
    for epoch, (n, leaves) in enumerate(epochs):
        now = score_miner(entry() if leaves else now, evidence(0, n), epoch, RULES).after
        churning.append(now.ema)
    assert all(new <= old for new, old in zip(churning, loyal, strict=True))


def test_a_penalty_is_not_escaped_at_a_profit() -> None:
    """A new hotkey after a failed audit is paid like any newcomer: nothing at first, and nothing of what was lost."""
    work = [evidence()] * 30
    caught = after(entry(history(work)[-1]), evidence(audits=(FAILED,)))
    assert caught.ema == 0.0
    anew = math.fsum(history(work))
    honest = math.fsum(history(work, entry(history(work)[-1])))
    assert anew < honest - (1 - ALPHA) / ALPHA * 100 * 0.95


def test_hiding_is_being_silent() -> None:
    """Who takes its address off the chain keeps its penalty, and loses its average like one who does not answer."""
    caught, good = evidence(0, audits=(FAILED,)), evidence(1)
    names = hotkeys([caught, good])
    book, _ = advance(ScoreBook(), 0, names, [caught, good], RULES)
    gone = absent(book, frozenset(), ["hot0", "hot1"])
    book, rows = advance(book, 1, names, gone, RULES)
    assert [row.outcome for row in rows] == [Outcome.PENALTY, Outcome.SCORED]
    assert book.unpaid(1) == {"hot0"}
    assert book.entries[1].ema == pytest.approx(0.8 * 20)


@pytest.mark.parametrize("now", [["other", "hot1"], []])
def test_who_lost_its_uid_is_forgotten(now: list[str]) -> None:
    """It is nobody to this validator then; and who is among the miners is not absent."""
    book = ScoreBook(epoch=0, entries=(entry(5.0), Entry(uid=1, hotkey="hot1", ema=5.0)))
    assert absent(book, {1}, now) == ()


# --- one machine, many uids


@st.composite
def divided(draw: st.DrawFn) -> list[list[int]]:
    """What a machine does in some epochs, divided over k uids anew in each."""
    k = draw(st.integers(2, 8))
    return draw(st.lists(st.lists(st.integers(0, 500), min_size=k, max_size=k), min_size=1, max_size=8))


@given(divided(), st.integers(1, 5000), st.floats(0.1, 3.0))
def test_splitting_a_machine_pays_the_same(parts: list[list[int]], others: int, mbytes: float) -> None:
    """However its work is divided, and differently in each epoch: the uids together weigh what the one would."""
    line = evidence().transfers[0]
    moved = (dataclasses.replace(line, bytes=int(mbytes * 1e6)),)
    whole, split = ScoreBook(), ScoreBook()
    for epoch, now in enumerate(parts):
        rest = evidence(0, others)
        one = [rest, evidence(1, sum(now), transfers=moved)]
        many = [rest, *(evidence(uid, n, transfers=moved) for uid, n in enumerate(now, start=1))]
        whole, _ = advance(whole, epoch, hotkeys(one), one, RULES)
        split, _ = advance(split, epoch, hotkeys(many), many, RULES)
    together = math.fsum(share for uid, share in (weights(split) or {}).items() if uid)
    assert together == pytest.approx((weights(whole) or {})[1], rel=1e-9, abs=1e-12)


def hotkeys(items: Sequence[Evidence]) -> dict[int, str]:
    return {item.uid: item.hotkey for item in items}


def expected(samples: Sequence[int], sampled: float) -> float:
    """The mean of the last average over every way in which a validator may sample a uid in these epochs."""
    mean = 0.0
    for seen in itertools.product((True, False), repeat=len(samples)):
        chance = math.prod(sampled if yes else 1 - sampled for yes in seen)
        mean += chance * (history([evidence(0, n) for n, yes in zip(samples, seen, strict=True) if yes]) or [0.0])[-1]
    return mean


@given(divided().filter(lambda parts: len(parts) <= 5), st.floats(0.05, 1.0))
@settings(max_examples=20, deadline=None)
def test_splitting_pays_the_same_where_miners_are_sampled(parts: list[list[int]], sampled: float) -> None:
    """The mean over all draws, computed exactly: an epoch in which a uid is not sampled changes nothing."""
    whole = expected([sum(now) for now in parts], sampled)
    assert math.fsum(expected(mine, sampled) for mine in zip(*parts, strict=True)) == pytest.approx(whole, rel=1e-9)


def paid(shares: Mapping[int, float] | None) -> float:
    """To the machine, whose uids are those from 100 on."""
    return math.fsum(share for uid, share in (shares or {}).items() if uid >= 100)


def simulated(k: int, seed: int, epochs: int = 150, sample: int = 8) -> float:
    """The mean share of a machine of 400 samples an epoch as k uids beside 20 others of 100, 8 sampled an epoch.

    Each of its hotkeys is caught, or dropped for a new one, as often as another's; what it does varies.
    """
    rng, book, names, total = random.Random(seed), ScoreBook(), dict[int, str](), 0.0
    uids = [*range(20), *range(100, 100 + k)]
    for epoch in range(epochs):
        for uid in uids:
            if rng.random() < 0.01 or uid not in names:
                names[uid] = f"{uid}-{epoch}"
        work = {uid: 100 if uid < 100 else rng.randint(200, 600) // k for uid in uids}
        seen = [
            evidence(uid, work[uid], hotkey=names[uid], audits=(FAILED,) if rng.random() < 0.005 else evidence().audits)
            for uid in rng.sample(uids, sample)
        ]
        book, _ = advance(book, epoch, names, seen, RULES)
        total += paid(weights(book))
    return total / epochs


def test_splitting_pays_nothing_in_a_living_subnet() -> None:
    """Sampled in part, audited, penalised and re-registered: eight uids are paid what the one is, and no more."""
    one, eight = ([simulated(k, seed) for seed in range(8)] for k in (1, 8))
    mean, error = sum(eight) / 8 - sum(one) / 8, math.dist(one, [sum(one) / 8] * 8) / 8
    assert mean <= 3 * error, (one, eight)


# --- others


@given(st.data())
def test_nobody_lowers_another_s_average(data: st.DataObject) -> None:
    """Through any history: whoever comes, goes, cheats or is caught, a miner's own numbers are its own."""
    count = data.draw(st.integers(1, 5))
    mine = [data.draw(any_evidence(0)) for _ in range(count)]
    alone, crowd = ScoreBook(), ScoreBook()
    for epoch, item in enumerate(mine):
        others = [data.draw(any_evidence(uid)) for uid in data.draw(st.sets(st.integers(1, 9), max_size=4))]
        alone, _ = advance(alone, epoch, {0: "hot0"}, [item], RULES)
        crowd, _ = advance(crowd, epoch, hotkeys([item, *others]), [item, *others], RULES)
        assert crowd.entries[0] == alone.entries[0]
