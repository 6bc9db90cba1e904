"""Names of codecs. A name is one format for ever; a changed format gets a new name. Pure text: imports no arithmetic.

    codec   := "none" | "fp16" | "bf16" | integer | "topk" density "-" ("fp16" | "bf16" | integer)
    integer := "int" ("8" | "4" | "2") "-block" size      size:    16, 32, 64 ... 4096
    pair    := dense | codec "+" codec                    density: 2, 4, 8 ... 1024 (one value in so many is sent)

A pair says how the parts of a round travel and, after the "+", how their average does. One name serves for both if it
is dense. The average of sparse parts is denser than they are, so a top-k name needs the second one. Examples:
"int4-block64", "topk32-int2-block64+int8-block256".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from template.errors import AveragingError

PLAIN = ("none", "fp16", "bf16")
BITS = (8, 4, 2)
BLOCKS = tuple(1 << power for power in range(4, 13))
DENSITIES = tuple(1 << power for power in range(1, 11))
KNOWN = (
    "none, fp16, bf16, int8-block<size>, int4-block<size>, int2-block<size>, topk<density>-<fp16, bf16 or int...>, "
    f"with size in {', '.join(map(str, BLOCKS))} and density in {', '.join(map(str, DENSITIES))}"
)

_NUMBER = "[1-9][0-9]{0,3}"
_INTEGER = re.compile(f"int([842])-block({_NUMBER})")
_TOP_K = re.compile(f"topk({_NUMBER})-(.+)")


@dataclass(frozen=True, kw_only=True)
class PlainName:
    """Floating point numbers one after another."""

    text: str


@dataclass(frozen=True, kw_only=True)
class IntegerName:
    """Integers of `bits`, with a scale for each `block` values."""

    text: str
    bits: int
    block: int


@dataclass(frozen=True, kw_only=True)
class TopKName:
    """The largest one in `density` values, those encoded by `values`."""

    text: str
    density: int
    values: PlainName | IntegerName


CodecName = PlainName | IntegerName | TopKName


@dataclass(frozen=True, kw_only=True)
class PairName:
    """The codec of the parts and that of their average."""

    parts: CodecName
    average: CodecName

    @property
    def lossless(self) -> bool:
        """Whether parts arrive as they were sent, so that there is no error to feed back."""
        return self.parts.text == "none"

    @property
    def makes_zeros(self) -> bool:
        """Whether parts lose their small values: left out, or rounded to zero beside a larger one."""
        return not isinstance(self.parts, PlainName)


def parse_codec(text: str) -> CodecName:
    """The codec that `text` names.

    Raises:
        AveragingError: there is none; the message lists the known ones.
    """
    match = _TOP_K.fullmatch(text)
    if match is None:
        return _parse_dense(text, text)
    density, values = int(match[1]), _parse_dense(match[2], text)
    if density not in DENSITIES or values.text == "none":
        raise _unknown(text)
    return TopKName(text=text, density=density, values=values)


def parse_pair(text: str) -> PairName:
    """The two codecs that `text` names.

    Raises:
        AveragingError: an unknown name, a sparse codec without one for the average, or the same dense codec twice.
    """
    first, plus, second = text.partition("+")
    parts = parse_codec(first)
    sparse = isinstance(parts, TopKName)
    if not plus:
        if sparse:
            raise AveragingError(
                f"codec '{text}' does not say how averages travel, which are denser than their parts; "
                f"for example '{text}+int8-block256'"
            )
        return PairName(parts=parts, average=parts)
    average = parse_codec(second)
    if average == parts and not sparse:
        raise AveragingError(f"codec '{text}' names the same codec twice; write '{first}'")
    return PairName(parts=parts, average=average)


def _parse_dense(text: str, whole: str) -> PlainName | IntegerName:
    if text in PLAIN:
        return PlainName(text=text)
    match = _INTEGER.fullmatch(text)
    if match is None or int(match[2]) not in BLOCKS:
        raise _unknown(whole)
    return IntegerName(text=text, bits=int(match[1]), block=int(match[2]))


def _unknown(text: str) -> AveragingError:
    return AveragingError(f"unknown codec {text!r}; known: {KNOWN}")
