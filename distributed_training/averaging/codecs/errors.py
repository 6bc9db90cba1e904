"""How far a decoded value can be from the one that was encoded: what each codec promises, from the decoded side.

The bounds are those of the codecs' own docstrings. Where a decoded payload does not bound its error, it is infinite.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.codec import Floats
from distributed_training.averaging.codecs.names import CodecName, IntegerName, PlainName, TopKName, parse_codec

_ROUNDING = 1.01  # relative bounds hold for the value that was encoded, not for the decoded one
_HALF_STEP = 0.51  # of an integer codec's block: 0.505 of it, and its largest value is one of the decoded ones


def error_bounds(codec: str, decoded: Floats, where: NDArray[np.int64]) -> Floats:
    """Bounds on |decoded - encoded| of the values at `where` [n] of one payload's `decoded` values, float32 [n].

    Raises:
        AveragingError: there is no such codec.
    """
    bounds = _bounds(parse_codec(codec), decoded, where)
    return np.asarray(bounds, dtype=np.float32)


def _bounds(codec: CodecName, decoded: Floats, where: NDArray[np.int64]) -> NDArray[np.float64]:
    values = np.abs(decoded[where].astype(np.float64))
    match codec:
        case PlainName():
            return _plain(codec.text, values)
        case IntegerName(bits=2):  # a level is a mean of magnitudes: how far the largest was above it, nobody knows
            return np.full(where.size, np.inf)
        case IntegerName():
            return _integer(codec, decoded, where)
        case TopKName():
            return _sparse(codec, decoded, where, values)


def _plain(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    if name == "none":
        return np.zeros(values.size)
    relative, smallest = (2.0**-11, 2.0**-25) if name == "fp16" else (2.0**-8, 2.0**-134)
    return _ROUNDING * np.maximum(relative * values, smallest)


def _integer(codec: IntegerName, decoded: Floats, where: NDArray[np.int64]) -> NDArray[np.float64]:
    """The largest value of a block decodes to at least itself."""
    top = 2 ** (codec.bits - 1) - 1
    peaks = np.array([_peak(decoded, int(index) // codec.block * codec.block, codec.block) for index in where])
    return np.asarray(_HALF_STEP * peaks / top + top * 2.0**-126, dtype=np.float64)


def _peak(decoded: Floats, start: int, length: int) -> float:
    return float(np.abs(decoded[start : start + length]).max())


def _sparse(
    codec: TopKName, decoded: Floats, where: NDArray[np.int64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A zero may not have been sent; integers share blocks with others from anywhere in the payload."""
    match codec.values:
        case PlainName():
            bounds = _plain(codec.values.text, values)
        case IntegerName(bits=2):
            return np.full(where.size, np.inf)
        case IntegerName():
            peak = _peak(decoded, 0, decoded.size)
            bounds = np.full(where.size, _HALF_STEP * peak / (2 ** (codec.values.bits - 1) - 1))
    return np.where(values > 0, bounds, np.inf)
