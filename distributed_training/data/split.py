"""Which pages of a corpus are held out, and how the others are numbered.

The corpus is cut into `held_out` stretches of equal length and one page of each, chosen by a hash, is held out: spread
over the whole corpus, and never assigned to a miner because the numbering of the train pages leaves them out. The
choice depends on the numbers of pages alone, so runs that differ in other settings can be compared on the same text.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from distributed_training.data.assignment import Pages
from template.errors import CorpusTooSmall, DataError


def _chosen(pages: int, held_out: int, stretch: int) -> int:
    first, end = stretch * pages // held_out, (stretch + 1) * pages // held_out
    digest = hashlib.blake2b(f"dt-held-out/1\n{pages}\n{held_out}\n{stretch}".encode(), digest_size=8).digest()
    return first + int.from_bytes(digest, "little") % (end - first)


@dataclass(frozen=True)
class Split:
    """A corpus of `pages` pages of which `held_out` are for evaluation only.

    Raises:
        CorpusTooSmall: nothing would be left to train on.
    """

    pages: int
    held_out: int

    def __post_init__(self) -> None:
        if self.held_out < 0:
            raise DataError(f"data.held_out_pages must not be negative; found {self.held_out}")
        if self.held_out >= self.pages:
            raise CorpusTooSmall(
                f"the corpus has {self.pages} pages and {self.held_out} are to be held out, which leaves none to "
                "train on: take a larger corpus, or lower data.held_out_pages or data.page_size"
            )

    @property
    def train_pages(self) -> int:
        return self.pages - self.held_out

    @functools.cached_property
    def held_out_pages(self) -> Pages:
        """The corpus page numbers held out, ascending, int64 [held_out]."""
        return np.array([_chosen(self.pages, self.held_out, i) for i in range(self.held_out)], np.int64)

    @functools.cached_property
    def _before(self) -> Pages:
        return self.held_out_pages - np.arange(self.held_out)  # train pages before each held-out page

    def corpus_pages(self, train_pages: Pages) -> Pages:
        """The corpus page numbers of `train_pages`, int64 [n]."""
        return train_pages + np.searchsorted(self._before, train_pages, side="right")

    def train_page(self, page: int) -> int:
        """The train page number of the corpus page `page`: the inverse of `corpus_pages`.

        Raises:
            DataError: the page is held out or does not exist.
        """
        place = int(np.searchsorted(self.held_out_pages, page))
        if not 0 <= page < self.pages:
            raise DataError(f"no page {page}: the corpus has {self.pages} pages")
        if place < self.held_out and self.held_out_pages[place] == page:
            raise DataError(f"page {page} is held out and assigned to nobody")
        return page - place
