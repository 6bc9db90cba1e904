"""Who trains on what: a pure function of (run, epoch, uid, k) that anybody can recompute.

The running number `(epoch * max_uids + uid) * pages_per_epoch + k` walks the train pages in a keyed order, pass after
pass, so no page is given out twice until every page has been given out once. Each pass has its own order.

The order of a pass is two keyed permutations: the first half of a pass goes through the even train pages, the second
half through the odd ones. A window of running numbers no longer than half the corpus therefore never holds a page
twice, not even where one pass ends and the next begins: no miner is ever made to repeat itself in one epoch.

A permutation is a Feistel network with modular addition on a grid of `rows * columns >= size` cells, walked on until
it lands inside `size` (cycle walking). Its round keys are a blake2b hash; nothing is stored, whatever the size. The
keys are public: this spreads the work, it hides nothing.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from template.errors import CorpusTooSmall, DataError

Pages = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_ROUNDS = 6
_TRIES = 100  # a page that is wanted
_MASK = 2**64 - 1
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9  # the finaliser of splitmix64 (Steele, Lea, Flood 2014)
_MULTIPLIER_2 = 0x94D049BB133111EB


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * _MULTIPLIER_1) & _MASK
    word = ((word ^ (word >> 27)) * _MULTIPLIER_2) & _MASK
    return word ^ (word >> 31)


def _mix_many(words: _Words) -> _Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_MULTIPLIER_1)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_MULTIPLIER_2)
    return words ^ (words >> np.uint64(31))


@dataclass(frozen=True)
class Permutation:
    """A keyed bijection of `range(size)`; `size` below 2**62, one 64-bit key a round."""

    size: int
    keys: tuple[int, ...]

    @classmethod
    def keyed(cls, size: int, label: str) -> Permutation:
        """The permutation of `range(size)` that belongs to `label`."""
        digest = hashlib.blake2b(label.encode(), digest_size=8 * _ROUNDS).digest()
        return cls(size, struct.unpack(f"<{_ROUNDS}Q", digest))

    @property
    def _grid(self) -> tuple[int, int]:
        rows = math.isqrt(max(self.size - 1, 0)) + 1
        return rows, max(-(-self.size // rows), 1)

    def forward(self, position: int) -> int:
        """Where `position` goes."""
        rows, columns = self._grid
        place = self._step(position)
        for _ in range(rows * columns - self.size):  # no walk is longer than the number of cells outside
            if place < self.size:
                break
            place = self._step(place)
        return place

    def backward(self, place: int) -> int:
        """What `forward` sends to `place`."""
        rows, columns = self._grid
        position = self._step_back(place)
        for _ in range(rows * columns - self.size):
            if position < self.size:
                break
            position = self._step_back(position)
        return position

    def forward_many(self, positions: Pages) -> Pages:
        """`forward` of each element of `positions`, int64 [n]."""
        rows, columns = self._grid
        places = self._step_many(positions.astype(np.uint64))
        outside = np.flatnonzero(places >= self.size)
        for _ in range(rows * columns - self.size):
            if not outside.size:
                break
            places[outside] = self._step_many(places[outside])
            outside = outside[places[outside] >= self.size]
        return places.astype(np.int64)

    def _step(self, cell: int) -> int:
        rows, columns = self._grid
        row, column = divmod(cell, columns)
        for i, key in enumerate(self.keys):
            if i % 2:
                column = (column + _mix(row ^ key) % columns) % columns
            else:
                row = (row + _mix(column ^ key) % rows) % rows
        return row * columns + column

    def _step_back(self, cell: int) -> int:
        rows, columns = self._grid
        row, column = divmod(cell, columns)
        for i, key in reversed(tuple(enumerate(self.keys))):
            if i % 2:
                column = (column - _mix(row ^ key) % columns) % columns
            else:
                row = (row - _mix(column ^ key) % rows) % rows
        return row * columns + column

    def _step_many(self, cells: _Words) -> _Words:
        rows, columns = (np.uint64(side) for side in self._grid)
        row, column = np.divmod(cells, columns)
        for i, key in enumerate(self.keys):
            if i % 2:
                column = (column + _mix_many(row ^ np.uint64(key)) % columns) % columns
            else:
                row = (row + _mix_many(column ^ np.uint64(key)) % rows) % rows
        return row * columns + column


@functools.lru_cache(maxsize=64)
def _order(run_id: str, pass_number: int, half: int, size: int) -> Permutation:
    return Permutation.keyed(size, f"dt-assignment/1\n{run_id}\n{pass_number}\n{half}")


@dataclass(frozen=True)
class Assignment:
    """The train pages of every (epoch, uid, k) of a run. Pages are numbered 0 to `train_pages - 1`.

    Raises:
        CorpusTooSmall: an epoch could assign more pages than there are.
    """

    run_id: str
    train_pages: int
    max_uids: int
    pages_per_epoch: int

    def __post_init__(self) -> None:
        needed = self.max_uids * self.pages_per_epoch
        if self.max_uids < 1 or self.pages_per_epoch < 1:
            raise DataError(f"max_uids ({self.max_uids}) and pages_per_epoch ({self.pages_per_epoch}) must be positive")
        if self.train_pages < needed:
            raise CorpusTooSmall(
                f"the corpus has {self.train_pages} train pages, but one epoch can assign {needed} "
                f"({self.max_uids} uids x {self.pages_per_epoch} pages): take a larger corpus, or lower "
                "data.max_uids, data.pages_per_epoch or data.page_size"
            )

    def page(self, epoch: int, uid: int, k: int) -> int:
        """The train page number `k` of `uid` in `epoch`.

        Raises:
            DataError: `uid` or `k` is outside what the run assigns.
        """
        self._check(epoch, uid, k, 1)
        pass_number, position = divmod(self._running_number(epoch, uid, k), self.train_pages)
        half, offset = divmod(position, self._evens)
        return 2 * self._half(pass_number, half).forward(offset) + half

    def pages(self, epoch: int, uid: int, start: int, count: int) -> Pages:
        """The train pages k = start ... start + count - 1, int64 [count].

        Raises:
            DataError: `uid` or a `k` is outside what the run assigns.
        """
        self._check(epoch, uid, start, count)
        return self.span(self._running_number(epoch, uid, start), count)

    def span(self, first: int, count: int) -> Pages:
        """The train pages of the running numbers first ... first + count - 1, int64 [count]."""
        if first < 0 or count < 0:
            raise DataError(f"running numbers start at 0; asked for {count} from {first}")
        pages = np.empty(count, np.int64)
        done = 0
        while done < count:  # one turn for each half of a pass that the span touches
            pass_number, position = divmod(first + done, self.train_pages)
            half, offset = divmod(position, self._evens)
            order = self._half(pass_number, half)
            length = min(count - done, order.size - offset)
            pages[done : done + length] = 2 * order.forward_many(np.arange(offset, offset + length)) + half
            done += length
        return pages

    def owner(self, page: int, pass_number: int) -> tuple[int, int, int]:
        """The one (epoch, uid, k) to which `page` is given in pass `pass_number` over the corpus.

        Raises:
            DataError: no such page or pass.
        """
        if not 0 <= page < self.train_pages or pass_number < 0:
            raise DataError(f"no train page {page} in pass {pass_number}: there are {self.train_pages} train pages")
        position = page % 2 * self._evens + self._half(pass_number, page % 2).backward(page // 2)
        turn, k = divmod(pass_number * self.train_pages + position, self.pages_per_epoch)
        epoch, uid = divmod(turn, self.max_uids)
        return epoch, uid, k

    def unassigned(self, epoch: int, count: int, rng: random.Random) -> tuple[int, ...]:
        """`count` different train pages that `epoch` gives to nobody, drawn by `rng`; fewer if there are hardly any."""
        chosen: dict[int, None] = {}
        for _ in range(_TRIES * count):
            page = rng.randrange(self.train_pages)
            if not self._gives(epoch, page):
                chosen[page] = None
            if len(chosen) == count:
                break
        return tuple(chosen)

    def _gives(self, epoch: int, page: int) -> bool:
        """Whether the epoch, which may reach from one pass over the corpus into the next, gives the page to a uid."""
        first = self._running_number(epoch, 0, 0)
        last = first + self.max_uids * self.pages_per_epoch - 1
        passes = {number // self.train_pages for number in (first, last)}
        return any(self.owner(page, each)[0] == epoch for each in passes)

    @property
    def _evens(self) -> int:
        return (self.train_pages + 1) // 2

    def _half(self, pass_number: int, half: int) -> Permutation:
        return _order(self.run_id, pass_number, half, (self.train_pages + 1 - half) // 2)

    def _running_number(self, epoch: int, uid: int, k: int) -> int:
        return (epoch * self.max_uids + uid) * self.pages_per_epoch + k

    def _check(self, epoch: int, uid: int, start: int, count: int) -> None:
        if epoch < 0:
            raise DataError(f"epochs start at 0; asked for {epoch}")
        if not 0 <= uid < self.max_uids:
            raise DataError(
                f"uid {uid} has no share of the corpus: this run assigns pages to uids 0 to {self.max_uids - 1} "
                "(data.max_uids)"
            )
        if start < 0 or count < 0 or start + count > self.pages_per_epoch:
            raise DataError(
                f"pages {start} to {start + count - 1} of uid {uid} were asked for, but an epoch assigns "
                f"{self.pages_per_epoch} pages to a uid (data.pages_per_epoch)"
            )
