"""Deadlines from measured rounds: what they cover, who can move them, and how a wrong one heals."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.averaging.deadlines import (
    ENOUGH,
    WINDOW,
    Limits,
    Sample,
    Times,
    adapted,
    agreed,
    missed,
    passed,
    states_of,
)
from distributed_training.averaging.outcome import RoundState
from distributed_training.averaging.plan import StateDeadlines
from distributed_training.protocol import StateSeconds
from tests.validator.test_rounds import outcome

LIMITS = Limits(longest=StateDeadlines(connect=60, exchange=600, commit=60), least=1.0, spread=4.0)
SECONDS = st.floats(0, 1e4)


def times(*exchanges: float) -> Times:
    """Rounds that took so long to exchange; a negative number is the deadline that was missed."""
    history = Times()
    for seconds in exchanges:
        history = history.after({"exchange": Sample(abs(seconds), missed=seconds < 0)})
    return history


def exchange(*exchanges: float) -> float:
    return adapted(times(*exchanges), LIMITS).exchange


def test_the_run_s_deadlines_hold_until_enough_rounds_were_measured() -> None:
    """Of each state by itself."""
    assert adapted(Times(), LIMITS) == LIMITS.longest
    deadlines = adapted(times(*[10.0] * ENOUGH), LIMITS)
    assert (deadlines.connect, deadlines.commit) == (60, 60)
    assert exchange(*[10.0] * (ENOUGH - 1)) == 600 > deadlines.exchange


def test_it_is_the_median_and_some_deviations() -> None:
    """Worked out by hand: median 10, absolute deviations 4, 2, 0, 2, 4, so their median is 2."""
    assert exchange(6, 8, 10, 12, 14) == pytest.approx(10 + 4 * max(1.4826 * 2, 0.25 * 10))
    assert exchange(0, 10, 10, 20, 40) == pytest.approx(10 + 4 * 1.4826 * 10)
    assert exchange(10, 10, 10, 10) == 20  # no round differs, yet the next one may


@given(st.lists(st.floats(-1e4, 1e4).filter(lambda x: x != 0), max_size=2 * WINDOW))
def test_it_stays_within_the_run_s_limits(exchanges: list[float]) -> None:
    """Whatever was measured or missed."""
    assert 1.0 <= exchange(*exchanges) <= 600


@given(st.lists(st.floats(1, 250), min_size=ENOUGH, max_size=WINDOW))
def test_most_rounds_like_those_measured_are_in_time(exchanges: list[float]) -> None:
    """At least half of them with room to spare: never razor-thin."""
    in_time = [seconds for seconds in exchanges if seconds <= exchange(*exchanges) / 2]
    assert 2 * len(in_time) >= len(exchanges)


def test_one_slow_round_changes_little() -> None:
    """An outlier is no new measure."""
    assert exchange(*[10.0] * 9, 500.0) == 20


@given(jump=st.floats(1.5, 50), spread=st.floats(1, 8))
def test_a_wrong_deadline_heals(jump: float, spread: float) -> None:
    """The network slows down for good: a few rounds fail, each with twice the time, then none does."""
    limits = Limits(longest=StateDeadlines(connect=60, exchange=600, commit=60), least=1.0, spread=spread)
    history, failed = times(*[10.0] * WINDOW), []
    for number in range(40):
        deadline = adapted(history, limits).exchange
        late = jump * 10.0 > deadline
        history = history.after({"exchange": Sample(deadline if late else jump * 10.0, missed=late)})
        failed += [number] if late else []
    assert failed == list(range(len(failed)))
    assert len(failed) <= math.ceil(math.log2(jump))
    assert adapted(history, limits).exchange < 10 * (1 + spread) * jump


def test_who_stalls_only_once_is_forgotten() -> None:
    """Twice the time for a few rounds, then what they measured."""
    history = times(*[10.0] * 9, -20.0)
    assert adapted(history, LIMITS).exchange == 40
    for _ in range(ENOUGH):
        assert adapted(history, LIMITS).exchange == 40
        history = history.after({"exchange": Sample(10.0)})
    assert adapted(history, LIMITS).exchange == 20


def test_the_window_is_bounded() -> None:
    """Memory and influence of the past end."""
    history = times(*[500.0] * 100, *[10.0] * WINDOW)
    assert len(history.exchange) == WINDOW
    assert adapted(history, LIMITS).exchange == 20


@given(own=st.floats(1, 100), honest=st.lists(st.floats(1, 100), max_size=9), lies=st.lists(SECONDS, max_size=9))
def test_a_minority_of_liars_moves_nothing_beyond_the_honest(
    own: float, honest: list[float], lies: list[float]
) -> None:
    """Neither up nor down."""
    lies = lies[: len(honest)]  # with ourselves, the honest ones are more
    said = [{"exchange": seconds} for seconds in (*honest, *lies)]
    sample = agreed({"exchange": own}, said)["exchange"]
    assert own <= sample.seconds <= max([own, *honest])


def test_the_median_of_the_members_counts_where_we_were_faster() -> None:
    """A leader with the best line must not set a time that only it can keep; states we never saw are not measured."""
    said = [{"exchange": seconds, "commit": 1.0} for seconds in (5.0, 6.0, 7.0)]
    assert agreed({"exchange": 2.0}, said) == {"exchange": Sample(5.0)}
    assert agreed({"exchange": 9.0}, said) == {"exchange": Sample(9.0)}
    assert agreed({}, said) == {}


GIVEN = StateDeadlines(connect=2, exchange=10, commit=3)


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ((2.1, None, None), "connect"),
        ((1.9, None, None), "connect"),  # another's clock was ahead
        ((0.5, None, None), None),  # somebody hung up
        ((1.9, 10.0, None), "exchange"),
        ((1.9, 4.0, None), None),
        ((0.1, 4.0, 9.0), "commit"),  # counted from the end of the time for EXCHANGE
        ((0.1, 4.0, 4.0), None),
        ((None, None, None), None),
    ],
)
def test_the_state_that_ran_into_its_deadline(states: tuple[float | None, ...], state: str | None) -> None:
    """Only the last one can have; anything earlier was another's doing."""
    seconds = StateSeconds(**dict(zip(("connect", "exchange", "commit"), states, strict=True)))
    assert missed(seconds, GIVEN) == state


def test_a_state_counts_as_measured_once_it_was_passed() -> None:
    """The last one of a failed round ended by its failure."""
    report = outcome(participants=(1,), seconds={RoundState.PREPARE: 9.0, RoundState.CONNECT: 1.0})
    assert states_of(report) == StateSeconds(connect=1.0, exchange=None, commit=None)
    states = StateSeconds(connect=1.0, exchange=2.0, commit=None)
    assert passed(states, completed=False) == {"connect": 1.0}
    assert passed(states, completed=True) == {"connect": 1.0, "exchange": 2.0}
