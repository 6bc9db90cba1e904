"""The look at values that arrive, block by block and piece by piece: no bad one slips through, wherever it is."""

from __future__ import annotations

import numpy as np
import pytest

from distributed_training.averaging.codec import LOOK, all_within
from distributed_training.averaging.exchange import PIECE
from distributed_training.averaging.plan import CHUNK
from distributed_training.averaging.sealed import FRAME

LARGEST = float(np.finfo(np.float32).max)
PLACES = [0, 1, LOOK - 1, LOOK, LOOK + 1, 2 * LOOK, 2 * LOOK + 6]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen_anywhere(place: int, value: float) -> None:
    """At the ends of blocks, and between."""
    values = np.ones(2 * LOOK + 7, dtype=np.float32)
    assert all_within(values, LARGEST)
    values[place] = value
    assert not all_within(values, LARGEST)


@pytest.mark.parametrize("place", PLACES)
def test_a_limit_holds_for_both_signs(place: int) -> None:
    """The limit itself is allowed."""
    values = np.zeros(2 * LOOK + 7, dtype=np.float32)
    for sign in (1, -1):
        values[place] = sign * 65504.0
        assert all_within(values, 65504.0)
        values[place] = sign * np.nextafter(np.float32(65504), np.float32(np.inf))
        assert not all_within(values, 65504.0)


def test_nothing_is_within_anything() -> None:
    """An empty share has no bad values."""
    assert all_within(np.empty(0, dtype=np.float32), 1.0)


def test_pieces_are_whole_values_and_whole_frames() -> None:
    """So a piece can be looked at as float32, and no frame has to be kept for the next piece."""
    assert PIECE % 4 == 0
    assert PIECE % FRAME == 0
    assert (4 * CHUNK) % PIECE == 0
