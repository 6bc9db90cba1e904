"""Two bits a value: its sign, and whether it belongs to the small or the big ones of its block.

    header | small and big level of each block, bfloat16 | codes, four to a byte, the first one lowest

A value is big if its magnitude is above 1.25 times the block's mean magnitude. The levels are the mean magnitudes of
the small and of the big ones, rounded to nearest; a value decodes to the level of its group with its sign (zero counts
as positive). No other two levels for these groups have a smaller squared error. The error of a value is at most the
largest magnitude of its block (and 2^-8 of it), and its square summed over a block less than that of the block itself:
with error feedback everything is sent in the end. Levels below 2^-126 are zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.bfloat import SMALLEST_NORMAL, Shorts, narrow, widen
from distributed_training.averaging.codecs.codec import (
    HEADER,
    Floats,
    Header,
    Octets,
    Payload,
    require_vector,
    room_for,
)
from distributed_training.averaging.codecs.integer import LARGEST
from distributed_training.averaging.codecs.names import IntegerName
from distributed_training.averaging.codecs.tiles import TILE, block_sums, in_blocks, tiles
from template.errors import AveragingError

_BIG = np.float32(1.25)  # near the best threshold for values of a normal or a Laplace distribution

Fours = NDArray[np.complex128]


class TwoBit:
    """Codecs "int2-block<size>"."""

    largest = LARGEST

    def __init__(self, name: IntegerName) -> None:
        assert name.bits == 2
        self.name = name.text
        self._block = name.block
        self._header = Header(kind=5, parameter=name.block)
        self._small, self._big = _signs(big=False), _signs(big=True)

    def encoded_size(self, n: int) -> int:
        return HEADER + 4 * self._blocks(n) + (n + 3) // 4

    def encode(self, values: Floats) -> memoryview:
        values = require_vector(values)
        n = values.size
        payload = np.empty(self.encoded_size(n), dtype=np.uint8)
        self._header.write(payload, n)
        split = HEADER + 4 * self._blocks(n)
        levels, codes = payload[HEADER:split].view("<u2").reshape(-1, 2), payload[split:]
        for where in tiles(n):
            first = where.start // self._block
            tile = in_blocks(values[where], self._block)
            room = codes[where.start // 4 : (where.stop + 3) // 4]
            room[:] = self._encode_tile(tile, where.stop - where.start, levels[first : first + len(tile)])[: room.size]
        return payload.data

    def decode(self, data: Payload, n: int, out: Floats | None = None) -> Floats:
        self._header.require(data, self.encoded_size(n), n)
        octets = np.frombuffer(data, dtype=np.uint8)
        split = HEADER + 4 * self._blocks(n)
        shorts, codes = octets[HEADER:split].view("<u2"), octets[split:]
        self._require_levels(shorts)
        levels = widen(shorts).reshape(-1, 2)
        out = room_for(n, out)
        size = min(TILE, self._blocks(n) * self._block)
        small, big = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.float32)
        for where in tiles(n):
            part = codes[where.start // 4 : (where.stop + 3) // 4]
            count, first = where.stop - where.start, where.start // self._block
            blocks = self._blocks(count)
            for column, table, work in ((0, self._small, small), (1, self._big, big)):
                np.take(table, part, out=work[: 4 * part.size].view(np.complex128), mode="clip")
                tile = work[: blocks * self._block].reshape(blocks, self._block)
                tile.reshape(-1)[4 * part.size :] = 0
                tile *= levels[first : first + blocks, column, None]
            np.add(small[:count], big[:count], out=out[where])  # one of the two is zero
        return out

    def _blocks(self, n: int) -> int:
        return -(-n // self._block)

    def _encode_tile(self, tile: Floats, count: int, levels: Shorts) -> Octets:
        """The codes of `tile` [blocks, block], of which `count` values are real; fills `levels` [blocks, 2]."""
        magnitudes = np.abs(tile)
        if not magnitudes.max() <= self.largest:  # false for NaN as well
            raise AveragingError(f"a value is NaN or beyond {self.largest:g}, the largest that {self.name} can carry")
        sizes = np.full(len(tile), self._block, dtype=np.float32)
        sizes[-1] = count - (len(tile) - 1) * self._block
        threshold = block_sums(magnitudes) / sizes * _BIG
        is_big = magnitudes > threshold[:, None]
        numbers = np.add.reduce(is_big, axis=1, dtype=np.uint16).astype(np.float32)
        bigs = magnitudes * is_big
        levels[:, 1] = _level(block_sums(bigs), numbers)
        magnitudes -= bigs
        levels[:, 0] = _level(block_sums(magnitudes), sizes - numbers)
        return _packed(is_big.view(np.uint8).reshape(-1), (tile < 0).view(np.uint8).reshape(-1))

    def _require_levels(self, shorts: Shorts) -> None:
        most = narrow(np.array([LARGEST], dtype=np.float32))[0]
        if shorts.size and (shorts.max() > most or bool(((shorts > 0) & (shorts < SMALLEST_NORMAL)).any())):
            raise AveragingError(f"a payload of {self.name} has a level that is negative, not finite or out of range")


def _level(sums: Floats, numbers: Floats) -> Shorts:
    """The code of each mean; zero where there is nothing."""
    shorts = narrow(np.minimum(sums / np.maximum(numbers, np.float32(1)), np.float32(LARGEST)))
    shorts[shorts < SMALLEST_NORMAL] = 0
    return shorts


def _packed(big: Octets, negative: Octets) -> Octets:
    """Four codes [4m] of two bits to a byte [m]: bit 0 is big, bit 1 the sign."""
    fours = (big | (negative << np.uint8(1))).view("<u4")
    packed = fours | (fours >> np.uint32(6))
    codes: Octets = (packed | (packed >> np.uint32(12))).astype(np.uint8)
    return codes


def _signs(*, big: bool) -> Fours:
    """For each byte the signs of its four values, 0 for those of the other group, as one element of 16 bytes."""
    octets = np.arange(256)
    codes = np.stack([octets >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    signs = np.where(codes & 2, -1, 1) * ((codes & 1) == big)
    fours: Fours = signs.astype(np.float32).view(np.complex128).reshape(-1)
    return fours
