"""What values look like on the wire: a codec turns float32 chunks into bytes and back, found by name.

A name is one format for ever; a changed format gets a new name, so no two members read each other wrongly.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from template.errors import AveragingError

Floats = NDArray[np.float32]


class Codec(Protocol):
    """Bytes for float32 values. `decode(encode(x), x.size)` is close to `x`, and the same for everybody."""

    @property
    def name(self) -> str:
        """The name in the plan."""

    @property
    def largest(self) -> float:
        """The largest magnitude that can be encoded."""

    def encoded_size(self, n: int) -> int:
        """The number of bytes of `n` values; a frame of any other length is refused unread."""

    def encode(self, values: Floats) -> bytes | memoryview:
        """The bytes of `values` [n], which must not change while the bytes are in use.

        Raises:
            AveragingError: a value has no finite code.
        """

    def decode(self, data: bytes | bytearray | memoryview, n: int) -> Floats:
        """`n` values; they may share memory with `data`.

        Raises:
            AveragingError: `data` is not `encoded_size(n)` bytes long.
        """


class Float32:
    """The values themselves, little-endian."""

    name = "none"
    largest = float(np.finfo(np.float32).max)

    def encoded_size(self, n: int) -> int:
        return 4 * n

    def encode(self, values: Floats) -> bytes | memoryview:
        return np.ascontiguousarray(values, dtype="<f4").view(np.uint8).data

    def decode(self, data: bytes | bytearray | memoryview, n: int) -> Floats:
        _require_length(data, self.encoded_size(n))
        return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)


class Float16:
    """IEEE half precision: half the bytes, about three decimal digits, largest value 65,504."""

    name = "fp16"
    largest = float(np.finfo(np.float16).max)

    def encoded_size(self, n: int) -> int:
        return 2 * n

    def encode(self, values: Floats) -> bytes | memoryview:
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        if not np.isfinite(half).all():
            raise AveragingError("a value does not fit into half precision (largest is 65504); use codec 'none'")
        return half.tobytes()

    def decode(self, data: bytes | bytearray | memoryview, n: int) -> Floats:
        _require_length(data, self.encoded_size(n))
        return np.frombuffer(data, dtype="<f2").astype(np.float32)


def _require_length(data: bytes | bytearray | memoryview, expected: int) -> None:
    if len(data) != expected:
        raise AveragingError(f"{len(data)} bytes where {expected} were expected")


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Float32(), Float16())}


def codec_named(name: str) -> Codec:
    """The codec of that name.

    Raises:
        AveragingError: there is none.
    """
    try:
        return CODECS[name]
    except KeyError:
        raise AveragingError(f"unknown codec {name!r}; known: {', '.join(sorted(CODECS))}") from None
