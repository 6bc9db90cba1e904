"""What a validator makes of the rounds it took part in: who delivered, who failed, and who has to make up for it. Pure.

Only what this validator saw itself counts. A failed attempt counts against the senders whose part did not come to us
whole and sound, and for nobody. A miner that failed stays out of the groups for a while; those epochs count against it
as well, until it delivers again: else being excluded would pay better than delivering.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from distributed_training.averaging.outcome import RoundOutcome
from distributed_training.protocol import AllReduce
from distributed_training.scoring.participation import RoundSeen


def contributors(request: AllReduce) -> frozenset[int]:
    """The uids that were to put something into the average."""
    return frozenset(member.uid for member in request.group if member.contributes)


def failed_senders(request: AllReduce, outcome: RoundOutcome, fair_seconds: float) -> frozenset[int]:
    """Whose part we did not get in a failed attempt, by its own doing; `fair_seconds` is the least that EXCHANGE takes.

    Nobody's, if the leader gave less time than that (see experience.py); if a reducer failed as well, who may have
    caused it; or if we name more than half of the contributors: the fault is then more likely ours.
    """
    asked = contributors(request)
    named = {failure.uid for failure in outcome.failures if failure.role == "sender" and failure.state == "EXCHANGE"}
    doubtful = any(failure.role == "reducer" for failure in outcome.failures)
    hurried = request.deadlines.exchange < fair_seconds
    if hurried or doubtful or 2 * len(named & asked) > len(asked):
        return frozenset()
    return frozenset(named & asked)


def failed_attempt(request: AllReduce, failed: frozenset[int], uids: frozenset[int]) -> RoundSeen:
    """An attempt that came to nothing: of all `uids` it counts against those who failed, and for nobody."""
    return RoundSeen(epoch=request.epoch, attempt=request.attempt, live=uids, asked=failed, delivered=frozenset())


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
