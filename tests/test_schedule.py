"""The schedule: who leads, when an epoch ends, who is in the group, which state is right."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from distributed_training import schedule
from distributed_training.protocol import PeerBinding
from distributed_training.run import EpochSpec
from distributed_training.schedule import View

SPEC = EpochSpec(
    target_samples=100,
    max_blocks=10,
    min_miners=2,
    turn_blocks=5,
    attempts=3,
    validator_stake=1.0,
    fallback_blocks=20,
)
STATE = (3, "a" * 64)


def view(uid: int, *, samples: int = 0, validator: bool = False, state: tuple[int, str] = STATE) -> View:
    peer = PeerBinding(
        hotkey=f"5{'x' * 45}{uid:02d}", peer_id=f"peer{uid}", addresses=("/a",), signature="0x" + "0" * 128
    )
    return View(uid=uid, is_validator=validator, epoch=state[0], state_hash=state[1], samples=samples, peer=peer)


@given(st.sets(st.integers(0, 255), min_size=1), st.integers(0, 1000), st.integers(0, 10**7), st.integers(1, 100))
def test_a_turn_passes_to_every_validator(validators: set[int], epoch: int, block: int, turn: int) -> None:
    """Within as many turns as there are validators each of them leads once, in whatever order they are given."""
    leaders = [schedule.leader(validators, epoch, block + i * turn, turn) for i in range(len(validators))]
    assert set(leaders) == validators
    assert leaders[0] == schedule.leader(sorted(validators, reverse=True), epoch, block, turn)


def test_nobody_leads_without_a_permit() -> None:
    """No validator, no leader."""
    assert schedule.leader([], 1, 1, 5) is None


def test_the_turn_before_is_still_accepted_and_others_are_not() -> None:
    """A round may be repeated after its turn has ended; a validator whose turn it was not is refused."""
    validators = [1, 2, 3]
    now = schedule.leader(validators, 0, 10, 5)
    before = schedule.leader(validators, 0, 5, 5)
    (other,) = set(validators) - {now, before}
    assert now is not None
    assert before is not None
    assert schedule.may_lead(now, validators, 0, 10, 5)
    assert schedule.may_lead(before, validators, 0, 10, 5)
    assert not schedule.may_lead(other, validators, 0, 10, 5)
    assert schedule.may_lead(other, validators, 0, 14, 5)  # its turn begins with the next block


def test_an_epoch_ends_by_samples_or_by_blocks() -> None:
    """Enough samples end it at once; enough blocks end it with less, if enough miners trained at this state."""
    few, many = view(1, samples=10), view(2, samples=95)
    elsewhere = view(3, samples=500, state=(2, "b" * 64))
    assert schedule.ready([few, many], STATE, 0, SPEC)
    assert not schedule.ready([few, view(2, samples=20), elsewhere], STATE, 9, SPEC)
    assert schedule.ready([few, view(2, samples=20)], STATE, 10, SPEC)
    assert not schedule.ready([many, view(2)], STATE, 10, SPEC)


def test_with_overlap_a_failed_attempt_is_repeated_with_what_there_is() -> None:
    """Contributions are set aside: more samples will not come. Without overlap they will."""
    views = [view(1, samples=10), view(2, samples=20)]
    overlap = dataclasses.replace(SPEC, overlap=True)
    assert schedule.ready(views, STATE, 0, overlap, tried=True)
    assert not schedule.ready(views, STATE, 0, overlap)
    assert not schedule.ready(views, STATE, 0, SPEC, tried=True)
    assert not schedule.ready(views[:1], STATE, 0, overlap, tried=True)


def test_the_group_is_who_has_something_to_give_and_the_validators() -> None:
    """Idle miners and other states stay out; shares sum to one; validators only reduce."""
    views = [view(4, samples=8), view(1, validator=True), view(3), view(2, samples=1, state=(2, "b" * 64))]
    members = schedule.group(views, STATE)
    assert [(m.uid, m.contributes) for m in members] == [(1, False), (4, True)]
    assert sum(m.share for m in members) == 1


def test_the_barred_stay_out_unless_nobody_else_is_left() -> None:
    """No punishment may stop the run: it ends with an epoch, and the epoch needs contributors."""
    views = [view(1, validator=True), view(2, samples=1), view(3, samples=1), view(4, samples=1)]
    spoiler, cheat, honest = (frozenset({v.peer.hotkey}) for v in views[1:])

    def admitted(excluded: frozenset[str], unpaid: frozenset[str], min_miners: int = 1) -> list[int]:
        return [v.uid for v in schedule.admitted(views, STATE, excluded, unpaid, min_miners, overdue=False)]

    assert admitted(spoiler, cheat) == [1, 4]
    assert admitted(spoiler, cheat, min_miners=2) == [1, 2, 4]
    assert admitted(spoiler, cheat, min_miners=3) == [1, 2, 3, 4]
    assert admitted(spoiler | honest, cheat) == [1, 2, 4]
    assert admitted(frozenset(), spoiler | cheat | honest) == [1, 2, 3, 4]


def test_who_failed_an_audit_does_not_end_epochs_before_anybody_else_has_trained() -> None:
    """Others that are alive are waited for, until the epoch is overdue; who stands elsewhere or validates is not."""
    cheat = frozenset({view(3).peer.hotkey})
    claims, idle = view(3, samples=1000), view(2)
    for others, waits in (([idle], True), ([view(2, state=(4, "b" * 64))], False), ([view(1, validator=True)], False)):
        for overdue in (False, True):
            admitted = schedule.admitted([*others, claims], STATE, frozenset(), cheat, 1, overdue=overdue)
            assert (claims not in admitted) == (waits and not overdue)


def test_the_majority_is_counted_by_validators_stake() -> None:
    """Miners have no say; a near tie goes to the later epoch; without nearly half of the stake nobody is right."""
    other, third = (4, "b" * 64), (5, "c" * 64)
    views = [view(1, validator=True), view(2, validator=True, state=other), view(3, samples=1, state=other)]
    assert schedule.majority_state(views, [0.0, 60.0, 40.0, 1000.0]) == STATE
    assert schedule.majority_state(views, [0.0, 50.0, 50.0, 1000.0]) == other
    assert schedule.majority_state(views, [0.0, 52.0, 48.0, 1000.0]) == other
    split = [view(1, validator=True), view(2, validator=True, state=other), view(3, validator=True, state=third)]
    assert schedule.majority_state(split, [0.0, 40.0, 30.0, 30.0]) is None
    assert schedule.majority_state([views[2]], [0.0, 0.0, 0.0, 1.0]) is None


def test_who_missed_the_end_of_an_epoch_notices() -> None:
    """Half of the miners ahead is enough; validators do not count, and without miners nobody was overtaken."""
    ahead = (4, "b" * 64)
    views = [view(1, validator=True, state=ahead), view(2), view(3, state=ahead)]
    assert schedule.overtaken(views, STATE[0])
    assert not schedule.overtaken([*views, view(4)], STATE[0])
    assert not schedule.overtaken(views[:1], STATE[0])


def test_a_validator_that_was_away_does_not_pull_the_others_back() -> None:
    """Until it is settled its stake does not count, however large it is."""
    back = dataclasses.replace(view(1, validator=True, state=(1, "c" * 64)), settled=False)
    assert schedule.majority_state([back, view(2, validator=True)], [0.0, 90.0, 10.0]) == STATE


def test_a_first_hiccup_costs_the_epoch_and_habit_costs_more() -> None:
    """1, 2, 4, ... epochs; delivering brings the count down again."""
    known = schedule.exclude({}, ["a"], 10)
    assert schedule.excluded(known, 10) == {"a"}
    assert schedule.excluded(known, 11) == frozenset()
    again = schedule.exclude(known, ["a"], 11)
    assert schedule.excluded(again, 12) == {"a"}
    assert schedule.forgive(again, {"b"}) == again
    assert schedule.forgive(schedule.forgive(again, {"a"}), {"a"}) == {}


def test_miners_go_on_only_after_long_silence_and_at_agreed_blocks() -> None:
    """Off at 0; every fifth block, if the silence had lasted long enough by then, once each."""
    off = dataclasses.replace(SPEC, fallback_blocks=0)
    assert not schedule.without_validators(10**6, off)
    assert [schedule.without_validators(silent, SPEC) for silent in (0, 19, 20)] == [False, False, True]
    due = {block: schedule.fallback_due(block, block - 100, -1, SPEC) for block in range(118, 127)}
    assert [block for block, yes in due.items() if yes] == [120, 121, 122, 123, 124, 125, 126]
    assert not schedule.fallback_due(123, 23, 120, SPEC)
    assert schedule.fallback_due(125, 25, 120, SPEC)
    assert not schedule.fallback_due(123, 22, -1, SPEC)  # at block 120 it had lasted 19
    assert schedule.fallback_due(125, 24, -1, SPEC)


@given(st.sets(st.integers(0, 40), min_size=1), st.data(), st.sampled_from([0.51, 0.6, 0.67, 0.75, 1.0]))
def test_no_two_groups_without_a_common_member_hold_the_quorum(
    of: set[int], data: st.DataObject, quorum: float
) -> None:
    """Of any electorate, split in any way; the least number that holds it is exactly `quorum_of`."""
    names = {f"hotkey{uid}" for uid in of}
    one = data.draw(st.sets(st.sampled_from(sorted(names))))
    assert not (schedule.holds(one, names, quorum) and schedule.holds(names - one, names, quorum))
    assert schedule.holds(one, names, quorum) == (len(one) >= schedule.quorum_of(len(names), quorum))
    assert len(names) >= schedule.quorum_of(len(names), quorum) > len(names) / 2


def test_a_stranger_to_an_electorate_does_not_count() -> None:
    """However many there are; 3 of 5 are 0.6."""
    assert not schedule.holds({"a", "b", "x", "y"}, {"a", "b", "c", "d", "e"}, 0.6)
    assert schedule.holds({"a", "b", "c"}, {"a", "b", "c", "d", "e"}, 0.6)


def test_without_validators_most_of_the_miners_are_right() -> None:
    """More than half; validators do not count here."""
    other = (4, "b" * 64)
    views = [view(1, validator=True, state=other), view(2), view(3), view(4, state=other)]
    assert schedule.miners_state(views) == STATE
    assert schedule.miners_state([*views, view(5, state=other)]) is None
    assert schedule.miners_state([]) is None


def test_miners_are_believed_to_have_gone_on_only_if_no_validator_was_there() -> None:
    """Validators that stand together at a state, or one that is settled or as far, are not overruled."""
    ahead = (5, "b" * 64)
    miners = [view(uid, state=ahead) for uid in (3, 4, 5)]
    away = [dataclasses.replace(view(uid, validator=True), settled=False) for uid in (1, 2)]
    assert schedule.gone_on([*away, *miners]) == ahead
    assert schedule.gone_on([away[0], view(2, validator=True), *miners]) is None
    assert schedule.gone_on([away[0], dataclasses.replace(away[1], epoch=5), *miners]) is None
    assert schedule.gone_on([*away, *miners[:1], view(4), view(5)]) is None
