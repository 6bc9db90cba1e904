"""The learning rate as a function of the epoch alone: linear warm-up, cosine decay, then constant.

The cosine is a Taylor series in decimal arithmetic, because the C library's differs in the last bit between
machines, and one bit is enough to part the peers' weights.
"""

from __future__ import annotations

import decimal
from decimal import Decimal

from distributed_training.run import OptimizerSpec

_PI = Decimal("3.14159265358979323846264338327950288419716939937510")
_CONTEXT = decimal.Context(prec=50, rounding=decimal.ROUND_HALF_EVEN)
_TERMS = 40  # pi^80 / 80! is below 1e-78


def learning_rate(spec: OptimizerSpec, epoch: int) -> float:
    """The rate of the update that ends `epoch`.

    Warm-up: `learning_rate * (epoch + 1) / (warmup_epochs + 1)`, so the first update is not empty. From
    `warmup_epochs` on a half cosine falls from `learning_rate` to `minimum_learning_rate`, reached at `decay_epochs`.
    """
    if epoch < spec.warmup_epochs:
        return spec.learning_rate * ((epoch + 1) / (spec.warmup_epochs + 1))
    if epoch >= spec.decay_epochs:
        return spec.minimum_learning_rate
    done, span = epoch - spec.warmup_epochs, spec.decay_epochs - spec.warmup_epochs
    factor = 0.5 * (1.0 + cosine_of_pi_times(done, span))
    return spec.minimum_learning_rate + (spec.learning_rate - spec.minimum_learning_rate) * factor


def cosine_of_pi_times(numerator: int, denominator: int) -> float:
    """cos(pi * numerator / denominator) for a fraction in [0, 1], correctly rounded on every machine."""
    with decimal.localcontext(_CONTEXT):
        angle = _PI * numerator / denominator
        term = total = Decimal(1)
        for k in range(1, _TERMS):
            term = -term * angle * angle / ((2 * k - 1) * (2 * k))
            total += term
        return float(total)
