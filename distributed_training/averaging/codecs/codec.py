"""The seam that every codec implements, and what they share: the header of a payload and the check of its values.

A payload is a header of 8 bytes and what the codec puts behind it; `none` alone has no header, so that values can
be sent from where they lie. Everything is little-endian. The header holds the version of the layout, the kind of codec,
its parameter and the number of values: bytes of another codec, or for another size, are refused, never misread.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from template.errors import AveragingError

Floats = NDArray[np.float32]
Octets = NDArray[np.uint8]
Payload = bytes | bytearray | memoryview

HEADER = 8  # bytes
VERSION = 1
MOST_VALUES = 2**32 - 1  # of one payload

_LAYOUT = struct.Struct("<BBHI")


class Codec(Protocol):
    """Bytes for float32 values. `decode(encode(x), x.size)` is close to `x`, and the same bits for everybody.

    A codec has no state and may be used by several threads at a time.
    """

    @property
    def name(self) -> str:
        """The name in the run spec."""

    @property
    def largest(self) -> float:
        """The largest magnitude that can be encoded; no decoded one is larger."""

    def encoded_size(self, n: int) -> int:
        """The number of bytes of `n` values, exactly; a frame of any other length can be refused unread."""

    def encode(self, values: Floats) -> memoryview:
        """The bytes of `values` [n], which must not change while the bytes are in use. Equal values, equal bytes.

        Raises:
            AveragingError: not float32 [n], or a value is NaN or beyond `largest`.
        """

    def decode(self, data: Payload, n: int, out: Floats | None = None) -> Floats:
        """`n` finite values: written into `out` [n], or new, or sharing memory with `data`.

        Raises:
            AveragingError: `data` is not what `encode` makes of `n` values; nothing was allocated for it.
        """


@dataclass(frozen=True)
class Header:
    """What a payload says of itself. `kind` numbers the codecs for ever; `parameter` is the codec's own."""

    kind: int
    parameter: int = 0

    def write(self, payload: Octets, n: int) -> None:
        """Put the header of `n` values in front of `payload`."""
        payload[:HEADER] = np.frombuffer(_LAYOUT.pack(VERSION, self.kind, self.parameter, n), np.uint8)

    def require(self, data: Payload, size: int, n: int) -> None:
        """Refuse what is not a payload of `size` bytes with this header and `n` values."""
        require_length(data, size)
        expected = (VERSION, self.kind, self.parameter, n)
        found = _LAYOUT.unpack_from(data)
        if found != expected:
            raise AveragingError(
                f"a payload of (version, codec, parameter, values) {found} where {expected} was expected"
            )


def require_length(data: Payload, expected: int) -> None:
    if memoryview(data).nbytes != expected:
        raise AveragingError(f"{memoryview(data).nbytes} bytes where {expected} were expected")


def require_vector(values: Floats) -> Floats:
    """`values` in one piece; refuses what is not float32 [n]."""
    if values.dtype != np.float32 or values.ndim != 1 or values.size > MOST_VALUES:
        raise AveragingError(f"a codec takes float32 [n], not {values.dtype} {values.shape}")
    return np.ascontiguousarray(values)


def room_for(n: int, out: Floats | None) -> Floats:
    """Where to decode `n` values to."""
    if out is None:
        return np.empty(n, dtype=np.float32)
    if out.dtype != np.float32 or out.shape != (n,) or not out.flags.c_contiguous:
        raise AveragingError(f"decoding {n} values into {out.dtype} {out.shape}")
    return out


def within(values: Floats, limit: float) -> bool:
    """Whether all magnitudes are at most `limit`; false for NaN."""
    return not values.size or bool(-limit <= np.minimum.reduce(values) and np.maximum.reduce(values) <= limit)


def require_within(values: Floats, limit: float) -> None:
    if not within(values, limit):
        raise AveragingError(f"a value is NaN or beyond {limit:g}, the largest that this codec can carry")


def bits_per_parameter(codec: Codec, n: int) -> float:
    """Bits on the wire for each of `n` values in one payload, header included.

    Raises:
        ValueError: `n` is not positive.
    """
    if n < 1:
        raise ValueError(f"{n} values have no bits per parameter")
    return 8 * codec.encoded_size(n) / n
