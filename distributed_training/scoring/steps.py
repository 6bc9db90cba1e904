"""The steps score: how many unique assigned samples did a miner train in this epoch?

Every reported record is checked against the assignment, which anyone can compute; the audits of a random part of
them (see gradient.py) say whether the work behind them was done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from distributed_training.protocol import Record


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What the assignment gives to one micro-batch number: its pages and the most samples that they can hold."""

    pages: tuple[int, ...]
    samples: int


@dataclass(frozen=True, kw_only=True)
class Steps:
    """`samples` is what counts; the other numbers say how many records counted and why the rest did not."""

    samples: int
    counted: int = 0
    off_assignment: int = 0
    duplicate: int = 0
    failed: int = 0


NO_STEPS = Steps(samples=0)


def verified_samples(
    records: Iterable[Record], assigned: Mapping[int, MicroBatch], failed: Set[int] = frozenset()
) -> Steps:
    """Count the unique assigned samples in one miner's records of one epoch.

    Args:
        records: what the miner reported, in any order.
        assigned: the miner's micro-batches of this epoch by number.
        failed: numbers whose audit failed; they count nothing.

    A number or a page that was counted before counts nothing again; a record's samples are cut to what its pages hold.
    """
    seen_numbers: set[int] = set()
    seen_pages: set[int] = set()
    samples = counted = off_assignment = duplicate = rejected = 0
    # By number, then by samples: which of two rival records counts must not depend on the order of arrival.
    for record in sorted(records, key=lambda r: (r.number, r.samples, r.pages)):
        batch = assigned.get(record.number)
        if batch is None or tuple(record.pages) != batch.pages:
            off_assignment += 1
        elif record.number in seen_numbers or not seen_pages.isdisjoint(record.pages):
            duplicate += 1
        elif record.number in failed:
            rejected += 1
        else:
            seen_numbers.add(record.number)
            seen_pages.update(record.pages)
            samples += min(record.samples, batch.samples)
            counted += 1
    return Steps(samples=samples, counted=counted, off_assignment=off_assignment, duplicate=duplicate, failed=rejected)
