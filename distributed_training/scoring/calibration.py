"""From measured differences to the limits of audits: how a tail is estimated from few samples. Pure.

Wanted is a limit that honest work exceeds with a probability of at most `rate` (1e-3), from n measurements, far fewer
than 1 / rate. Assumption: the logarithm of a difference between two honest computations has a tail no heavier than that
of a normal distribution (differences are products of many roundings). Then the mean of the logarithms plus k of their
standard deviations is above the wanted quantile with `CONFIDENCE`, where k is the factor of a one-sided tolerance
interval: z_rate and more the fewer the samples (Natrella 1963, section 2-13; within one percent of the exact one for
n >= 10). The limit is never below the largest difference that was seen. It is taken for each kind of honest variation,
the largest one counts, and is multiplied by a margin for machines that were not tried. A lower limit is the same with
the sign turned.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from template.errors import ConfigurationError, StateError

RATE = 1e-3
CONFIDENCE = 0.95
LEAST_SAMPLES = 10
SECOND_LOOKS = 0.02  # of honest comparisons with one record; each costs some more recomputations
SMALLEST = 2.0**-24  # differences below it, zero above all, count as it: float32 shows nothing smaller

_NORMAL = statistics.NormalDist()


@dataclass(frozen=True, kw_only=True)
class Tail:
    """What was measured of one variation: how often, the middle, the extreme, and the limit that follows."""

    count: int
    median: float
    extreme: float
    limit: float


def tolerance_factor(n: int, rate: float = RATE, confidence: float = CONFIDENCE) -> float:
    """How many standard deviations from the mean of `n` samples the quantile `rate` lies at most, with `confidence`.

    Raises:
        StateError: fewer than LEAST_SAMPLES.
    """
    if n < LEAST_SAMPLES:
        raise StateError(f"{n} measurements say nothing of a tail; at least {LEAST_SAMPLES} are needed")
    z, c = _NORMAL.inv_cdf(1 - rate), _NORMAL.inv_cdf(confidence)
    a, b = 1 - c**2 / (2 * (n - 1)), z**2 - c**2 / n
    return (z + math.sqrt(z**2 - a * b)) / a


def upper(differences: Sequence[float], rate: float = RATE) -> Tail:
    """The limit that honest differences stay below; raises StateError as `tolerance_factor` does."""
    return _tail(differences, rate, +1)


def lower(values: Sequence[float], rate: float = RATE) -> Tail:
    """The limit that honest values stay above; raises StateError as `tolerance_factor` does."""
    return _tail(values, rate, -1)


def _tail(values: Sequence[float], rate: float, sign: int) -> Tail:
    logs = [math.log(max(value, SMALLEST)) for value in values]
    factor = tolerance_factor(len(logs), rate)
    estimated = math.exp(statistics.fmean(logs) + sign * factor * statistics.stdev(logs))
    extreme = max(values) if sign > 0 else min(values)
    limit = max(estimated, extreme) if sign > 0 else min(estimated, extreme)
    return Tail(count=len(values), median=statistics.median(values), extreme=extreme, limit=limit)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The values of [audit] that follow from a calibration."""

    loss_tolerance: float
    gradient_tolerance: float
    alignment: float
    inflation: float


def limits(
    loss: Iterable[Tail],
    gradient: Iterable[Tail],
    alignment: Iterable[float],
    whole: Tail,
    inflation: Iterable[Tail],
    *,
    least: float,
    margin: float,
    contribution_margin: float,
) -> Limits:
    """The worst variation of each, and the margins; to two digits, rounded to the lenient side.

    `least`: the alignment that chance cannot reach (contribution.least_alignment).

    Contributions are judged twice: the alignment of one record is such that of honest work `SECOND_LOOKS` are not found
    at once, and what convicts is that with all records together, `whole`, which has to keep the margin from it.

    Raises:
        StateError: honest contributions can hardly be told from garbage: nothing would be left of the alignment.
    """
    sure = whole.limit / contribution_margin
    aligned = min(sure, max(least, statistics.quantiles(alignment, n=round(1 / SECOND_LOOKS))[0]))
    if aligned < least:
        raise StateError(
            f"the contributions of honest work do not stand out from chance: with all of their records they agree by "
            f"{sure:.2g}, and chance reaches {least:.2g}; take a codec that loses less"
        )
    return Limits(
        loss_tolerance=_rounded(max(tail.limit for tail in loss) * margin, up=True),
        gradient_tolerance=_rounded(max(tail.limit for tail in gradient) * margin, up=True),
        alignment=min(0.5, max(_rounded(aligned, up=False), _rounded(least, up=True))),
        inflation=max(2.0, _rounded(max(tail.limit for tail in inflation) * contribution_margin, up=True)),
    )


def _rounded(value: float, *, up: bool) -> float:
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    digits = value / scale
    return float(f"{(math.ceil(digits - 1e-9) if up else math.floor(digits + 1e-9)) * scale:.2g}")


def passing(differences: Iterable[tuple[float, float]], found: Limits, threshold: float) -> float:
    """The share of (loss, gradient) differences that would pass an audit with these limits."""
    pairs = list(differences)
    loss, gradient = found.loss_tolerance / threshold, found.gradient_tolerance / threshold
    return sum(a <= loss and b <= gradient for a, b in pairs) / len(pairs)


def document(measured: Mapping[str, Any], found: Limits) -> bytes:
    """The file of a calibration: what was measured and what follows, as JSON."""
    return (json.dumps({**measured, "limits": asdict(found)}, indent=1, sort_keys=True) + "\n").encode()


def updated(spec: str, found: Limits, file: bytes) -> str:
    """The text of a run spec with these limits, and the hash of the file, in its [audit] section; comments stay.

    Raises:
        ConfigurationError: there is no [audit] section, or a limit is missing from it.
    """
    start = spec.find("\n[audit]\n")
    if start < 0:
        raise ConfigurationError("the run spec has no [audit] section")
    end = spec.find("\n[", start + 2)
    section = spec[start : end if end >= 0 else len(spec)]
    rest = spec[start + len(section) :]
    section = re.sub(r"\ncalibration = [^\n]*", "", section)
    for name, value in asdict(found).items():
        section, count = re.subn(rf"\n{name} = [^\s#]+", f"\n{name} = {value:g}", section)
        if count != 1:
            raise ConfigurationError(f"the [audit] section must have one line '{name} = ...'; found {count}")
    digest = hashlib.sha256(file).hexdigest()
    body = section.rstrip("\n")
    return f'{spec[:start]}{body}\ncalibration = "{digest}"{section[len(body) :]}{rest}'
