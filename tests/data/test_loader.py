"""The loader: every token once, labels shifted once, the same batches for everybody."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from distributed_training.data.loader import IGNORED, Loader, MicroBatch, pack
from distributed_training.data.source import MemorySource, Piece
from distributed_training.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from distributed_training.data.tokens import Tokenized
from distributed_training.run import DataSpec
from template.errors import CorpusTooSmall, DataError, SourceUnavailable

SPEC = DataSpec(
    source="text",
    path="unused",
    tokenizer="bytes",
    sequence_length=16,
    page_size=2,
    pages_per_micro_batch=3,
    pages_per_epoch=6,
    max_uids=4,
    held_out_pages=5,
)
DOCUMENTS = [f"document {i} " * (i % 5) for i in range(80)]


def make(documents: Sequence[str] = DOCUMENTS, spec: DataSpec = SPEC) -> Loader:
    return Loader(spec, "loader-0123456789ab", Tokenized(MemorySource(documents, spec.page_size), ByteTokenizer()))


def inputs_of(batch: MicroBatch, end: int) -> list[int]:
    """The inputs without the filling at the end of each page, which a label can never follow."""
    rows = zip(batch.input_ids.ravel().tolist(), batch.labels.ravel().tolist(), strict=True)
    return [token for token, label in rows if (token, label) != (end, IGNORED)]


@given(st.lists(st.integers(0, 99), min_size=1, max_size=70), st.integers(1, 20))
def test_packing_matches_a_loop(tokens: list[int], length: int) -> None:
    """Position by position: the token, and the token after it in the same page."""
    input_ids, labels = pack(np.array(tokens), length, 100)
    assert input_ids.shape == labels.shape == ((len(tokens) + length - 1) // length, length)
    for place in range(input_ids.size):
        window, offset = place // length, place % length
        assert input_ids[window, offset] == (tokens[place] if place < len(tokens) else 100)
        assert labels[window, offset] == (tokens[place + 1] if place + 1 < len(tokens) else -100)


def test_labels_are_shifted_once() -> None:
    """A loss that shifted again would train on the token after the next: by hand, on one short page."""
    batch = make(["abc", "d"] * 40, replace(SPEC, sequence_length=4)).batch([0])
    assert batch.input_ids.tolist() == [[97, 98, 99, 256], [100, 256, 256, 256]]
    assert batch.labels.tolist() == [[98, 99, 256, 100], [256, -100, -100, -100]]


def test_all_pages_hold_all_tokens_once() -> None:
    """Joined in order, the inputs of all pages are all documents, each with its end token."""
    loader = make()
    expected = [token for text in DOCUMENTS for token in [*text.encode(), 256]]
    found = []
    for page in range(loader.source.pages):
        batch = loader.batch([page])
        count = int((batch.labels != IGNORED).sum()) + 1  # the last token of a page has no label
        found += batch.input_ids.ravel()[:count].tolist()
        assert (batch.input_ids.ravel()[count:] == 256).all()
    assert found == expected


def test_tokens_of_words_are_those_of_the_tokenizer(bpe: Backend) -> None:
    """With a tokenizer of words as well; a page is tokenized document by document."""
    tokenizer = HuggingFaceTokenizer(Backend.from_str(bpe.to_str()), "<|endoftext|>", "bpe")
    loader = Loader(SPEC, "loader-0123456789ab", Tokenized(MemorySource(DOCUMENTS, 2), tokenizer))
    expected = [*bpe.encode(DOCUMENTS[8]).ids, tokenizer.end, *bpe.encode(DOCUMENTS[9]).ids]
    assert inputs_of(loader.batch([4]), tokenizer.end) == expected


def test_epoch_of_all_miners_covers_distinct_pages() -> None:
    """No page comes twice, none is held out, and `pages` says beforehand what `micro_batch` will hold."""
    loader = make()
    seen: list[int] = []
    for uid in range(4):
        for number in range(loader.micro_batches_per_epoch):
            batch = loader.micro_batch(0, uid, number)
            assert batch.number == number
            assert batch.pages == loader.pages(0, uid, number)
            seen += batch.pages
    assert len(set(seen)) == len(seen) == 24
    assert not set(seen) & set(loader.split.held_out_pages.tolist())


def test_micro_batch_holds_the_assigned_pages() -> None:
    """Number m of a uid is k = 3m, 3m + 1, 3m + 2 of the assignment, and can be rebuilt from its pages."""
    loader = make()
    batch = loader.micro_batch(3, 2, 1)
    train = [loader.assignment.page(3, 2, k) for k in (3, 4, 5)]
    assert list(batch.pages) == loader.split.corpus_pages(np.array(train)).tolist()
    again = make().batch(batch.pages, number=1)
    assert np.array_equal(again.input_ids, batch.input_ids)
    assert np.array_equal(again.labels, batch.labels)
    assert batch.samples == len(batch.input_ids) > 0


def test_held_out_pages_come_once() -> None:
    """All of them, in micro-batches of at most the usual size."""
    loader = make()
    batches = loader.held_out()
    assert [batch.number for batch in batches] == [0, 1]
    assert [page for batch in batches for page in batch.pages] == loader.split.held_out_pages.tolist()
    assert make(spec=replace(SPEC, held_out_pages=0)).held_out() == []


@pytest.mark.parametrize(("uid", "number"), [(4, 0), (0, 2), (0, -1)])
def test_what_is_not_assigned_is_refused(uid: int, number: int) -> None:
    """A miner that has used up its share, or has none, gets an error."""
    with pytest.raises(DataError, match="assigns"):
        make().micro_batch(0, uid, number)


def test_impossible_batches_are_refused() -> None:
    """No pages, or pages that the corpus does not have."""
    with pytest.raises(DataError, match="at least one page"):
        make().batch([])
    with pytest.raises(DataError, match="no page 40"):
        make().batch([0, 40])


def test_too_small_a_corpus_is_refused() -> None:
    """24 pages for an epoch and 5 held out need 29."""
    make(["x"] * 58)
    with pytest.raises(CorpusTooSmall, match="23 train pages"):
        make(["x"] * 56)
    with pytest.raises(CorpusTooSmall, match="5 are to be held out"):
        make(["x"] * 10)


def test_receivers_may_write_into_their_batch() -> None:
    """The next one to ask gets it as it was."""
    loader = make()
    batch = loader.batch([3, 4])
    before = batch.input_ids.copy()
    batch.input_ids[:] = 7
    assert np.array_equal(loader.batch([3, 4]).input_ids, before)


def test_threads_get_the_same_batches() -> None:
    """Four threads on one loader, against a loader of one thread."""
    shared, alone = make(), make()
    jobs = [(epoch, uid, number) for epoch in range(5) for uid in range(4) for number in range(2)] * 3
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda job: shared.micro_batch(*job), jobs))
    for job, batch in zip(jobs, batches, strict=True):
        assert np.array_equal(batch.input_ids, alone.micro_batch(*job).input_ids)


class FlakySource(MemorySource):
    """Counts reads and can be switched off."""

    def __init__(self, documents: Sequence[str], page_size: int) -> None:
        super().__init__(documents, page_size)
        self.reads = 0
        self.broken = threading.Event()

    def read(self, page: int) -> tuple[Piece, ...]:
        if self.broken.is_set():
            raise SourceUnavailable("the disk is gone")
        self.reads += 1
        return super().read(page)


def test_outages_are_passed_on_and_end() -> None:
    """A page that cannot be read is no empty page, and is read again when it can be."""
    source = FlakySource(DOCUMENTS, 2)
    loader = Loader(SPEC, "loader-0123456789ab", Tokenized(source, ByteTokenizer()))
    source.broken.set()
    with pytest.raises(SourceUnavailable):
        loader.micro_batch(0, 0, 0)
    source.broken.clear()
    assert loader.micro_batch(0, 0, 0).samples > 0


def test_cache_is_bounded() -> None:
    """Pages that come again are not read again, until the newer ones have taken their room."""
    source = FlakySource(["y" * 300_000] * 40, 1)
    loader = Loader(replace(SPEC, page_size=1), "loader-0123456789ab", Tokenized(source, ByteTokenizer()))
    for page in (0, 0, 1, 0):
        loader.batch([page])
    assert source.reads == 2
    for page in range(2, 9):  # with 300,001 tokens each, six pages fit
        loader.batch([page])
    loader.batch([0])
    assert source.reads == 10


def test_fingerprint_covers_corpus_and_tokenizer(bpe: Backend) -> None:
    """Either one makes other batches."""
    tokenizer = HuggingFaceTokenizer(Backend.from_str(bpe.to_str()), "<|endoftext|>", "bpe")
    prints = {
        make().fingerprint,
        make([*DOCUMENTS, "more"]).fingerprint,
        Loader(SPEC, "loader-0123456789ab", Tokenized(MemorySource(DOCUMENTS, 2), tokenizer)).fingerprint,
    }
    assert len(prints) == 3
    assert make().fingerprint in prints
