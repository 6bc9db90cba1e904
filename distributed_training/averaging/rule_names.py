"""Names of the rules by which a reducer makes one of the parts. Pure text: imports no arithmetic.

rule := "mean" | kind | kind number
kind := "clip"       (a limit in median norms, at least 1; 3 if none is given, as in clip2.5)
      | "trim"       (a share of the parts at each end, above 0 and below .5; .2 if none is given, as in trim0.1)
      | "centered"   (a limit in median distances from the middle, at least 1; 1 if none is given, as in centered2)
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

from template.errors import AveragingError

MEAN = "mean"
Kind = Literal["mean", "clip", "trim", "centered"]

KNOWN = (
    "mean, clip, clip<limit>, as in clip2.5, trim, trim<share>, as in trim0.1, centered, centered<limit>, as in "
    "centered2, with a limit of at least 1 and a share above 0 and below .5"
)

_DEFAULTS: dict[Kind, float] = {"clip": 3.0, "trim": 0.2, "centered": 1.0}
_NAME = re.compile(r"([a-z]+?)([0-9]{1,6}(?:\.[0-9]{1,6})?)?")


class RuleName(NamedTuple):
    """What a name says: the kind, and its limit or share (0 for the mean, which has none)."""

    kind: Kind
    number: float


def parse_rule(text: str) -> RuleName:
    """What `text` names.

    Raises:
        AveragingError: there is no such rule; the message lists the known ones.
    """
    match = _NAME.fullmatch(text)
    kind = next((known for known in get_args(Kind) if match and match[1] == known), None)
    if match is None or kind is None:
        raise _unknown(text)
    if kind == MEAN:
        if match[2] is not None:
            raise _unknown(text)
        return RuleName(kind, 0.0)
    number = _DEFAULTS[kind] if match[2] is None else float(match[2])
    fits = 0 < number < 0.5 if kind == "trim" else number >= 1
    if not fits:
        raise _unknown(text)
    return RuleName(kind, number)


def _unknown(text: str) -> AveragingError:
    return AveragingError(f"unknown reduction '{text}'; known: {KNOWN}")
