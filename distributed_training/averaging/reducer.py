"""The reducer's half of a round: takes everybody's parts of its share and makes the average, once, chunk by chunk.

A chunk is averaged when all contributors' parts of it are there, in ascending order of uid, so the result does not
depend on the order of arrival. It is encoded once; everybody, this member included, decodes the same bytes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

import numpy as np

from distributed_training.averaging.codec import Codec, Floats
from distributed_training.averaging.partition import chunks


def weighted_mean(parts: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """sum(w_i x_i) / sum(w_i) of equally long parts [n], summed in float64 in the given order, as float32 [n]."""
    total = np.zeros(parts[0].shape, dtype=np.float64)
    for part, weight in zip(parts, weights, strict=True):
        total += weight * part.astype(np.float64)
    return (total / math.fsum(weights)).astype(np.float32)


class Reducer:
    """Averages one share of `size` values over the contributors in `weights`, in chunks of `chunk` values."""

    def __init__(self, size: int, chunk: int, weights: Mapping[int, float], codec: Codec) -> None:
        self.chunks = chunks(size, chunk)
        self._size = size
        self._weights = dict(sorted(weights.items()))
        self._codec = codec
        self._parts: dict[int, Floats] = {}
        self._missing = [set(self._weights) for _ in self.chunks]
        self._encoded: list[bytes | memoryview] = [b""] * len(self.chunks)
        self._ready = [asyncio.Event() for _ in self.chunks]

    def lend(self, uid: int, part: Floats) -> None:
        """Use `part` [size] itself as the buffer of a contributor: our own, which must not change any more."""
        assert part.shape == (self._size,)
        self._parts[uid] = part

    async def add(self, uid: int, index: int, values: Floats) -> None:
        """Take chunk `index` of a contributor, checked for size and finiteness; averages it if it was the last one."""
        start, stop = self.chunks[index]
        if uid not in self._parts:
            self._parts[uid] = np.empty(self._size, dtype=np.float32)
        if not np.may_share_memory(self._parts[uid], values):
            self._parts[uid][start:stop] = values
        self._missing[index].discard(uid)
        if not self._missing[index]:
            self._encoded[index] = await asyncio.to_thread(self._average, start, stop)
            self._ready[index].set()

    async def encoded(self, index: int) -> bytes | memoryview:
        """The encoded average of a chunk, when it is there: the same object for everybody."""
        await self._ready[index].wait()
        return self._encoded[index]

    def _average(self, start: int, stop: int) -> bytes | memoryview:
        parts = [self._parts[uid][start:stop] for uid in self._weights]
        return self._codec.encode(weighted_mean(parts, list(self._weights.values())))
