"""Names of the rules by which a reducer makes one of the parts. Pure text: imports no arithmetic.

rule := "mean" | "clip" | "clip" limit        "clip" is "clip3"; a limit is at least 1, as in "clip2.5"
"""

from __future__ import annotations

import re

from template.errors import AveragingError

MEAN = "mean"
DEFAULT_LIMIT = 3.0  # times the median norm
KNOWN = "mean, clip, clip<limit>, as in clip2.5, with a limit of at least 1"

_CLIP = re.compile(r"clip([0-9]{1,6}(?:\.[0-9]{1,6})?)?")


def parse_rule(text: str) -> float | None:
    """The limit of the clipping that `text` names; None for the mean.

    Raises:
        AveragingError: there is no such rule; the message lists the known ones.
    """
    if text == MEAN:
        return None
    match = _CLIP.fullmatch(text)
    limit = float(match[1] or DEFAULT_LIMIT) if match else 0.0
    if limit < 1:
        raise AveragingError(f"unknown reduction '{text}'; known: {KNOWN}")
    return limit
