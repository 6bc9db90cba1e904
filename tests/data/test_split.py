"""Held-out pages: spread, fixed, and outside the numbering of the train pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.data.split import Split
from template.errors import CorpusTooSmall, DataError

splits = st.integers(1, 400).flatmap(lambda pages: st.builds(Split, st.just(pages), st.integers(0, pages - 1)))


@given(splits)
def test_train_and_held_out_pages_are_the_corpus(split: Split) -> None:
    """Each page is either held out or has exactly one train number, and the way back leads there."""
    train = split.corpus_pages(np.arange(split.train_pages))
    assert sorted([*train.tolist(), *split.held_out_pages.tolist()]) == list(range(split.pages))
    assert [split.train_page(page) for page in train.tolist()] == list(range(split.train_pages))


@given(st.integers(64, 10**9))
def test_held_out_pages_are_spread_over_the_corpus(pages: int) -> None:
    """Each of eight eighths of the corpus has an eighth of the held-out pages, give or take the limits' rounding."""
    counts = np.bincount(Split(pages, 32).held_out_pages * 8 // pages, minlength=8)
    assert counts.min() >= 3
    assert counts.max() <= 5


def test_held_out_pages_do_not_lie_at_regular_distances() -> None:
    """The places within the stretches differ, so a corpus with a rhythm does not give a one-sided choice."""
    places = Split(1_000_000, 100).held_out_pages % 10_000
    assert len(np.unique(places)) > 90
    assert 4_000 < places.mean() < 6_000


HELD_OUT = [210, 312, 525, 853]


def test_held_out_pages_never_change() -> None:
    """Fixed numbers: blake2b of the label, computed with coreutils' b2sum -l 64."""
    assert Split(1000, 4).held_out_pages.tolist() == HELD_OUT


def test_held_out_and_unknown_pages_have_no_train_number() -> None:
    """Nobody can have been assigned a held-out page."""
    split = Split(100, 10)
    with pytest.raises(DataError, match="held out"):
        split.train_page(int(split.held_out_pages[3]))
    with pytest.raises(DataError, match="no page 100"):
        split.train_page(100)


def test_holding_out_everything_is_refused() -> None:
    """A corpus must leave something to train on."""
    with pytest.raises(CorpusTooSmall, match=r"100 pages and 100 .*lower data.held_out_pages"):
        Split(100, 100)
    with pytest.raises(DataError, match="negative"):
        Split(100, -1)
