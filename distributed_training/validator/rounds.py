"""What a validator makes of the rounds it took part in: who delivered, who failed, and who has to make up for it. Pure.

Only what this validator saw itself counts. A failed attempt counts against the senders whose part did not come to us
whole and sound, and for nobody. A miner that failed stays out of the groups for a while; those epochs count against it
as well, until it delivers again: else being excluded would pay better than delivering.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from distributed_training.averaging.outcome import RoundOutcome
from distributed_training.protocol import AllReduce
from distributed_training.scoring.participation import Fault, RoundSeen


def contributors(request: AllReduce) -> frozenset[int]:
    """The uids that were to put something into the average."""
    return frozenset(member.uid for member in request.group if member.contributes)


@dataclass(frozen=True)
class Verdict:
    """What a failed attempt says: who failed as a sender, or by whose `fault` it says nothing of anybody, and why."""

    failed: frozenset[int] = frozenset()
    fault: Fault = Fault.NONE
    reason: str = ""


def judged_attempt(request: AllReduce, outcome: RoundOutcome, uid: int, fair_seconds: float) -> Verdict:
    """Whose part did not come to us, `uid`, by its own doing; `fair_seconds` is the least that EXCHANGE takes.

    Nobody's, if the leader gave less time than that (see experience.py). Nobody's if we are the one that failed: most
    of the others say that our share of the reduction was lost, or we miss the parts of more than half of the
    contributors. And nobody's if another reducer failed, who may have caused it.
    """
    asked = contributors(request)
    named = asked & {f.uid for f in outcome.failures if f.role == "sender" and f.state == "EXCHANGE"}
    given = request.deadlines.exchange
    if given < fair_seconds:
        reason = f"the leader gave {given:g} s to exchange, and {fair_seconds:g} s are the least that is fair"
        return Verdict(fault=Fault.LEADER, reason=reason)
    accusers = _accusers(outcome, uid)
    if 2 * len(accusers) > len(request.group) - 1:
        return Verdict(fault=Fault.VALIDATOR, reason=f"our own share was lost, as {len(accusers)} members say")
    if 2 * len(named) > len(asked):
        return Verdict(fault=Fault.VALIDATOR, reason=f"the parts of {len(named)} of {len(asked)} did not come to us")
    if any(failure.role == "reducer" for failure in outcome.failures):
        return Verdict()
    return Verdict(failed=named)


def _accusers(outcome: RoundOutcome, uid: int) -> frozenset[int]:
    """Who says that `uid` failed as a reducer."""
    return frozenset(
        accuser
        for accuser, failures in outcome.accusations.items()
        if any(failure.uid == uid and failure.role == "reducer" for failure in failures)
    )


def failed_attempt(request: AllReduce, verdict: Verdict, uids: frozenset[int]) -> RoundSeen:
    """An attempt that came to nothing: of all `uids` it counts against those who failed, and for nobody."""
    return RoundSeen(
        epoch=request.epoch,
        attempt=request.attempt,
        live=uids,
        asked=verdict.failed,
        delivered=frozenset(),
        fault=verdict.fault,
    )


def completed_round(
    request: AllReduce, outcome: RoundOutcome, live: frozenset[int], owing: Collection[int]
) -> RoundSeen:
    """The round that ended an epoch. `live` answered before it; `owing` failed the last time that they were asked."""
    asked = contributors(request)
    return RoundSeen(
        epoch=request.epoch,
        attempt=request.attempt,
        live=live | asked,
        asked=asked | frozenset(owing),
        delivered=asked & frozenset(outcome.participants),
    )


class Attendance:
    """Counts the attempts in a row that each contributor did not come to, though it had just said that it is alive.

    Who has an excuse for `patience` of them spoils rounds like one who has none: each costs everybody an attempt.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._missed: Counter[str] = Counter()

    def spoilers(self, hotkeys: Mapping[int, str], silent: Collection[int]) -> frozenset[int]:
        """Whose patience is used up after an attempt of these contributors (hotkey by uid); their count begins anew.

        Where more than half did not come, the fault is more likely the leader's, and nothing is counted.
        """
        missing = hotkeys.keys() & set(silent)
        if 2 * len(missing) > len(hotkeys):
            return frozenset()
        for uid, hotkey in hotkeys.items():
            self._missed[hotkey] = self._missed[hotkey] + 1 if uid in missing else 0
        spoilers = frozenset(uid for uid in missing if self._missed[hotkeys[uid]] >= self._patience)
        for uid in spoilers:
            self._missed[hotkeys[uid]] = 0
        self._missed += Counter()  # drops zeros
        return spoilers
