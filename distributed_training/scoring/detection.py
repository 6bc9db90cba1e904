"""How soon a miner that fakes a part of its work is caught, and why it does not pay. Pure, closed forms.

Each record is recomputed with the same chance q, independently (sampling.py), and a faked one fails when it is. So of K
records, a share f of them faked, an epoch finds

    p(f) = 1 - (1 - q)^(f K)

and k epochs find it with 1 - (1 - p)^k. What faking saves in an epoch is at most f of an epoch's pay: nobody would work
honestly for less than the work costs. What it costs when it is found is the epoch's own pay and that of the
`penalty_epochs` after it; what the moving average still owed comes on top and is not counted. It never pays, whatever
f, if

    f <= p(f) (1 + penalty_epochs)        for all f in (0, 1]

and since p is concave with p(0) = 0, so that p(f) >= f p(1), it is enough that 1 <= p(1) (1 + penalty_epochs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distributed_training.run import AuditSpec
from distributed_training.scoring.sampling import audit_rate


def caught_in_epoch(share: float, records: float, chance: float) -> float:
    """p(f): the probability that an epoch finds a miner that fakes `share` of its `records`, each recomputed by chance.

    Raises:
        ValueError: a share or a chance outside [0, 1], or fewer than no records.
    """
    if not (0 <= share <= 1 and 0 <= chance <= 1 and records >= 0):
        raise ValueError(f"share {share} and chance {chance} must lie in [0, 1], records {records} be at least 0")
    if chance == 1:
        return 1.0 if share * records > 0 else 0.0
    return -math.expm1(share * records * math.log1p(-chance))


def caught_within(epochs: int, p: float) -> float:
    """The probability that at least one of so many epochs finds what each finds with probability `p`."""
    return 1.0 if p >= 1 and epochs else -math.expm1(epochs * math.log1p(-p)) if p < 1 else 0.0


def epochs_to_catch(p: float, confidence: float) -> int | None:
    """The least number of epochs after which it is found with that probability; None if never."""
    if p <= 0:
        return None
    if p >= 1:
        return 1
    return max(1, math.ceil(math.log1p(-confidence) / math.log1p(-p) - 1e-9))


def gain(share: float, records: float, chance: float, penalty_epochs: int) -> float:
    """What faking `share` of an epoch's work is worth at most, in epochs of honest pay; at or below 0 it never pays."""
    return share - caught_in_epoch(share, records, chance) * (1 + penalty_epochs)


def penalty_needed(records: float, chance: float) -> int | None:
    """The fewest epochs of penalty for which no share of faked work pays; None if nothing is ever recomputed."""
    p = caught_in_epoch(1.0, records, chance)
    return None if p <= 0 else max(0, math.ceil(1 / p - 1 - 1e-9))


def expected_pay(share: float, records: float, chance: float, penalty_epochs: int, held_epochs: int = 0) -> float:
    """The long-run pay of a miner that always fakes `share`, as a part of full honest pay; times (1 - share) if honest.

    Caught after 1/p epochs on average, the last of them unpaid, and then unpaid for the penalty. Of h epochs that are
    held back when it is caught nothing is paid either: with k - 1 before, E max(0, k - 1 - h) = (1 - p)^h (1/p - 1).
    """
    p = caught_in_epoch(share, records, chance)
    return 1.0 if p <= 0 else (1 - p) ** held_epochs * (1 / p - 1) / (1 / p + penalty_epochs)


@dataclass(frozen=True, kw_only=True)
class Power:
    """What audits find of a miner that fakes `share` of its work: in an epoch, and how soon with 95 and 99 percent."""

    share: float
    in_epoch: float
    epochs_95: int | None
    epochs_99: int | None
    pay: float


def power_table(
    records: float,
    miners: int,
    audit: AuditSpec,
    penalty_epochs: int,
    shares: tuple[float, ...] = (1, 0.5, 0.25, 0.1),
    held_epochs: int = 0,
) -> tuple[Power, ...]:
    """For one validator, `miners` that each make `records` of usual size an epoch, and these shares of faked work."""
    chance = audit_rate(miners, audit)
    return tuple(
        Power(
            share=share,
            in_epoch=(p := caught_in_epoch(share, records, chance)),
            epochs_95=epochs_to_catch(p, 0.95),
            epochs_99=epochs_to_catch(p, 0.99),
            pay=expected_pay(share, records, chance, penalty_epochs, held_epochs),
        )
        for share in shares
    )
