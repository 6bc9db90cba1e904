"""Blocks from seconds: pure arithmetic."""

from __future__ import annotations

import pytest

from template.chain.local.clock import BlockClock

WALL = BlockClock(genesis=1000.0, block_seconds=2.0, manual_head=None, last_written=0)
MANUAL = BlockClock(genesis=1000.0, block_seconds=2.0, manual_head=7, last_written=7)


@pytest.mark.parametrize(("now", "head"), [(999.0, 0), (1000.0, 0), (1001.9, 0), (1002.0, 1), (1010.5, 5)])
def test_wall_head(now: float, head: int) -> None:
    """Block b is the head from genesis + 2b seconds on."""
    assert WALL.head(now) == head


@pytest.mark.parametrize(("now", "block"), [(1002.0, 2), (1003.9, 2), (1003.96, 3)])
def test_open_block_is_ahead_with_a_margin(now: float, block: int) -> None:
    """Nothing is put into a block that is about to begin."""
    assert WALL.open_block(now) == block


def test_clock_set_back_does_not_move_the_head_back() -> None:
    """What was written stays readable after the machine's clock is set back."""
    clock = BlockClock(genesis=1000.0, block_seconds=2.0, manual_head=None, last_written=500)
    assert clock.head(1010.0) == 499
    assert clock.open_block(1010.0) == 500


def test_manual() -> None:
    """Seconds do not move a manual clock, and nobody waits on it."""
    assert (MANUAL.head(9e9), MANUAL.open_block(9e9), MANUAL.seconds_until(8, 0.0)) == (7, 8, 0.0)


def test_seconds_until_and_timestamp() -> None:
    """Both follow from the block's number."""
    assert WALL.seconds_until(5, 1003.0) == 7.0
    assert WALL.seconds_until(1, 1003.0) == 0.0
    assert WALL.timestamp_ms(5) == 1_010_000
