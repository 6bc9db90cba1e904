"""From scores to shares the chain accepts: pure."""

from __future__ import annotations

import math

import pytest
from bittensor.intents import normalize
from hypothesis import given
from hypothesis import strategies as st

from template.chain.weights import burn, process, quantised

U16 = 65535


def test_plain_normalisation() -> None:
    """Without limits the shares are the scores over their sum, zeros left out."""
    assert process({0: 0.0, 1: 3.0, 2: 1.0}, uids=3, owner_uid=0) == {1: 0.75, 2: 0.25}


@pytest.mark.parametrize("scores", [{}, {1: 0.0, 2: 0.0}])
def test_nothing_earned_is_burned(scores: dict[int, float]) -> None:
    """Never evenly to all."""
    assert process(scores, uids=3, owner_uid=0) == burn(0) == {0: 1.0}


def test_minimum_count_is_filled_with_dust() -> None:
    """The owner first, then by uid, each with the smallest weight the chain can hold."""
    shares = process({2: 1.0}, uids=4, owner_uid=3, min_allowed=3)
    assert list(shares) == [2, 3, 0]
    assert shares[3] == shares[0] == pytest.approx(1 / U16, rel=1e-3)
    assert normalize(list(shares), list(shares.values()))[1] == [U16, 1, 1]


def test_who_is_to_come_last_fills_up_last() -> None:
    """Even the dust goes to the others first, as long as there are any."""
    assert list(process({2: 1.0}, uids=5, owner_uid=4, min_allowed=4, last=(0, 1))) == [2, 4, 3, 0]


def test_without_an_owner_only_burning_is_impossible() -> None:
    """What was earned is paid; what was not has nowhere to go."""
    assert process({1: 1.0, 2: 1.0}, uids=3, owner_uid=None, min_allowed=3) == pytest.approx(
        {1: 0.5, 2: 0.5, 0: 0.0}, abs=1e-4
    )
    with pytest.raises(ValueError, match="no uid to burn it with"):
        process({1: 0.0}, uids=3, owner_uid=None)


@given(st.dictionaries(st.integers(0, 39), st.floats(1e-3, 1e9), min_size=2, max_size=40), st.integers(4000, U16))
def test_quantised_is_what_the_sdk_sends(scores: dict[int, float], limit: int) -> None:
    """The largest share becomes 65535, the others keep their proportion to the nearest step."""
    shares = process(scores, uids=40, owner_uid=0, max_limit=limit)
    values, top = quantised(shares, limit), max(shares.values())
    assert max(values.values()) == U16
    assert all(abs(values.get(uid, 0) - U16 * share / top) <= 0.51 for uid, share in shares.items())


def test_minimum_count_stops_at_the_subnet() -> None:
    """A subnet smaller than the minimum gets all its uids, as the chain asks."""
    assert set(process({1: 1.0}, uids=2, owner_uid=0, min_allowed=8)) == {0, 1}


def test_limit_moves_the_excess_to_the_others() -> None:
    """Shares over the limit are cut; the others grow in proportion: 0.5, then 0.5 split 3 to 1."""
    shares = process({0: 80.0, 1: 15.0, 2: 5.0}, uids=3, owner_uid=0, max_limit=U16 // 2)
    assert shares == pytest.approx({0: 0.5, 1: 0.375, 2: 0.125}, abs=1e-3)


def test_limit_cascades() -> None:
    """Those who pass the limit by what they were given are cut too."""
    shares = process({0: 90.0, 1: 9.0, 2: 1.0}, uids=3, owner_uid=0, max_limit=int(0.4 * U16))
    assert shares == pytest.approx({0: 0.4, 1: 0.4, 2: 0.2}, abs=1e-3)


@pytest.mark.parametrize("bad", [{1: -1.0}, {1: math.nan}, {1: math.inf}, {9: 1.0}, {-1: 1.0}])
def test_impossible_scores_are_a_bug(bad: dict[int, float]) -> None:
    """They are refused, not repaired."""
    with pytest.raises(ValueError, match="uid"):
        process(bad, uids=3, owner_uid=0)


@given(
    st.dictionaries(st.integers(0, 39), st.floats(0, 1e9), max_size=40),
    st.integers(0, 40),
    st.integers(int(0.05 * U16), U16),
)
def test_the_chain_accepts_all(scores: dict[int, float], minimum: int, limit: int) -> None:
    """Whatever the scores: sum, count and limit hold, also after rounding to u16."""
    shares = process(scores, uids=40, owner_uid=0, min_allowed=minimum, max_limit=limit)
    assert sum(shares.values()) == pytest.approx(1.0)
    uids, quantised = normalize(list(shares), list(shares.values()))
    assert len(uids) >= minimum
    assert max(quantised) * U16 <= limit * sum(quantised)
