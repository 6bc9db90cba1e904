"""The participation score: in how many of the epoch's rounds, of those it could deliver in, did a miner deliver?

A round that failed through the leader or the validator, or that the leader left a live miner out of, counts for
nobody and against nobody. A miner that was not asked because it did not answer is absent by its own doing: otherwise
being silent at the right moment would be the cheapest way to take part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """Whose doing it was that a round could not be judged."""

    NONE = "none"
    LEADER = "leader"
    VALIDATOR = "validator"


class Standing(StrEnum):
    """What one round says of one miner. The first counts for it, the next two against it, the last two not at all."""

    DELIVERED = "delivered"
    FAILED = "asked, did not deliver"
    ABSENT = "did not answer"
    LEFT_OUT = "left out by the leader"
    VOID = "round void by the leader's or the validator's fault"


COUNTED = frozenset({Standing.DELIVERED, Standing.FAILED, Standing.ABSENT})


@dataclass(frozen=True, kw_only=True)
class RoundSeen:
    """One round as this validator saw it, by uid: who answered before it, who was in the group, who delivered."""

    epoch: int
    attempt: int
    live: frozenset[int]
    asked: frozenset[int]
    delivered: frozenset[int]
    fault: Fault = Fault.NONE


def standing(uid: int, seen: RoundSeen) -> Standing:
    """What one round says of one miner."""
    if seen.fault is not Fault.NONE:
        return Standing.VOID
    if uid in seen.delivered:
        return Standing.DELIVERED
    if uid in seen.asked:
        return Standing.FAILED
    return Standing.LEFT_OUT if uid in seen.live else Standing.ABSENT


def participation_score(standings: Iterable[Standing]) -> float | None:
    """p in [0, 1] over the rounds that count; None if none does, which is not the same as zero."""
    counted = [s for s in standings if s in COUNTED]
    if not counted:
        return None
    return sum(s is Standing.DELIVERED for s in counted) / len(counted)
