"""Codecs by name (names.py has the grammar)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from distributed_training.averaging.codecs.codec import Codec
from distributed_training.averaging.codecs.floating import BFloat16, Float16, Float32
from distributed_training.averaging.codecs.integer import Integer
from distributed_training.averaging.codecs.names import CodecName, IntegerName, PlainName, parse_codec, parse_pair
from distributed_training.averaging.codecs.top_k import TopK
from distributed_training.averaging.codecs.two_bit import TwoBit

_PLAIN: dict[str, Codec] = {codec.name: codec for codec in (Float32(), Float16(), BFloat16())}


@dataclass(frozen=True)
class CodecPair:
    """How the parts of a round travel, and how their average does."""

    parts: Codec
    average: Codec

    @property
    def largest(self) -> float:
        """The largest magnitude that a part may hold, so that the average of parts can be encoded too."""
        return min(self.parts.largest, self.average.largest)


@functools.lru_cache(maxsize=64)
def codec_named(name: str) -> Codec:
    """The codec of that name.

    Raises:
        AveragingError: there is none.
    """
    return _build(parse_codec(name))


@functools.lru_cache(maxsize=64)
def pair_named(name: str) -> CodecPair:
    """The codecs of a round, "parts" or "parts+average".

    Raises:
        AveragingError: there are none, or they contradict each other.
    """
    pair = parse_pair(name)
    return CodecPair(codec_named(pair.parts.text), codec_named(pair.average.text))


def _build(name: CodecName) -> Codec:
    match name:
        case PlainName():
            return _PLAIN[name.text]
        case IntegerName():
            return TwoBit(name) if name.bits == 2 else Integer(name)
        case _:
            return TopK(name.text, name.density, _build(name.values))
