"""bfloat16, the upper half of a float32, by integer arithmetic: the same bits on every machine."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.codec import Floats

Shorts = NDArray[np.uint16]

SMALLEST_NORMAL: Final = 0x0080  # the code of 2^-126


def narrow(values: Floats) -> Shorts:
    """The codes of the nearest bfloat16, ties to even. `values` are at most the largest bfloat16 in magnitude."""
    bits = values.view(np.uint32)
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    odd += np.uint32(0x7FFF)
    odd += bits
    odd >>= np.uint32(16)
    return odd.astype(np.uint16)


def narrow_up(values: Floats) -> Shorts:
    """The codes of the next larger or equal bfloat16 of values that are not negative."""
    bits = values.view(np.uint32) + np.uint32(0xFFFF)
    bits >>= np.uint32(16)
    return bits.astype(np.uint16)


def widen(codes: Shorts) -> Floats:
    """The values of the codes."""
    bits = codes.astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)
