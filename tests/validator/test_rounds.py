"""What rounds say of miners: only own certainty counts, and who failed makes up for it by delivering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from distributed_training.averaging.outcome import RoundOutcome, RoundState, Work
from distributed_training.protocol import AllReduce, Deadlines, Failure
from distributed_training.scoring.participation import Fault, Standing, participation_score, standing
from distributed_training.validator.rounds import Attendance, Verdict, completed_round, failed_attempt, judged_attempt
from tests.validator.test_lead import members


def request(exchange: float = 2.0, size: int = 5) -> AllReduce:
    return AllReduce(
        run_id="run-1",
        epoch=3,
        state_hash="a" * 64,
        attempt=0,
        round_id="b" * 32,
        group=members(size),
        codec="none",
        deadlines=Deadlines(connect=1, exchange=exchange, commit=1),
    )


def outcome(
    *failures: tuple[int, str, str],
    participants: tuple[int, ...] = (),
    seconds: Mapping[RoundState, float] = MappingProxyType({}),
) -> RoundOutcome:
    return RoundOutcome(
        round_id="b" * 32,
        state=RoundState.DONE if participants else RoundState.ABORTED,
        participants=participants,
        agreed=participants,
        failures=tuple(
            Failure.model_validate(dict(zip(("uid", "state", "role"), f, strict=True), reason="r")) for f in failures
        ),
        accusations={},
        transfers=(),
        average_hash=None,
        total_weight=None,
        seconds=seconds,
        work=Work(encode=0, decode=0, reduce=0, hash=0, wait=0),
        first_byte=None,
        planes={},
    )


def judged(seen: RoundOutcome, asked: AllReduce | None = None) -> Verdict:
    """By validator 0, which thinks that two seconds are the least that is fair."""
    return judged_attempt(asked or request(), seen, 0, 2.0)


def test_a_sender_whose_part_we_did_not_get_failed() -> None:
    """And nobody else of that attempt did."""
    verdict = judged(outcome((2, "EXCHANGE", "sender")))
    assert verdict == Verdict(failed=frozenset({2}))
    seen = failed_attempt(request(), verdict, frozenset(range(9)))
    assert standing(2, seen) is Standing.FAILED
    assert participation_score(standing(uid, seen) for uid in (0, 1, 3, 8)) is None  # 8 was not even in the group


@pytest.mark.parametrize(
    "failures",
    [
        [(2, "CONNECT", "voter")],  # a leader may not have asked it at all
        [(2, "COMMIT", "voter")],
        [(2, "EXCHANGE", "reducer")],
        [(2, "EXCHANGE", "sender"), (3, "EXCHANGE", "reducer")],  # the reducer may have lied of the sender's weight
        [(1, "EXCHANGE", "sender"), (2, "EXCHANGE", "sender"), (3, "EXCHANGE", "sender")],  # rather our own line
        [(0, "EXCHANGE", "sender")],  # puts nothing in
    ],
)
def test_what_may_be_another_s_doing_counts_against_nobody(failures: list[tuple[int, str, str]]) -> None:
    """An honest miner must not lose through a leader, a reducer or this validator."""
    assert judged(outcome(*failures)).failed == frozenset()


def test_a_leader_in_a_hurry_makes_nobody_fail() -> None:
    """Shorter deadlines than are fair are accepted, but being late for them is no fault of anybody but the leader."""
    verdict = judged(outcome((2, "EXCHANGE", "sender")), request(exchange=0.01))
    assert (verdict.failed, verdict.fault) == (frozenset(), Fault.LEADER)
    assert verdict.reason == "the leader gave 0.01 s to exchange, and 2 s are the least that is fair"


def test_most_parts_missing_is_our_own_line() -> None:
    """It is recorded as this validator's fault, and a round that it spoils counts against nobody."""
    verdict = judged(outcome(*((uid, "EXCHANGE", "sender") for uid in (1, 2, 3))))
    assert (verdict.failed, verdict.fault) == (frozenset(), Fault.VALIDATOR)
    seen = failed_attempt(request(), verdict, frozenset(range(9)))
    assert {standing(uid, seen) for uid in range(9)} == {Standing.VOID}


@pytest.mark.parametrize(
    ("accusers", "fault"), [((1,), Fault.NONE), ((1, 2), Fault.NONE), ((1, 2, 3), Fault.VALIDATOR)]
)
def test_our_own_share_lost_is_our_own_fault(accusers: tuple[int, ...], fault: Fault) -> None:
    """If most of the others did not get what we reduced, we do not trust what we did not get; a few may be lying."""
    lost = Failure(uid=0, state="EXCHANGE", role="reducer", reason="r")
    seen = replace(outcome((4, "EXCHANGE", "sender")), accusations={uid: (lost,) for uid in accusers})
    verdict = judged(seen)
    assert verdict.fault is fault
    assert verdict.failed == (frozenset() if fault is Fault.VALIDATOR else {4})


def test_a_completed_round_counts_for_who_is_in_it() -> None:
    """Left out by the leader: excused. Left out after a failure of its own: not."""
    seen = completed_round(request(size=3), outcome(participants=(1, 2)), frozenset({0, 1, 2, 3, 4}), {4})
    assert [standing(uid, seen) for uid in (1, 2, 3, 4, 5)] == [
        Standing.DELIVERED,
        Standing.DELIVERED,
        Standing.LEFT_OUT,
        Standing.FAILED,
        Standing.ABSENT,
    ]


HOTKEYS = {3: "5C", 4: "5D", 5: "5E"}


def test_who_keeps_staying_away_spoils_rounds() -> None:
    """The third attempt in a row that it did not come to; then the count begins anew."""
    attendance = Attendance(3)
    assert [attendance.spoilers(HOTKEYS, {5}) for _ in range(4)] == [set(), set(), {5}, set()]


def test_coming_once_makes_up_for_staying_away() -> None:
    """A line that is down now and then is no offence; validators are not counted."""
    attendance = Attendance(2)
    assert [attendance.spoilers(HOTKEYS, silent) for silent in ({5, 0}, set(), {5, 0})] == [set()] * 3


def test_where_most_stay_away_it_is_the_leader() -> None:
    """Nobody is excluded for a fault of our own."""
    attendance = Attendance(1)
    assert attendance.spoilers(HOTKEYS, {3, 4}) == frozenset()
    assert attendance.spoilers(HOTKEYS, {3}) == {3}
