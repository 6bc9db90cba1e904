"""Participation: delivered over what could be delivered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.scoring.participation import Fault, RoundSeen, Standing, participation_score, standing

SEEN = RoundSeen(epoch=1, attempt=0, live=frozenset({1, 2, 3}), asked=frozenset({1, 2}), delivered=frozenset({1}))


@pytest.mark.parametrize(
    ("uid", "expected"),
    [(1, Standing.DELIVERED), (2, Standing.FAILED), (3, Standing.LEFT_OUT), (4, Standing.ABSENT)],
)
def test_standing_of_each_miner(uid: int, expected: Standing) -> None:
    """Delivered, withheld, left out by the leader, and silent are four different things."""
    assert standing(uid, SEEN) is expected


@pytest.mark.parametrize("fault", [Fault.LEADER, Fault.VALIDATOR])
@pytest.mark.parametrize("uid", [1, 2, 3, 4])
def test_a_void_round_says_nothing_of_anybody(fault: Fault, uid: int) -> None:
    """The leader's or the validator's fault is nobody else's."""
    void = RoundSeen(epoch=1, attempt=0, live=SEEN.live, asked=SEEN.asked, delivered=SEEN.delivered, fault=fault)
    assert standing(uid, void) is Standing.VOID


def test_share_of_the_rounds_that_count() -> None:
    """Two delivered of three that count; void rounds and rounds it was left out of are not among them."""
    rounds = [Standing.DELIVERED, Standing.FAILED, Standing.DELIVERED, Standing.VOID, Standing.LEFT_OUT]
    assert participation_score(rounds) == 2 / 3


def test_being_silent_is_not_an_excuse() -> None:
    """A miner that hides when the round is called scores like one that withholds."""
    assert participation_score([Standing.ABSENT]) == participation_score([Standing.FAILED]) == 0.0


def test_no_round_that_counts_is_no_measurement() -> None:
    """Nothing to judge is None, never zero or one."""
    assert participation_score([]) is None
    assert participation_score([Standing.VOID, Standing.LEFT_OUT]) is None


@given(st.lists(st.sampled_from(Standing)), st.lists(st.sampled_from([Standing.VOID, Standing.LEFT_OUT])))
def test_rounds_that_do_not_count_change_nothing(rounds: list[Standing], excused: list[Standing]) -> None:
    """Any number of void rounds leaves p where it is."""
    assert participation_score([*rounds, *excused]) == participation_score(rounds)
