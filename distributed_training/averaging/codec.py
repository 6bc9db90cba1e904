"""What the round needs of the codecs (codecs/ has them; they know nothing of rounds)."""

from __future__ import annotations

import sys

import numpy as np

from distributed_training.averaging.codecs.codec import Codec, Floats, within
from distributed_training.averaging.codecs.registry import CodecPair, codec_named, pair_named

__all__ = ["Codec", "CodecPair", "Floats", "all_within", "as_it_lies", "codec_named", "octets", "pair_named", "within"]

BLOCK = 1 << 15  # values that are summed at a time: some parts' stay in a core's cache
LOOK = 1 << 16  # values that are looked at, twice, at a time


def as_it_lies(codec: Codec) -> bool:
    """Whether the encoding of values is their memory, so that nothing has to be copied."""
    return codec.name == "none" and sys.byteorder == "little"


def octets(values: Floats) -> memoryview:
    """The memory of `values` [n], which lie in one piece, as bytes."""
    return values.view(np.uint8).data


def all_within(values: Floats, limit: float) -> bool:
    """Whether all magnitudes in `values` [n] are at most `limit`; false for NaN. Reads the memory once."""
    return all(within(values[start : start + LOOK], limit) for start in range(0, values.size, LOOK))
