"""Which records are recomputed: within the budget on average, unpredictably, and each claim at its price."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.protocol import Record
from distributed_training.scoring.sampling import audit_rate, chances, drawn, duplicates, usual_samples
from tests.scoring.evidence import NANO

AUDIT = dataclasses.replace(NANO.audit, share=0.02, overhead=0.05)


def records(uid: int, count: int, samples: int = 8) -> list[Record]:
    return [
        Record(number=n, pages=(n,), samples=samples, loss=1.0, gradient=(float(uid), n + 1.0)) for n in range(count)
    ]


def test_both_promises_are_kept() -> None:
    """At most the share of each, and all together at most the overhead."""
    assert audit_rate(1, AUDIT) == 0.02
    assert audit_rate(2, AUDIT) == 0.02
    assert audit_rate(16, AUDIT) == 0.05 / 16
    assert audit_rate(0, AUDIT) == 0.02


@pytest.mark.parametrize(("miners", "count"), [(16, 16), (16, 64), (4, 200), (1, 400)])
def test_the_average_cost_is_what_was_promised(miners: int, count: int) -> None:
    """Counted: recomputed samples over those of one miner."""
    rng = random.Random(1)
    reported = {uid: records(uid, count) for uid in range(miners)}
    epochs = 400
    cost = sum(sum(map(len, drawn(reported, AUDIT, rng).values())) for _ in range(epochs)) / (epochs * count)
    assert cost == pytest.approx(min(0.02 * miners, 0.05), rel=0.25)


def test_who_claims_more_is_drawn_more_often() -> None:
    """In proportion; without a claim never, with one beyond measure always."""
    usual = [Record(number=0, pages=(0,), samples=n, loss=1.0, gradient=(1.0,)) for n in (0, 8, 16, 2**53)]
    assert chances(usual, 0.02, 8.0) == [0.0, 0.02, 0.04, 1.0]
    reported = {1: records(1, 20), 2: records(2, 20), 3: [usual[3]]}
    rng = random.Random(2)
    assert all([r.samples for r in drawn(reported, AUDIT, rng)[3]] == [2**53] for _ in range(100))


def test_nobody_makes_its_own_claims_usual() -> None:
    """One voice a miner, however many records it has; of two the modest one counts."""
    assert usual_samples({1: records(1, 3, 8), 2: records(2, 500, 10**6), 3: records(3, 3, 9)}) == 9
    assert usual_samples({1: records(1, 3, 8), 2: records(2, 500, 10**6)}) == 8
    assert usual_samples({1: []}) == usual_samples({}) == 1
    assert usual_samples({1: records(1, 3, 0)}) == 1


@given(st.dictionaries(st.integers(0, 9), st.integers(0, 30), max_size=5), st.integers(0, 2**32))
def test_only_what_was_reported_is_drawn(counts: dict[int, int], seed: int) -> None:
    """Everybody has an answer; records come in their order, none twice."""
    reported = {uid: records(uid, count) for uid, count in counts.items()}
    result = drawn(reported, dataclasses.replace(AUDIT, share=0.5, overhead=10.0), random.Random(seed))
    assert result.keys() == reported.keys()
    for uid, chosen in result.items():
        numbers = [r.number for r in chosen]
        assert numbers == sorted(set(numbers))
        assert set(numbers) <= {r.number for r in reported[uid]}


def test_everything_is_drawn_where_the_budget_allows_it() -> None:
    """A share of one."""
    reported = {uid: records(uid, 7) for uid in range(3)}
    everything = dataclasses.replace(AUDIT, share=1.0, overhead=1e9)
    assert drawn(reported, everything, random.Random(0)) == reported


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1])
def test_a_copy_is_recomputed_at_once_at_any_fraction(fraction: float) -> None:
    """At least one of the copier's and one of the copied, so that the right one is convicted."""
    theirs, mine = records(1, 20), records(2, 20)
    copied = round(20 * fraction)
    mine[:copied] = [m.model_copy(update={"gradient": t.gradient}) for m, t in zip(mine, theirs[:copied], strict=False)]
    for seed in range(50):
        found = duplicates({1: theirs, 2: mine, 3: records(3, 20)}, random.Random(seed))
        assert found.keys() == {1, 2}
        assert all(max(positions) < copied for positions in found.values())


def test_of_a_miner_that_repeats_itself_two_are_recomputed() -> None:
    """One of two equal ones at least is no work, wherever the true one stands; the cost is bounded."""
    repeated = [r.model_copy(update={"gradient": (5.0, 5.0)}) for r in records(1, 20)]
    for seed in range(20):
        assert len(duplicates({1: repeated}, random.Random(seed))[1]) == 2
    crowd = {uid: repeated for uid in range(10)}
    assert all(len(positions) == 2 for positions in duplicates(crowd, random.Random(0)).values())


def test_records_without_gradients_are_nobody_s_copies() -> None:
    """A page on which nothing is to be learned gives zeros to everybody."""
    empty = [r.model_copy(update={"gradient": (0.0, 0.0)}) for r in records(1, 4)]
    assert duplicates({1: empty, 2: empty}, random.Random(0)) == {}
