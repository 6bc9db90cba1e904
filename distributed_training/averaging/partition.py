"""How a vector is cut: one contiguous share a reducer, a share into chunks. Pure, exact and the same everywhere.

Shares arrive as floats; they are taken as the exact rationals that they are, so that every member finds the same
bounds whatever its processor does with floating point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction


def partition(size: int, shares: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """The half-open range [start, stop) of each share in a vector of `size` elements, in the order of `shares`.

    The ranges are contiguous, cover the vector exactly, and a share of 0 has an empty range.

    Raises:
        ValueError: a share is negative or not finite, all are zero, or `size` is negative.
    """
    if size < 0:
        raise ValueError(f"size {size} is negative")
    if any(not math.isfinite(share) or share < 0 for share in shares):
        raise ValueError("shares must be finite and not negative")
    exact = [Fraction(share) for share in shares]
    total = sum(exact)
    if not total:
        raise ValueError("no member has a share")
    bounds, reached = [0], Fraction(0)
    for share in exact:
        reached += share
        bounds.append(math.floor(size * reached / total))
    return tuple(itertools.pairwise(bounds))


def chunks(size: int, chunk: int) -> tuple[tuple[int, int], ...]:
    """The half-open ranges that cover `size` elements, as few of at most `chunk` elements as can be.

    Their lengths differ by at most one, longer ones first: there is no short rest, whose few values would say little of
    the part that they belong to (robust.py).

    Raises:
        ValueError: `chunk` is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk {chunk} is not positive")
    count = -(-size // chunk)
    length, longer = divmod(size, count) if count else (0, 0)
    return tuple(itertools.pairwise(i * length + min(i, longer) for i in range(count + 1)))
