"""What the contest pays: all of mechanism 1 to the champion's uid; pure."""

from __future__ import annotations

from template.chain.metagraph import Metagraph
from template.chain.weights import process

MECHANISM = 1  # that of the contest; training's is 0


def crown(champion: str | None, metagraph: Metagraph) -> dict[int, float]:
    """Weights by uid that sum to 1. Without a champion, and while its hotkey has no uid, they are burned; none if there
    is nobody to burn them with. A subnet that wants more entries than one gets the smallest weights there are."""
    uid = None if champion is None else metagraph.uid_of(champion)
    if uid is None and metagraph.owner_uid is None:
        return {}
    return process(
        {} if uid is None else {uid: 1.0},
        uids=len(metagraph),
        owner_uid=metagraph.owner_uid,
        min_allowed=metagraph.min_allowed_weights,
        max_limit=metagraph.max_weights_limit,
    )
