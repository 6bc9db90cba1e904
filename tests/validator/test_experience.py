"""What a leader learns: deadlines from its rounds and the members' answers, shares from what they saw of each other."""

from __future__ import annotations

import dataclasses
import math

import pytest

from distributed_training.averaging.deadlines import ENOUGH
from distributed_training.averaging.outcome import RoundState
from distributed_training.protocol import AllReduce, AllReduceResponse, Deadlines, StateSeconds, Transfer
from distributed_training.validator.experience import Experience
from tests.roles import AVERAGING
from tests.validator.test_lead import answer, members
from tests.validator.test_rounds import outcome, request

SPEC = dataclasses.replace(AVERAGING, least_seconds=0.5)
MB = 10**6


def states(connect: float, exchange: float | None = None, commit: float | None = None) -> StateSeconds:
    return StateSeconds(connect=connect, exchange=exchange, commit=commit)


def said(seconds: StateSeconds, *, completed: bool = True, transfers: tuple[Transfer, ...] = ()) -> AllReduceResponse:
    return answer(completed=completed).model_copy(update={"states": seconds, "transfers": transfers})


def asked(experience: Experience) -> AllReduce:
    """A round of five with the deadlines that the leader gives now."""
    now = dataclasses.asdict(experience.deadlines())
    return request().model_copy(update={"deadlines": Deadlines(**now)})


def lead(experience: Experience, *answers: AllReduceResponse, absent: bool = False) -> None:
    """One round that uid 0 led; the first answer is its own."""
    experience.led(asked(experience), 0, dict(enumerate(answers)), absent=absent)


def test_the_deadlines_follow_the_rounds() -> None:
    """The run's at first; then what was needed by the median of the members, with room."""
    experience = Experience(SPEC)
    for _ in range(ENOUGH):
        assert experience.deadlines().exchange == 10
        lead(experience, said(states(0.2, 1.0, 0.1)), *[said(states(0.1, 1.5, 0.1))] * 3, said(states(9, 0.1, 9)))
    now = experience.deadlines()
    assert (now.connect, now.exchange, now.commit) == (0.5, 3.0, 0.5)


def test_a_missed_deadline_is_widened_again() -> None:
    """Twice the time, and again, up to the run's."""
    experience = Experience(SPEC)
    for _ in range(ENOUGH):
        lead(experience, said(states(0.2, 1.0, 0.1)))
    for wider in (4.0, 8.0, 10.0, 10.0):
        deadline = experience.deadlines().exchange
        lead(experience, said(states(0.2, deadline + 0.5), completed=False))
        assert experience.deadlines().exchange == wider
    assert experience.deadlines().connect == 0.5


def test_who_is_absent_says_nothing_of_the_deadline() -> None:
    """The others had to wait for a neuron that does not exist; nor do we know whom another leader could not reach."""
    experience = Experience(SPEC)
    for _ in range(ENOUGH):
        lead(experience, said(states(0.2, 1.0, 0.1)))
    lead(experience, said(states(1.0), completed=False), absent=True)
    experience.seen(asked(experience), 3, outcome(seconds={RoundState.CONNECT: 1.0}))
    assert experience.deadlines().connect == 0.5
    lead(experience, said(states(1.0), completed=False))
    assert experience.deadlines().connect == 1.0


def test_rounds_of_other_leaders_count_as_well() -> None:
    """By what this validator measured itself."""
    experience = Experience(SPEC)
    passed = {RoundState.CONNECT: 0.2, RoundState.EXCHANGE: 1.0, RoundState.COMMIT: 0.1}
    for _ in range(ENOUGH):
        experience.seen(asked(experience), 0, dataclasses.replace(outcome(participants=(1,)), seconds=passed))
    assert experience.deadlines().exchange == 2.0


def test_what_is_fair_follows_what_was_measured() -> None:
    """A leader with shorter deadlines than half of ours makes nobody fail; one that adapted them as we did, does."""
    experience = Experience(SPEC)
    assert experience.fair_exchange_seconds() == 5.0
    for _ in range(ENOUGH):
        lead(experience, said(states(0.2, 1.0, 0.1)))
    assert experience.fair_exchange_seconds() == 1.0 <= experience.deadlines().exchange
    for _ in range(20):
        lead(experience, said(states(0.1, 0.1, 0.1)))
    assert experience.fair_exchange_seconds() == 0.5  # the run's least


def moved(uid: int, rate: float) -> Transfer:
    return Transfer(uid=uid, bytes_sent=MB, bytes_received=MB, seconds_sending=1e-3, seconds_receiving=MB / rate)


def test_shares_follow_what_the_others_saw() -> None:
    """Uid 3 uploads at a third of the others' rate, whatever it says of itself and of them; validators keep theirs."""
    experience, lines = Experience(SPEC), {0: 3e6, 1: 3e6, 2: 3e6, 3: 1e6, 4: 3e6}
    told = [tuple(moved(uid, lines[uid]) for uid in lines if uid != me) for me in lines]
    told[3] = tuple(moved(uid, 9e9 if uid == 3 else 1.0) for uid in lines)
    for _ in range(30):
        lead(experience, *[said(states(0.1, 1.0, 0.1), transfers=transfers) for transfers in told])
    shares = {m.uid: m.share for m in experience.shared(members(5))}
    assert shares[0] == pytest.approx(0.2)
    assert shares[3] < 0.05
    assert shares[1] == pytest.approx(shares[2]) == pytest.approx(shares[4])
    assert math.isclose(math.fsum(shares.values()), 1)


def test_failed_rounds_say_nothing_of_lines() -> None:
    """What was cut off may have been another's doing."""
    experience = Experience(SPEC)
    slow = tuple(moved(uid, 1.0) for uid in (1,))
    lead(experience, said(states(0.1, 10.0), completed=False, transfers=slow))
    assert [m.share for m in experience.shared(members(5))] == pytest.approx([0.2] * 5)


def test_a_leader_that_took_no_part_learns_nothing() -> None:
    """Its round is not its own experience."""
    experience = Experience(SPEC)
    for _ in range(ENOUGH):
        experience.led(asked(experience), 0, {1: said(states(0.1, 0.1, 0.1))}, absent=True)
    assert experience.deadlines().exchange == 10
