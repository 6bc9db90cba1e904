"""Text with something to learn: a Markov chain of random transitions, any number of pages, in memory."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distributed_training.data.loader import Loader
from distributed_training.data.tokenizer import Tokens
from distributed_training.run import RunSpec
from template.errors import DataError

SYMBOLS = 63
VOCABULARY = SYMBOLS + 1  # the last one ends a document
PAGE = 64  # tokens
RANK = 4
SHARPNESS = 3.0
EVEN = 0.1  # of each row is spread over all symbols, so that every transition occurs


@dataclass(frozen=True)
class Symbols:
    """The vocabulary of the chain."""

    vocab_size: int = VOCABULARY
    end: int = SYMBOLS
    fingerprint: str = hashlib.sha256(b"markov/1").hexdigest()


class Chain:
    """A `TokenSource` of `pages` pages."""

    skipped: tuple[str, ...] = ()

    def __init__(self, seed: int, pages: int) -> None:
        self.pages = pages
        self.tokenizer = Symbols()
        self.fingerprint = hashlib.sha256(f"markov/1 {seed} {pages}".encode()).hexdigest()
        self._tokens = _text(seed, pages)

    def tokens(self, page: int) -> Tokens:
        if not 0 <= page < self.pages:
            raise DataError(f"no page {page}: the corpus has {self.pages} pages")
        return self._tokens[page]

    def close(self) -> None:
        return


@functools.lru_cache(maxsize=4)
def _text(seed: int, pages: int) -> npt.NDArray[np.int64]:
    """int64 [pages, PAGE]: one document a page."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=(SYMBOLS, RANK)) @ random.normal(size=(RANK, SYMBOLS)) / np.sqrt(RANK)
    likely = np.exp(SHARPNESS * scores)
    steps = (1 - EVEN) * likely / likely.sum(1, keepdims=True) + EVEN / SYMBOLS
    reached = np.cumsum(steps, axis=1)
    tokens = np.empty((pages, PAGE), np.int64)
    tokens[:, 0] = random.integers(0, SYMBOLS, pages)
    for place in range(1, PAGE - 1):
        passed = reached[tokens[:, place - 1]] < random.random((pages, 1))
        tokens[:, place] = np.minimum(passed.sum(1), SYMBOLS - 1)
    tokens[:, -1] = SYMBOLS
    return tokens


class SmallLoader(Loader):
    """The product's loader, without its array arithmetic where a micro-batch has few pages."""

    def pages(self, epoch: int, uid: int, number: int) -> tuple[int, ...]:
        count = self.spec.pages_per_micro_batch
        train = [self.assignment.page(epoch, uid, number * count + i) for i in range(count)]
        return tuple(self.split.corpus_pages(np.array(train, np.int64)).tolist())


def loader_of(spec: RunSpec, pages: int) -> SmallLoader:
    """The loader of a run over a chain that belongs to its seed."""
    return SmallLoader(spec.data, spec.run_id, Chain(spec.seed, pages))
