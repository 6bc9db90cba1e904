"""What the leader does with the reports of a failed attempt: who is in the next one, and who still reduces. Pure.

One accuser proves nothing: it may lie, or its own link may be broken. A member is dropped when it did not answer, or
when those who accuse it, over all attempts at this epoch, are at least two and outweigh half of those who could have
seen the fault. An accuser that is not believed stays, but reduces nothing any more: it can neither hold up the others
nor see another's part, so the next attempt either succeeds or brings a second witness.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from distributed_training.protocol import Failure, Member


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The group of one attempt and the failures that each answering member reported, by uid."""

    members: tuple[Member, ...]
    reports: Mapping[int, tuple[Failure, ...]]


def surviving_group(attempts: Sequence[Attempt], trust: Mapping[int, float]) -> tuple[Member, ...]:
    """The members of the next attempt, with equal shares for those that reduce; empty if nobody could.

    Args:
        attempts: all attempts at this epoch, oldest first, at least one.
        trust: what each member's word weighs, e.g. 1 for everybody.
    """
    last = attempts[-1]
    gone = {m.uid for m in last.members if m.uid not in last.reports or _convicted(m.uid, attempts, trust)}
    remaining = [m for m in last.members if m.uid not in gone]
    unbelieved = {m.uid for m in remaining if any(f.uid not in gone for f in last.reports[m.uid])}
    reducing = {m.uid for m in remaining if m.share > 0}
    return equal_shares(remaining, (reducing - unbelieved) or reducing)


def equal_shares(members: Sequence[Member], reducing: Collection[int]) -> tuple[Member, ...]:
    """The members with the same share for each uid in `reducing`, 0 for the others; empty if none of them reduces."""
    count = sum(m.uid in reducing for m in members)
    if not count:
        return ()
    return tuple(m.model_copy(update={"share": 1 / count if m.uid in reducing else 0.0}) for m in members)


def _convicted(uid: int, attempts: Sequence[Attempt], trust: Mapping[int, float]) -> bool:
    """Whether enough of those who could have seen a fault of `uid` say that they did."""
    for role in ("sender", "reducer", "voter"):
        accusers: set[int] = set()
        witnesses: set[int] = set()
        for attempt in attempts:
            could_see = {m.uid for m in attempt.members if m.share > 0 or role != "sender"} & set(attempt.reports)
            witnesses |= could_see - {uid}
            accusers |= {w for w in could_see - {uid} if _names(attempt.reports[w], uid, role)}
        weight = math.fsum(trust[w] for w in accusers)
        if len(accusers) >= 2 and 2 * weight > math.fsum(trust[w] for w in witnesses):
            return True
    return False


def _names(failures: Sequence[Failure], uid: int, role: str) -> bool:
    return any(f.uid == uid and f.role == role for f in failures)
