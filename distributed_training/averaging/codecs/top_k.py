"""The values of largest magnitude of each chunk of 4,096, with indices of 12 bits.

    header | indices, two to three bytes, the first one in the low bits | the payload of the values' codec

Of a chunk of m values ceil(m / density) are sent, in ascending order of index; among equal magnitudes the lower index
goes first. All others decode to zero: their error is their value, which is at most the smallest magnitude sent of that
chunk. Those that are sent have the error of the values' codec.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.codec import (
    HEADER,
    Codec,
    Floats,
    Header,
    Octets,
    Payload,
    require_vector,
    require_within,
    room_for,
)
from distributed_training.averaging.codecs.tiles import tiles
from template.errors import AveragingError

CHUNK = 1 << 12  # values: what an index of 12 bits can tell apart
_MAGNITUDE = np.uint32(0x7FFFFFFF)

Indices = NDArray[np.int64]
Bits = NDArray[np.uint32]


class TopK:
    """Codecs "topk<density>-<values>"."""

    def __init__(self, name: str, density: int, values: Codec) -> None:
        self.name = name
        self.largest = values.largest
        self._density = density
        self._values = values
        self._header = Header(kind=6, parameter=density)

    def encoded_size(self, n: int) -> int:
        count = self.count(n)
        return HEADER + (3 * count + 1) // 2 + self._values.encoded_size(count)

    def count(self, n: int) -> int:
        """How many of `n` values are sent."""
        return n // CHUNK * (CHUNK // self._density) + -(-(n % CHUNK) // self._density)

    def encode(self, values: Floats) -> memoryview:
        values = require_vector(values)
        require_within(values, self.largest)
        n = values.size
        where = self.choose(values)
        inner = self._values.encode(values[where])
        payload = np.empty(self.encoded_size(n), dtype=np.uint8)
        self._header.write(payload, n)
        split = payload.size - len(inner)
        payload[HEADER:split] = _packed(where)
        payload[split:] = np.frombuffer(inner, np.uint8)
        return payload.data

    def decode(self, data: Payload, n: int, out: Floats | None = None) -> Floats:
        self._header.require(data, self.encoded_size(n), n)
        count = self.count(n)
        split = HEADER + (3 * count + 1) // 2
        where = self._positions(np.frombuffer(data, np.uint8)[HEADER:split], n)
        values = self._values.decode(memoryview(data)[split:], count)
        out = room_for(n, out)
        out.fill(0)
        out[where] = values
        return out

    def choose(self, values: Floats) -> Indices:
        """The positions of the values that are sent, ascending."""
        bits = values.view(np.uint32)
        chosen = []
        for tile in tiles(values.size - values.size % CHUNK):
            rows = bits[tile].reshape(-1, CHUNK)
            chosen.append(tile.start + _largest(rows, CHUNK // self._density))
        rest = values.size % CHUNK
        if rest:
            chosen.append(values.size - rest + _largest(bits[-rest:].reshape(1, rest), -(-rest // self._density)))
        return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)

    def _positions(self, packed: Octets, n: int) -> Indices:
        """The positions in the vector [count]; refused unless they ascend and lie in their chunks."""
        count, per_chunk = self.count(n), CHUNK // self._density
        indices = _unpacked(packed, count)
        positions = np.arange(count) // per_chunk * CHUNK + indices
        ascending = bool((positions[1:] > positions[:-1]).all())
        if not ascending or (count and positions[-1] >= n):
            raise AveragingError(f"a payload of {self.name} has indices out of order or beyond the last value")
        return positions


def _largest(rows: Bits, count: int) -> Indices:
    """The positions in `rows`, taken as one vector, of the `count` largest magnitudes of each row, ascending.

    Magnitudes of finite floats are ordered as their bits are, and bits compare alike everywhere.
    """
    magnitudes = rows & _MAGNITUDE
    last = magnitudes.shape[1] - count
    threshold = np.partition(magnitudes, last, axis=1)[:, last : last + 1]
    chosen = magnitudes >= threshold
    for row in np.flatnonzero(np.count_nonzero(chosen, axis=1) != count):  # more are equal than there is room for
        above, equal = magnitudes[row] > threshold[row], np.flatnonzero(magnitudes[row] == threshold[row])
        chosen[row] = above
        chosen[row, equal[: count - np.count_nonzero(above)]] = True
    return np.flatnonzero(chosen)


def _packed(positions: Indices) -> Octets:
    """The low 12 bits of each position, two in three bytes; after an odd number of them 4 bits are zero."""
    even = np.zeros(positions.size + positions.size % 2, dtype=np.uint16)
    even[: positions.size] = positions & (CHUNK - 1)
    first, second = even[0::2], even[1::2]
    packed = np.empty((first.size, 3), dtype=np.uint8)
    packed[:, 0] = first & 0xFF
    packed[:, 1] = (first >> 8) | ((second & 0xF) << 4)
    packed[:, 2] = second >> 4
    return packed.reshape(-1)[: (3 * positions.size + 1) // 2]


def _unpacked(packed: Octets, count: int) -> Indices:
    triples = np.zeros((-(-count // 2), 3), dtype=np.int64)
    triples.reshape(-1)[: packed.size] = packed
    pairs = np.empty((len(triples), 2), dtype=np.int64)
    pairs[:, 0] = triples[:, 0] | (triples[:, 1] & 0xF) << 8
    pairs[:, 1] = triples[:, 1] >> 4 | triples[:, 2] << 4
    indices = pairs.reshape(-1)
    if indices[count:].any():
        raise AveragingError("the unused bits of the indices are not zero")
    return indices[:count]
