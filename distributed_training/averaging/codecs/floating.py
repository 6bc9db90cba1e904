"""Floating point numbers one after another: float32 itself, IEEE half precision and bfloat16.

Errors: none; half precision at most 2^-11 of the value or 2^-25, whichever is more; bfloat16 at most 2^-8 of the value
or 2^-134.
"""

from __future__ import annotations

import numpy as np

from distributed_training.averaging.codecs.bfloat import narrow, widen
from distributed_training.averaging.codecs.codec import (
    HEADER,
    Floats,
    Header,
    Payload,
    require_length,
    require_vector,
    require_within,
    room_for,
)
from distributed_training.averaging.codecs.tiles import tiles
from template.errors import AveragingError


class Float32:
    """The values themselves, with no header: nothing is copied."""

    name = "none"
    largest = float(np.finfo(np.float32).max)

    def encoded_size(self, n: int) -> int:
        return 4 * n

    def encode(self, values: Floats) -> memoryview:
        values = require_vector(values)
        require_within(values, self.largest)
        return values.astype("<f4", copy=False).view(np.uint8).data

    def decode(self, data: Payload, n: int, out: Floats | None = None) -> Floats:
        require_length(data, self.encoded_size(n))
        values = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
        require_within(values, self.largest)
        if out is None:
            return values
        room_for(n, out)[:] = values
        return out


class Float16:
    """IEEE half precision: about three decimal digits, largest value 65,504."""

    name = "fp16"
    largest = float(np.finfo(np.float16).max)
    _header = Header(kind=1)

    def encoded_size(self, n: int) -> int:
        return HEADER + 2 * n

    def encode(self, values: Floats) -> memoryview:
        values = require_vector(values)
        require_within(values, self.largest)
        payload = np.empty(self.encoded_size(values.size), dtype=np.uint8)
        self._header.write(payload, values.size)
        payload[HEADER:].view("<f2")[:] = values
        return payload.data

    def decode(self, data: Payload, n: int, out: Floats | None = None) -> Floats:
        self._header.require(data, self.encoded_size(n), n)
        halves = np.frombuffer(data, dtype="<f2", offset=HEADER)
        if not np.isfinite(halves).all():
            raise AveragingError("a payload of half precision holds values that are not finite")
        out = room_for(n, out)
        out[:] = halves
        return out


class BFloat16:
    """The upper half of float32, rounded to nearest even: float32's range, two to three decimal digits."""

    name = "bf16"
    largest = float(np.uint32(0x7F7F0000).view(np.float32))
    _header = Header(kind=2)

    def encoded_size(self, n: int) -> int:
        return HEADER + 2 * n

    def encode(self, values: Floats) -> memoryview:
        values = require_vector(values)
        require_within(values, self.largest)
        payload = np.empty(self.encoded_size(values.size), dtype=np.uint8)
        self._header.write(payload, values.size)
        codes = payload[HEADER:].view("<u2")
        for where in tiles(values.size):
            codes[where] = narrow(values[where])
        return payload.data

    def decode(self, data: Payload, n: int, out: Floats | None = None) -> Floats:
        self._header.require(data, self.encoded_size(n), n)
        codes = np.frombuffer(data, dtype="<u2", offset=HEADER)
        if codes.size and bool(((codes & 0x7F80) == 0x7F80).any()):
            raise AveragingError("a payload of bfloat16 holds values that are not finite")
        out = room_for(n, out)
        for where in tiles(n):
            out[where] = widen(codes[where])
        return out
