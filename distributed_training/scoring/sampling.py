"""Which records are recomputed: drawn from the validator's own secret, after they were received. Pure.

Each record is drawn by itself, with a chance in proportion to the samples that it claims:

    chance of a record = min(1, rate * samples / usual samples of a record)
    rate               = min(audit.share, audit.overhead / miners)

So on average no miner costs a validator more than `share` of its work, and all of them together no more than `overhead`
times the work of one. Where an epoch has few micro-batches that is less than one record a miner: most miners are then
not recomputed in most epochs, and it is the penalty that makes cheating a loss (detection.py). Whoever claims more
samples is drawn as much more often, a claim without measure always.

Records whose gradients are equal to the bit, of one miner or of several, cannot all be work: some are recomputed at
once, whoever they are of, which convicts the one that copied and clears the one that was copied.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from distributed_training.protocol import Record
from distributed_training.run import AuditSpec

DUPLICATES = 2  # recomputed a miner: of two equal records of one miner, one at least is a copy

Reported = Mapping[int, Sequence[Record]]  # by uid


def audit_rate(miners: int, audit: AuditSpec) -> float:
    """The share of its samples that each of so many miners has recomputed, on average."""
    return min(audit.share, audit.overhead / max(1, miners))


def usual_samples(reported: Reported) -> float:
    """Samples of a usual record: the median over miners of each one's median; at least 1.

    No miner has more than one voice, and of an even number the lower middle one counts: so one of two cannot make
    its own claims usual.
    """
    medians = [statistics.median_low([r.samples for r in records]) for records in reported.values() if records]
    return float(max(1, statistics.median_low(medians))) if medians else 1.0


def chances(records: Iterable[Record], rate: float, usual: float) -> list[float]:
    """How likely each record is drawn."""
    return [min(1.0, rate * record.samples / usual) for record in records]


def drawn(reported: Reported, audit: AuditSpec, rng: random.Random) -> dict[int, list[Record]]:
    """The records to recompute, by uid, in the order of the report; `rng` must be unpredictable to miners."""
    rate = audit_rate(sum(bool(records) for records in reported.values()), audit)
    usual = usual_samples(reported)
    suspect = duplicates(reported, rng)
    result = {}
    for uid, records in reported.items():
        taken = {i for i, chance in enumerate(chances(records, rate, usual)) if rng.random() < chance}
        result[uid] = [records[i] for i in sorted(taken | suspect.get(uid, set()))]
    return result


def duplicates(reported: Reported, rng: random.Random) -> dict[int, set[int]]:
    """By uid the positions of records to recompute because another one has the very same gradient values.

    At most `DUPLICATES` a miner; where a miner repeats itself, two that are equal to each other.
    """
    groups: dict[tuple[float, ...], list[tuple[int, int]]] = defaultdict(list)
    for uid, records in reported.items():
        for position, record in enumerate(records):
            if any(record.gradient):
                groups[record.gradient].append((uid, position))
    chosen: dict[int, set[int]] = {}
    for group in groups.values():
        if len(group) < 2:
            continue
        by_uid: dict[int, list[int]] = defaultdict(list)
        for uid, position in group:
            by_uid[uid].append(position)
        for uid, positions in by_uid.items():
            if len(positions) > 1 or uid not in chosen:
                chosen[uid] = set(rng.sample(positions, min(DUPLICATES, len(positions))))
    return chosen
