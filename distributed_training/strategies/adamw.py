"""AdamW and the global norm in arithmetic that gives the same bits on every machine.

Only element-wise float32 operations that IEEE 754 rounds exactly (+, -, *, /, sqrt), one NumPy call each, so that
nothing is fused or reordered; scalars are Python floats rounded once. Sums follow a fixed tree. Work goes block by
block: temporaries stay small whatever P is. The formula is decoupled weight decay (Loshchilov & Hutter 2019) as in
`torch.optim.AdamW`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distributed_training.model.layout import Vector
from template.errors import StateError

BLOCK = 1 << 16  # elements; part of the definition of `global_norm`


@dataclass(frozen=True, kw_only=True)
class Step:
    """The scalars of one update. `scale` multiplies the gradient first (clipping)."""

    scale: float
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    number: int  # t of the formula: 1 for the first update


@dataclass(frozen=True)
class Buffers:
    """Parameters and both moments, of one length."""

    params: Vector
    first: Vector
    second: Vector

    def part(self, where: slice) -> Buffers:
        """Views of a part of each."""
        return Buffers(self.params[where], self.first[where], self.second[where])


def adamw(old: Buffers, gradient: Vector, step: Step, new: Buffers) -> None:
    """One AdamW update of `old` written into `new`; `old` and `gradient` are only read."""
    for start in range(0, len(gradient), BLOCK):
        where = slice(start, start + BLOCK)
        _adamw_block(old.part(where), gradient[where], step, new.part(where))


def _adamw_block(old: Buffers, gradient: Vector, step: Step, new: Buffers) -> None:
    f = np.float32
    scaled = gradient * f(step.scale)
    np.add(old.first * f(step.beta1), scaled * f(1.0 - step.beta1), out=new.first)
    np.add(old.second * f(step.beta2), (scaled * scaled) * f(1.0 - step.beta2), out=new.second)
    root = np.sqrt(new.second) / f(math.sqrt(1.0 - power(step.beta2, step.number)))
    move = (new.first / (root + f(step.epsilon))) * f(step.learning_rate / (1.0 - power(step.beta1, step.number)))
    np.subtract(old.params * f(1.0 - step.learning_rate * step.weight_decay), move, out=new.params)


def power(base: float, exponent: int) -> float:
    """`base ** exponent` by squaring: the C library's pow may differ in the last bit between machines."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def global_norm(vector: Vector) -> float:
    """The Euclidean norm; not finite exactly if an element is not.

    Squares are exact in float64; each block of 65,536 (the last one filled up with zeros) is summed by halving, and
    the block sums by `math.fsum`, whose result does not depend on order.
    """
    sums = [_tree_sum_of_squares(vector[i : i + BLOCK]) for i in range(0, len(vector), BLOCK)]
    if not all(map(math.isfinite, sums)):
        return math.nan
    return math.sqrt(math.fsum(sums))


def _tree_sum_of_squares(block: Vector) -> float:
    squares = np.zeros(BLOCK, dtype=np.float64)
    wide = block.astype(np.float64)
    np.multiply(wide, wide, out=squares[: len(block)])
    half = BLOCK // 2
    while half:
        squares[:half] += squares[half : 2 * half]
        half //= 2
    return float(squares[0])


def require_gradual_underflow() -> None:
    """Refuse to compute where a library has switched this thread to flushing small numbers to zero.

    Raises:
        StateError: it has; the update would differ from everybody else's.
    """
    smallest = np.full(16, 2.0**-126, dtype=np.float32)
    if not (smallest * np.float32(0.5)).all():
        raise StateError("this process flushes subnormal numbers to zero (torch.set_flush_denormal?); switch it off")
