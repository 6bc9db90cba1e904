"""Cutting a vector into shares and chunks."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.averaging.partition import chunks, partition

shares = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=1, max_size=40).filter(any)


@given(size=st.integers(0, 10**9), given_shares=shares)
def test_shares_cover_the_vector_once_and_in_order(size: int, given_shares: list[float]) -> None:
    """Each element belongs to exactly one share."""
    bounds = partition(size, given_shares)
    assert len(bounds) == len(given_shares)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == size
    assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds))


@given(size=st.integers(0, 10**9), given_shares=shares)
def test_a_share_is_proportional_and_zero_is_nothing(size: int, given_shares: list[float]) -> None:
    """The length of a range differs from its exact part by less than one element; a share of 0 has none."""
    total = math.fsum(given_shares)
    for share, (start, stop) in zip(given_shares, partition(size, given_shares), strict=True):
        assert abs((stop - start) - size * share / total) <= 1 + 1e-6 * size
        assert share > 0 or start == stop


def test_thirds_are_cut_by_hand() -> None:
    """Three equal shares of ten."""
    assert partition(10, [1 / 3, 1 / 3, 1 / 3]) == ((0, 3), (3, 6), (6, 10))


@pytest.mark.parametrize("bad", [[], [0.0, 0.0], [-1.0, 2.0], [float("nan")], [float("inf")]])
def test_impossible_shares_are_refused(bad: list[float]) -> None:
    """No share at all, a negative one or one that is not a number."""
    with pytest.raises(ValueError, match="share"):
        partition(10, bad)


@given(size=st.integers(0, 10**5), chunk=st.integers(1, 10**5))
def test_chunks_cover_the_share_and_are_not_longer_than_asked(size: int, chunk: int) -> None:
    """Chunks follow each other, no more of them than needed; longer ones first, by one; none is empty."""
    cut = chunks(size, chunk)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(cut))
    assert sum(stop - start for start, stop in cut) == size
    lengths = [stop - start for start, stop in cut]
    assert len(cut) == math.ceil(size / chunk)
    assert lengths == sorted(lengths, reverse=True)
    assert not cut or 0 <= lengths[0] - lengths[-1] <= 1 <= lengths[-1] <= lengths[0] <= chunk
