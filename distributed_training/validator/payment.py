"""From the score book to the weights of a subnet as it is now: pure, so that a log can be held against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, replace

from distributed_training.scoring.combine import ScoreBook, weights
from template.chain.metagraph import Metagraph
from template.chain.weights import process


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the subnet asks of weights: how many uids there are, whose weight is burned, the hyperparameters (u16)."""

    uids: int
    owner_uid: int | None
    min_allowed: int
    max_limit: int


@dataclass(frozen=True, kw_only=True)
class Payment:
    """Weights that sum to 1 by uid, and what they follow from; none if nothing was earned and nobody can burn it.

    `departed`: uids that the book has an entry of, and whose hotkey does not hold them any more.
    """

    departed: tuple[int, ...]
    limits: Limits
    shares: dict[int, float]


def payment_of(book: ScoreBook, metagraph: Metagraph) -> Payment:
    """What the scores in the book are worth on this subnet."""
    limits = Limits(
        uids=len(metagraph),
        owner_uid=metagraph.owner_uid,
        min_allowed=metagraph.min_allowed_weights,
        max_limit=metagraph.max_weights_limit,
    )
    departed = tuple(entry.uid for entry in book.entries if metagraph.uid_of(entry.hotkey) != entry.uid)
    return Payment(departed=departed, limits=limits, shares=shares(book, departed, limits))


def shares(book: ScoreBook, departed: Collection[int], limits: Limits) -> dict[int, float]:
    """Weight by uid. What a hotkey earned is not handed on with its uid; who is unpaid is the last to fill up a row."""
    still = tuple(entry for entry in book.entries if entry.uid not in departed)
    earned = weights(replace(book, entries=still)) or {}
    if not earned and limits.owner_uid is None:
        return {}
    unpaid = book.unpaid(book.epoch) if book.epoch is not None else frozenset()
    last = tuple(entry.uid for entry in still if entry.hotkey in unpaid)
    return process(earned, **dataclasses.asdict(limits), last=last)
