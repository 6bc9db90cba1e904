"""Integers of 8 or 4 bits with a bfloat16 scale for each block.

    header | scale of each block, bfloat16 | codes, in order; two to a byte if they have 4 bits, the first one low

A block's scale is its largest magnitude / top, rounded up; top is 127 or 7. A value is the nearest of -top ... top
times the scale. The error is at most 0.505 * largest magnitude of the block / top. Scales below 2^-126 are zero, so
what is smaller than top * 2^-126 is lost: no result depends on whether a processor flushes subnormal numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.bfloat import SMALLEST_NORMAL, Shorts, narrow_up, widen
from distributed_training.averaging.codecs.codec import (
    HEADER,
    Floats,
    Header,
    Octets,
    Payload,
    require_vector,
    room_for,
)
from distributed_training.averaging.codecs.names import IntegerName
from distributed_training.averaging.codecs.tiles import TILE, block_peaks, in_blocks, tiles
from template.errors import AveragingError

LARGEST = 2.0**110  # sums over the largest block stay finite in float32

Pairs = NDArray[np.complex64]


class Integer:
    """Codecs "int8-block<size>" and "int4-block<size>"."""

    largest = LARGEST

    def __init__(self, name: IntegerName) -> None:
        assert name.bits in (8, 4)
        self.name = name.text
        self._bits = name.bits
        self._block = name.block
        self._top = float(2 ** (name.bits - 1) - 1)
        self._ceiling = np.nextafter(np.float32(LARGEST / self._top), np.float32(0))
        self._header = Header(kind={8: 3, 4: 4}[name.bits], parameter=name.block)
        self._pairs = _pairs_of_nibbles() if name.bits == 4 else None

    def encoded_size(self, n: int) -> int:
        return HEADER + 2 * self._blocks(n) + (n * self._bits + 7) // 8

    def encode(self, values: Floats) -> memoryview:
        values = require_vector(values)
        n = values.size
        payload = np.empty(self.encoded_size(n), dtype=np.uint8)
        self._header.write(payload, n)
        split = HEADER + 2 * self._blocks(n)
        scales, codes = payload[HEADER:split].view("<u2"), payload[split:]
        for where in tiles(n):
            first = where.start // self._block
            tile = in_blocks(values[where], self._block)
            scales[first : first + len(tile)] = shorts = self._scales(tile)
            begin = where.start * self._bits // 8
            room = codes[begin : begin + ((where.stop - where.start) * self._bits + 7) // 8]
            room[:] = self._codes(tile, self._widened(shorts))[: room.size]
        return payload.data

    def decode(self, data: Payload, n: int, out: Floats | None = None) -> Floats:
        self._header.require(data, self.encoded_size(n), n)
        octets = np.frombuffer(data, dtype=np.uint8)
        split = HEADER + 2 * self._blocks(n)
        shorts = octets[HEADER:split].view("<u2")
        self._require_scales(shorts)
        scales, codes = self._widened(shorts), octets[split:]
        out = room_for(n, out)
        work = np.empty(min(TILE, self._blocks(n) * self._block), dtype=np.float32)
        for where in tiles(n):
            begin, count = where.start * self._bits // 8, where.stop - where.start
            blocks, first = self._blocks(count), where.start // self._block
            tile = work[: blocks * self._block].reshape(blocks, self._block)
            self._levels(codes[begin : begin + (count * self._bits + 7) // 8], tile.reshape(-1))
            tile *= scales[first : first + blocks, None]
            out[where] = work[:count]
        return out

    def _blocks(self, n: int) -> int:
        return -(-n // self._block)

    def _scales(self, tile: Floats) -> Shorts:
        peaks = block_peaks(np.abs(tile))
        if not peaks.max() <= self.largest:  # false for NaN as well
            raise AveragingError(f"a value is NaN or beyond {self.largest:g}, the largest that {self.name} can carry")
        shorts = narrow_up(peaks / np.float32(self._top))
        shorts[shorts < SMALLEST_NORMAL] = 0
        return shorts

    def _widened(self, shorts: Shorts) -> Floats:
        """The scales; the very largest ones a little less, so that no value decodes beyond `largest`."""
        return np.minimum(widen(shorts), self._ceiling)

    def _require_scales(self, shorts: Shorts) -> None:
        most = narrow_up(np.array([LARGEST / self._top], dtype=np.float32))[0]
        if shorts.size and (shorts.max() > most or bool(((shorts > 0) & (shorts < SMALLEST_NORMAL)).any())):
            raise AveragingError(f"a payload of {self.name} has a scale that is negative, not finite or out of range")

    def _codes(self, tile: Floats, scales: Floats) -> Octets:
        inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
        steps = tile * inverse[:, None]
        if self._bits == 8:
            np.rint(steps, out=steps)
            return steps.astype(np.int8).reshape(-1).view(np.uint8)
        steps += np.float32(8.5)  # to be cut off: rounds to the nearest of 1 ... 15
        return _packed(steps.astype(np.uint8).reshape(-1))

    def _levels(self, codes: Octets, levels: Floats) -> None:
        """Write -top ... top for each of `codes` to `levels`, and zeros behind them."""
        if self._pairs is None:
            np.maximum(codes.view(np.int8), np.int8(-127), out=levels[: codes.size], casting="unsafe")
        else:
            np.take(self._pairs, codes, out=levels[: 2 * codes.size].view(np.complex64), mode="clip")
        levels[codes.size * 8 // self._bits :] = 0


def _packed(nibbles: Octets) -> Octets:
    """Two codes [2m] to a byte [m], the first one in the low half."""
    twos = nibbles.view("<u2")
    packed: Octets = (twos | (twos >> np.uint16(4))).astype(np.uint8)
    return packed


def _pairs_of_nibbles() -> Pairs:
    """For each byte its two levels, as one element of eight bytes to be looked up at once. Code 0 is -7 as well."""
    octets = np.arange(256)
    levels = np.stack([octets & 15, octets >> 4], axis=1) - 8
    pairs: Pairs = np.maximum(levels, -7).astype(np.float32).view(np.complex64).reshape(-1)
    return pairs
