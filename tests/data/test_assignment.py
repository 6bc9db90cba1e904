"""The assignment: a bijection for every size, the same on every machine, nothing twice until all is used up."""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.data.assignment import Assignment, Permutation
from template.errors import CorpusTooSmall, DataError

shapes = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(0, 200))


def make(shape: tuple[int, int, int], run_id: str = "test-0123456789ab") -> Assignment:
    max_uids, pages_per_epoch, spare = shape
    return Assignment(run_id, max_uids * pages_per_epoch + spare, max_uids, pages_per_epoch)


def slow_page(run_id: str, train_pages: int, number: int) -> int:
    """What the module's docstring says, written down a second time with tables instead of arithmetic."""
    pass_number, position = number // train_pages, number % train_pages
    members = [list(range(0, train_pages, 2)), list(range(1, train_pages, 2))]
    half = 0 if position < len(members[0]) else 1
    size = len(members[half])
    rows = next(n for n in range(1, size + 2) if n * n >= size)
    columns = math.ceil(size / rows)
    seed = hashlib.blake2b(f"dt-assignment/1\n{run_id}\n{pass_number}\n{half}".encode(), digest_size=48).digest()
    keys = [int.from_bytes(seed[i : i + 8], "little") for i in range(0, 48, 8)]
    index = position - half * len(members[0])
    while True:
        row, column = index // columns, index % columns
        for turn in range(3):
            row = (row + splitmix64(column ^ keys[2 * turn])) % rows
            column = (column + splitmix64(row ^ keys[2 * turn + 1])) % columns
        index = row * columns + column
        if index < size:
            return members[half][index]


