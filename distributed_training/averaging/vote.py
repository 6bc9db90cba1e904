"""The vote at the end of a round, as pure functions: when to commit, when to give up, who told others other things.

A contributor's vote weighs what its contribution weighs. An auxiliary member has no stake in the average and no say;
its reports of failures are heard all the same.

Two members can never commit different averages, because each commit needs more than half of one total weight. A member
may fail to commit what the others committed (its link broke at the end): it keeps its state, sees a foreign state hash
and fetches that state.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from enum import Enum

from distributed_training.protocol import Failure

REASON_LENGTH = 200


class Decision(Enum):
    COMMIT = "commit"
    ABORT = "abort"
    WAIT = "wait"


def decide(
    weights: Mapping[int, float],
    votes: Mapping[int, str | None],
    silent: Collection[int],
    average_hash: str | None,
    quorum: float,
) -> Decision:
    """What the votes so far mean for a member that holds `average_hash` (None: it holds no average yet).

    Args:
        weights: the weight of each contributor.
        votes: the hash each uid voted for, None for a vote that the round failed.
        silent: uids that will not vote any more.
        quorum: fraction of the total weight, in (0.5, 1].
    """
    needed = quorum * math.fsum(weights.values())
    votes = {uid: votes[uid] for uid in votes if uid in weights}
    undecided = [uid for uid in weights if uid not in votes and uid not in silent]

    def weight(average: str | None, also: Collection[int] = ()) -> float:
        """Summed in one go: in two, rounding could make all of them weigh less than all of them."""
        voters = {uid for uid, vote in votes.items() if vote is not None and vote == average}
        return math.fsum(weights[uid] for uid in voters.union(also))

    if average_hash is None:  # not there yet: any one of the averages may still win
        averages = set(votes.values()) | {None}
        best = max(weight(average, undecided) for average in averages)
        return Decision.WAIT if best >= needed else Decision.ABORT
    if weight(average_hash) >= needed:
        return Decision.COMMIT
    return Decision.WAIT if weight(average_hash, undecided) >= needed else Decision.ABORT


def disagreements(digests: Mapping[int, Mapping[int, str]]) -> tuple[Failure, ...]:
    """Whom to name when members hold different bytes for the same share. `digests`: voter -> reducer -> digest.

    Either the reducer sent different bytes or a voter lies: both the reducer and the voters in a strict minority are
    named, so that a liar always loses its own place too. A reducer whose own vote stands against all is named alone.
    """
    failures = []
    for reducer in sorted({reducer for seen in digests.values() for reducer in seen}):
        seen = {voter: of[reducer] for voter, of in digests.items() if reducer in of}
        counts = Counter(seen.values())
        if len(counts) < 2:
            continue
        failures.append(failure(reducer, "COMMIT", "reducer", "members received different bytes for its share"))
        majority, count = counts.most_common(1)[0]
        if 2 * count > len(seen):
            minority = [voter for voter, digest in seen.items() if digest != majority and voter != reducer]
            failures += [
                failure(voter, "COMMIT", "voter", f"reports other bytes for the share of {reducer}")
                for voter in sorted(minority)
            ]
    return tuple(failures)


def failure(uid: int, state: str, role: str, reason: str) -> Failure:
    """A Failure whose reason is cut to what the wire takes."""
    return Failure.model_validate({"uid": uid, "state": state, "role": role, "reason": reason[:REASON_LENGTH]})
