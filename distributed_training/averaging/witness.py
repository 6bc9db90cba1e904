"""What a reducer keeps of the parts that pass through its share, so that they can be held against other evidence.

A few values of each contributor: at coordinates that everybody knows (what records show), and at others that the
reducer draws itself and tells nobody. Whoever sends knows only afterwards where it was looked at, that is, never.
Memory: the coordinates times the contributors, whatever the size of the model.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codec import Floats
from distributed_training.averaging.codecs.errors import error_bounds

Indices = NDArray[np.int64]

MARKED = 1 << 24  # values of a share for which a byte each is spent for a moment


@dataclass(frozen=True, eq=False)
class Watch:
    """What to keep: the values at `known` indices into the vector [C], ascending, and at `drawn` others of the share.

    `seed` must be secret; it decides which ones are drawn.
    """

    known: Indices
    drawn: int
    seed: int


@dataclass(frozen=True, eq=False)
class Sighting:
    """What one contributor put in: float32 values at the `Sightings`' coordinates, as they were decoded.

    `errors` [known] bounds what the codec of the parts has changed of each known value; infinite where nothing does.
    """

    known: Floats
    errors: Floats
    drawn: Floats


@dataclass(frozen=True, eq=False)
class Sightings:
    """What was kept in one round: where in our share, as ascending indices into the vector, and what each uid sent.

    `average` [C]: what everybody got at all coordinates that were to be watched as known, whoever reduced them, and
    `reducers` [C] the uids of those.
    """

    known: Indices
    drawn: Indices
    by_uid: Mapping[int, Sighting]
    average: Floats
    reducers: Indices


def sighting_of(sightings: Sightings | None, uid: int) -> tuple[Sightings, Sighting] | None:
    """What was kept of a contributor; None if we reduced no share, or its part did not come to us."""
    if sightings is None or uid not in sightings.by_uid:
        return None
    return sightings, sightings.by_uid[uid]


class Witness:
    """Watches the share [start, stop). `see` may be called from any thread; each sender by one at a time."""

    def __init__(self, watch: Watch, start: int, stop: int, codec: str) -> None:
        """`codec`: the name of that of the parts."""
        self._start = start
        self._codec = codec
        self._watched = watch.known
        self._known = watch.known[(watch.known >= start) & (watch.known < stop)]
        self._drawn = _draw(watch, start, stop)
        self._seen: dict[int, tuple[Floats, Floats, Floats]] = {}
        self._chunks: dict[int, int] = {}  # values seen of each sender
        self._size = stop - start
        self._lock = threading.Lock()

    def see(self, uid: int, low: int, values: Floats) -> None:
        """The part of `uid` from `low` of the share on: values [n], decoded; they are copied where they are kept."""
        with self._lock:
            known, errors, drawn = self._seen.setdefault(uid, self._room())
            self._chunks[uid] = self._chunks.get(uid, 0) + values.size
        where, local = self._within(self._known, low, values.size)
        known[where] = values[local]
        if local.size:
            errors[where] = error_bounds(self._codec, values, local)
        where, local = self._within(self._drawn, low, values.size)
        drawn[where] = values[local]

    def sightings(self, average: Floats, ranges: Mapping[int, tuple[int, int]]) -> Sightings:
        """What was kept of those whose whole part was seen; `average` [P] as everybody got it, `ranges` by reducer."""
        with self._lock:
            whole = {uid: self._seen[uid] for uid in sorted(self._seen) if self._chunks[uid] == self._size}
        by_uid = {uid: Sighting(known, errors, drawn) for uid, (known, errors, drawn) in whole.items()}
        reducers = np.empty(self._watched.size, dtype=np.int64)
        for uid, (start, stop) in ranges.items():
            reducers[(self._watched >= start) & (self._watched < stop)] = uid
        return Sightings(self._known, self._drawn, by_uid, average[self._watched], reducers)

    def _within(self, indices: Indices, low: int, n: int) -> tuple[slice, Indices]:
        """Which of the indices lie in this chunk, and where in it."""
        first = self._start + low
        begin, end = np.searchsorted(indices, (first, first + n))
        return slice(int(begin), int(end)), indices[begin:end] - first

    def _room(self) -> tuple[Floats, Floats, Floats]:
        known = np.zeros(self._known.size, dtype=np.float32)
        return known, known.copy(), np.zeros(self._drawn.size, dtype=np.float32)


def _draw(watch: Watch, start: int, stop: int) -> Indices:
    """Different indices of the share, none of them known to others."""
    size = stop - start
    random = np.random.default_rng(watch.seed)
    if size <= 4 * watch.drawn:
        chosen = random.permutation(size)[: watch.drawn].astype(np.int64)
    else:
        chosen = random.integers(0, size, watch.drawn)
    if size > MARKED:
        return np.setdiff1d(chosen + start, watch.known)
    marks = np.zeros(size, dtype=np.bool_)  # faster than sorting
    marks[chosen] = True
    marks[watch.known[(watch.known >= start) & (watch.known < stop)] - start] = False
    return np.flatnonzero(marks).astype(np.int64) + start
