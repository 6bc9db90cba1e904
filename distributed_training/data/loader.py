"""Micro-batches of a run: pages of the corpus, tokenized, packed into sequences, with labels.

The tokens of a page, an end token after each document that ends on it, are cut into windows of `sequence_length`. The
label of a position is the next token of the same page; the last token of a page has none (IGNORED), because pages are
read one by one. A last window that is not full is filled up with end tokens whose labels are IGNORED. Every token of a
page is an input exactly once and nothing is dropped, so the number of samples of a page follows from its text.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distributed_training.data.assignment import Assignment
from distributed_training.data.split import Split
from distributed_training.data.tokenizer import Tokens, Vocabulary
from distributed_training.data.tokens import TokenSource
from distributed_training.run import DataSpec
from template.errors import DataError

IGNORED = -100  # what PyTorch's cross entropy leaves out by default
_CACHED_TOKENS = 2_000_000  # 16 MB


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One forward and backward. `pages` are corpus page numbers.

    `input_ids`: int64 [samples, sequence_length]. `labels`: the same shape, already shifted: `labels[s, t]` is the
    token after `input_ids[s, t]`, or IGNORED. The arrays belong to the receiver.
    """

    number: int
    pages: tuple[int, ...]
    input_ids: Tokens
    labels: Tokens

    @property
    def samples(self) -> int:
        return len(self.input_ids)


def pack(tokens: Tokens, sequence_length: int, end: int) -> tuple[Tokens, Tokens]:
    """The windows of one page: (input_ids, labels), both int64 [samples, sequence_length]. `tokens`: int64 [n]."""
    samples = -(-len(tokens) // sequence_length)
    input_ids = np.full(samples * sequence_length, end, np.int64)
    labels = np.full(samples * sequence_length, IGNORED, np.int64)
    input_ids[: len(tokens)] = tokens
    labels[: max(len(tokens) - 1, 0)] = tokens[1:]
    shape = (samples, sequence_length)
    return input_ids.reshape(shape), labels.reshape(shape)


class Loader:
    """What any (epoch, uid, number) trains on, for miners and for those who recompute their work. Thread-safe.

    Raises:
        CorpusTooSmall: the corpus has fewer pages than are held out and one epoch can assign.
    """

    def __init__(self, spec: DataSpec, run_id: str, source: TokenSource) -> None:
        self.spec = spec
        self.split = Split(source.pages, spec.held_out_pages)
        self.assignment = Assignment(run_id, self.split.train_pages, spec.max_uids, spec.pages_per_epoch)
        self.source = source
        self._cache: OrderedDict[int, Tokens] = OrderedDict()
        self._cached_tokens = 0
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> Vocabulary:
        """What made the tokens."""
        return self.source.tokenizer

    @property
    def fingerprint(self) -> str:
        """64 hex digits over corpus and tokenizer: neurons with equal ones make equal batches."""
        return hashlib.sha256(f"{self.source.fingerprint}\n{self.tokenizer.fingerprint}".encode()).hexdigest()

    @property
    def micro_batches_per_epoch(self) -> int:
        """How many micro-batches an epoch assigns to one uid; `number` is below it."""
        return self.spec.pages_per_epoch // self.spec.pages_per_micro_batch

    def pages(self, epoch: int, uid: int, number: int) -> tuple[int, ...]:
        """The corpus pages of micro-batch `number`; reads nothing.

        Raises:
            DataError: uid or number is outside what the run assigns.
        """
        count = self.spec.pages_per_micro_batch
        train_pages = self.assignment.pages(epoch, uid, number * count, count)
        return tuple(self.split.corpus_pages(train_pages).tolist())

    def micro_batch(self, epoch: int, uid: int, number: int) -> MicroBatch:
        """Micro-batch `number` of `uid` in `epoch`.

        Raises:
            DataError: uid or number is outside what the run assigns, or the text is not what the source promises.
            SourceUnavailable: the corpus cannot be read now.
        """
        return self.batch(self.pages(epoch, uid, number), number)

    def batch(self, pages: Sequence[int], number: int = 0) -> MicroBatch:
        """The micro-batch of the given corpus pages; `number` is passed through.

        Raises:
            DataError: no pages, or one that the corpus does not have.
            SourceUnavailable: the corpus cannot be read now.
        """
        if not pages:
            raise DataError("a micro-batch needs at least one page")
        packed = [pack(self._tokens(page), self.spec.sequence_length, self.tokenizer.end) for page in pages]
        input_ids = np.concatenate([inputs for inputs, _ in packed])
        labels = np.concatenate([labels for _, labels in packed])
        return MicroBatch(number, tuple(pages), input_ids, labels)

    def unassigned(self, epoch: int, count: int, rng: random.Random) -> list[MicroBatch]:
        """At most `count` micro-batches of pages that `epoch` gives to nobody, drawn by `rng`, numbered from 0.

        Raises:
            DataError: the text is not what the source promises.
            SourceUnavailable: the corpus cannot be read now.
        """
        size = self.spec.pages_per_micro_batch
        drawn = np.array(self.assignment.unassigned(epoch, count * size, rng), dtype=np.int64)
        pages = self.split.corpus_pages(drawn).tolist()
        return [self.batch(pages[i : i + size], i // size) for i in range(0, len(pages), size)]

    def held_out(self) -> list[MicroBatch]:
        """All held-out pages, in micro-batches of at most `pages_per_micro_batch` pages, numbered from 0.

        Raises:
            SourceUnavailable: the corpus cannot be read now.
        """
        pages, size = self.split.held_out_pages.tolist(), self.spec.pages_per_micro_batch
        return [self.batch(pages[i : i + size], i // size) for i in range(0, len(pages), size)]

    def close(self) -> None:
        """Give back what is open; whoever waits for a page gets SourceUnavailable."""
        self.source.close()

    def _tokens(self, page: int) -> Tokens:
        """All tokens of a page with its end tokens, int64 [n]; kept for the next caller."""
        with self._lock:
            if page in self._cache:
                self._cache.move_to_end(page)
                return self._cache[page]
        tokens = self.source.tokens(page)
        self._keep(page, tokens)
        return tokens

    def _keep(self, page: int, tokens: Tokens) -> None:
        with self._lock:
            if page in self._cache or len(tokens) > _CACHED_TOKENS:
                return
            self._cache[page] = tokens
            self._cached_tokens += len(tokens)
            while self._cached_tokens > _CACHED_TOKENS:
                _, oldest = self._cache.popitem(last=False)
                self._cached_tokens -= len(oldest)
