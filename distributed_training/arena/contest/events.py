"""What a validator of the contest tells. `uid` is always the validator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from template.telemetry import Event


@dataclass(frozen=True, kw_only=True)
class ContestClosed(Event):
    """A round's commitments are read: so many hotkeys take part."""

    uid: int
    contest: str
    round: int
    block: int
    committed: list[str]


@dataclass(frozen=True, kw_only=True)
class ContestDecided(Event):
    """A round is over. `throne`: who is to be beaten now; `champion`: the hotkey that is paid, if any; `standings`:
    each entry's status, reason and metric; `result`: the file that has all of it."""

    uid: int
    contest: str
    round: int
    seeds: list[int]
    throne: str
    champion: str | None
    standings: list[dict[str, Any]]
    result: str


@dataclass(frozen=True, kw_only=True)
class ContestPostponed(Event):
    """A round could not be decided now, for a reason that is not an entry's; it is tried again."""

    uid: int
    contest: str
    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ContestVoid(Event):
    """A round that could not be decided before the next one's turn; who was champion stays so."""

    uid: int
    contest: str
    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ContestWeightsSet(Event):
    """An attempt to set the weights of mechanism 1. `outcome` is a `WeightsStatus`, or `unavailable`; `champion` None
    or without a uid means that they are burned."""

    uid: int
    block: int
    mechid: int
    champion: str | None
    weights: dict[str, float]
    outcome: str
    code: str | None
    detail: str