def splitmix64(value: int) -> int:
    """The output function of the reference implementation (Vigna, splitmix64.c), on Python's unbounded integers."""
    value = (value ^ value // 2**30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value // 2**27) * 0x94D049BB133111EB % 2**64
    return value ^ value // 2**31


def test_splitmix_reference_matches_its_published_vector() -> None:
    """The first outputs of splitmix64 for the seed 1234567, as published with it."""
    gamma = 0x9E3779B97F4A7C15
    outputs = [splitmix64((1234567 + i * gamma) % 2**64) for i in (1, 2)]
    assert outputs == [6457827717110365317, 3203168211198807973]


@given(st.integers(1, 3000), st.text(max_size=8))
def test_permutation_is_a_bijection(size: int, label: str) -> None:
    """Every size gives a permutation, and going back undoes it."""
    order = Permutation.keyed(size, label)
    places = order.forward_many(np.arange(size))
    assert sorted(places.tolist()) == list(range(size))
    assert [order.backward(int(place)) for place in places] == list(range(size))


@given(st.integers(1, 2**61), st.data())
def test_permutation_of_any_size_stays_inside_and_can_be_undone(size: int, data: st.DataObject) -> None:
    """Sizes far too large for a table work the same way, alone and in arrays."""
    order = Permutation.keyed(size, "large")
    position = data.draw(st.integers(0, size - 1))
    place = order.forward(position)
    assert 0 <= place < size
    assert order.backward(place) == position
    assert order.forward_many(np.array([position])).tolist() == [place]


@given(shapes, st.integers(0, 5000))
def test_pages_match_an_independent_reference(shape: tuple[int, int, int], number: int) -> None:
    """Page by page and in a span, the numbers are those of the slow reference."""
    it = make(shape)
    turn, k = divmod(number, it.pages_per_epoch)
    epoch, uid = divmod(turn, it.max_uids)
    expected = slow_page(it.run_id, it.train_pages, number)
    assert it.page(epoch, uid, k) == expected
    assert it.pages(epoch, uid, k, 1).tolist() == [expected]
    assert it.owner(expected, number // it.train_pages) == (epoch, uid, k)


VECTOR = [22930, 1988, 5316, 19306, 10100, 21274, 10578, 17232]


def test_pages_never_change() -> None:
    """Fixed numbers, computed once by the slow reference above: a changed order would split a running network."""
    expected = [slow_page("nano-0123456789ab", 23_535, n) for n in range(5 * 2048 + 3 * 128, 5 * 2048 + 3 * 128 + 8)]
    assert expected == VECTOR
    assert Assignment("nano-0123456789ab", 23_535, 16, 128).pages(5, 3, 0, 8).tolist() == VECTOR


@given(shapes)
def test_no_page_comes_twice_before_the_corpus_is_used_up(shape: tuple[int, int, int]) -> None:
    """All uids and epochs together: each pass over the corpus is a permutation of it."""
    it = make(shape)
    rounds = -(-it.train_pages // (it.max_uids * it.pages_per_epoch)) * 2
    given_out = [
        page
        for epoch in range(rounds)
        for uid in range(it.max_uids)
        for page in it.pages(epoch, uid, 0, it.pages_per_epoch).tolist()
    ]
    assert len(set(given_out[: it.train_pages])) == it.train_pages
    assert sorted(it.span(it.train_pages, it.train_pages).tolist()) == list(range(it.train_pages))


@given(shapes, st.integers(0, 300))
def test_no_page_comes_twice_in_an_epoch(shape: tuple[int, int, int], epoch: int) -> None:
    """Nor where one pass ends and the next begins, if the corpus is at least two epochs long."""
    max_uids, pages_per_epoch, spare = shape
    it = make((max_uids, pages_per_epoch, max_uids * pages_per_epoch + spare))
    pages = it.span(epoch * max_uids * pages_per_epoch, max_uids * pages_per_epoch)
    assert len(np.unique(pages)) == len(pages)


def test_each_pass_and_each_run_has_its_own_order() -> None:
    """Another pass or another run shares no more than chance with the first."""
    first = Assignment("one-0123456789ab", 10_000, 10, 100)
    other = Assignment("two-0123456789ab", 10_000, 10, 100)
    order = first.span(0, 10_000)
    assert np.mean(order == first.span(10_000, 10_000)) < 0.01
    assert np.mean(order == other.span(0, 10_000)) < 0.01


def test_pages_are_spread_over_the_corpus() -> None:
    """256 pages of one uid lie evenly in 16 parts of the corpus (chi-square, 15 degrees, p = 0.0001)."""
    it = Assignment("spread-0123456789ab", 519_000_000, 256, 256)
    counts = np.bincount(it.pages(0, 7, 0, 256) * 16 // it.train_pages, minlength=16)
    assert ((counts - 16) ** 2 / 16).sum() < 44.3


def test_large_index_has_no_collisions() -> None:
    """256 uids x 64 epochs x 64 pages on an index of 519 million pages: all different."""
    it = Assignment("large-0123456789ab", 519_000_000, 256, 64)
    pages = np.concatenate([it.pages(epoch, uid, 0, 64) for epoch in range(64) for uid in range(256)])
    assert len(np.unique(pages)) == 256 * 64 * 64
    assert pages.min() >= 0
    assert pages.max() < 519_000_000


@pytest.mark.parametrize(
    ("epoch", "uid", "k", "message"),
    [(-1, 0, 0, "epochs start at 0"), (0, 16, 0, "uids 0 to 15"), (0, -1, 0, "uids 0 to 15"), (0, 0, 8, "8 pages")],
)
def test_what_is_not_assigned_is_refused(epoch: int, uid: int, k: int, message: str) -> None:
    """A uid or k beyond the run's bounds is an error, never somebody else's page."""
    it = Assignment("small-0123456789ab", 128, 16, 8)
    with pytest.raises(DataError, match=message):
        it.page(epoch, uid, k)
    with pytest.raises(DataError, match=message):
        it.pages(epoch, uid, k, 1)


def test_pages_past_the_share_are_refused() -> None:
    """A stretch that begins inside the share and ends outside is refused as a whole."""
    with pytest.raises(DataError, match="pages 6 to 8"):
        Assignment("small-0123456789ab", 128, 16, 8).pages(0, 0, 6, 3)


@pytest.mark.parametrize(("page", "pass_number"), [(128, 0), (-1, 0), (0, -1)])
def test_unknown_pages_have_no_owner(page: int, pass_number: int) -> None:
    """Evidence about a page that does not exist is an error."""
    with pytest.raises(DataError, match="no train page"):
        Assignment("small-0123456789ab", 128, 16, 8).owner(page, pass_number)


def test_too_small_a_corpus_is_refused_with_numbers_and_remedy() -> None:
    """One page fewer than an epoch can assign is too few."""
    Assignment("small-0123456789ab", 128, 16, 8)
    with pytest.raises(CorpusTooSmall, match=r"127 train pages.*128.*16 uids x 8 pages.*lower data.max_uids"):
        Assignment("small-0123456789ab", 127, 16, 8)


@given(shapes.filter(lambda shape: shape[2] > 0), st.integers(0, 50), st.integers(0, 10))
def test_unassigned_pages_are_given_to_nobody(shape: tuple[int, int, int], epoch: int, seed: int) -> None:
    """Different pages of the corpus, none of which any uid has in that epoch; the same draw for the same source."""
    assignment = make(shape)
    found = assignment.unassigned(epoch, 3, random.Random(seed))
    given_away = {page for uid in range(shape[0]) for page in assignment.pages(epoch, uid, 0, shape[1]).tolist()}
    assert not given_away & set(found)
    assert len(set(found)) == len(found) <= 3
    assert all(0 <= page < assignment.train_pages for page in found)
    assert found == assignment.unassigned(epoch, 3, random.Random(seed))
    if shape[2] > 20:
        assert len(found) == 3
