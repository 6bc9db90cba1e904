"""What a corpus is to the rest of the code: pages that can be read in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from template.errors import DataError


@dataclass(frozen=True)
class Piece:
    """A stretch of one document: `text` is UTF-8. `ends` tells that the document ends here (an end token follows)."""

    text: bytes
    ends: bool


class Corpus(Protocol):
    """What is cut into pages. Reading is thread-safe and touches nothing but what the page needs.

    `fingerprint` is 64 hex digits over names, sizes and what can be had of the content: two machines with the same
    fingerprint have the same corpus. It does not cover the page size, which is part of the run spec.
    """

    @property
    def pages(self) -> int:
        """The number of pages; at least 1."""

    @property
    def fingerprint(self) -> str:
        """sha256, hex."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of files that are not in the corpus because they are not text."""

    def close(self) -> None:
        """Give back what is open; whoever waits for a page gets SourceUnavailable."""


class Source(Corpus, Protocol):
    """A corpus of text."""

    def read(self, page: int) -> tuple[Piece, ...]:
        """The pieces of page `page`, in order. All pages in order give all documents in order, nothing cut or lost.

        Raises:
            DataError: no such page, or its content is not what the source promises.
            SourceUnavailable: it cannot be read now.
        """


class Paging:
    """Cuts parts (documents, row groups, files) that lie end to end into pages of `page_size` units."""

    def __init__(self, counts: npt.ArrayLike, page_size: int) -> None:
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])
        self._page_size = page_size

    @property
    def units(self) -> int:
        return int(self._starts[-1])

    @property
    def pages(self) -> int:
        return -(-self.units // self._page_size)

    def limits(self, page: int) -> tuple[int, int]:
        """First unit of `page` and the one after its last; the last page may be shorter than the others."""
        if not 0 <= page < self.pages:
            raise DataError(f"no page {page}: the corpus has {self.pages} pages")
        return page * self._page_size, min((page + 1) * self._page_size, self.units)

    def part(self, unit: int) -> tuple[int, int]:
        """The part that holds `unit`, and its place in that part."""
        part = int(np.searchsorted(self._starts, unit, side="right")) - 1
        return part, unit - int(self._starts[part])

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(part, first, end) for each part that units start ... stop - 1 touch; first and end count within the part."""
        while start < stop:
            part, first = self.part(start)
            end = min(stop - int(self._starts[part]), int(self._starts[part + 1] - self._starts[part]))
            yield part, first, end
            start += end - first


class MemorySource:
    """A `Source` over documents in memory, `page_size` documents a page."""

    skipped = ()

    def __init__(self, documents: Sequence[str], page_size: int) -> None:
        self._documents = [document.encode() for document in documents]
        self._paging = Paging([len(self._documents)], page_size)
        digests = (hashlib.sha256(document).hexdigest() for document in self._documents)
        self.pages = self._paging.pages
        self.fingerprint = hashlib.sha256("\n".join(["memory", *digests]).encode()).hexdigest()

    def read(self, page: int) -> tuple[Piece, ...]:
        start, stop = self._paging.limits(page)
        return tuple(Piece(document, ends=True) for document in self._documents[start:stop])

    def close(self) -> None:
        return
