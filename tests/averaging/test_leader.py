"""The leader's next group: by majority, never by one accuser."""

from __future__ import annotations

import math

from distributed_training.averaging.leader import Attempt, equal_shares, surviving_group
from distributed_training.averaging.vote import failure
from distributed_training.protocol import Failure, Member, PeerBinding

BINDING = PeerBinding(hotkey="5" * 48, peer_id="Qm", addresses=("/ip4/127.0.0.1/tcp/1",), signature="0x" + "0" * 128)
TRUST = dict.fromkeys(range(8), 1.0)


def members(n: int) -> tuple[Member, ...]:
    return tuple(Member(uid=uid, peer=BINDING, share=1 / n, contributes=True) for uid in range(n))


def named(uid: int, role: str = "sender") -> tuple[Failure, ...]:
    return (failure(uid, "EXCHANGE", role, "test"),)


def uids(group: tuple[Member, ...]) -> list[int]:
    return [m.uid for m in group]


def reducers(group: tuple[Member, ...]) -> list[int]:
    return [m.uid for m in group if m.share > 0]


def test_who_does_not_answer_is_dropped() -> None:
    """The rest goes on with equal shares, and who named the absent one keeps its own."""
    attempt = Attempt(members=members(4), reports={0: named(3), 1: (), 2: ()})
    group = surviving_group([attempt], TRUST)
    assert uids(group) == [0, 1, 2] == reducers(group)
    assert math.isclose(sum(m.share for m in group), 1)


def test_who_is_named_by_most_is_dropped() -> None:
    """Two of the three others saw it."""
    attempt = Attempt(members=members(4), reports={0: named(2), 1: named(2), 2: (), 3: ()})
    assert uids(surviving_group([attempt], TRUST)) == [0, 1, 3]


def test_a_single_accuser_drops_nobody_but_reduces_no_more() -> None:
    """A liar cannot throw an honest member out, nor hold up the next attempt."""
    attempt = Attempt(members=members(4), reports={0: named(2), 1: (), 2: (), 3: ()})
    group = surviving_group([attempt], TRUST)
    assert uids(group) == [0, 1, 2, 3]
    assert reducers(group) == [1, 2, 3]


def test_in_a_pair_neither_can_drop_the_other() -> None:
    """One word against one."""
    attempt = Attempt(members=members(2), reports={0: named(1), 1: named(0)})
    assert uids(surviving_group([attempt], TRUST)) == [0, 1]


def test_accusers_of_several_attempts_add_up() -> None:
    """A sender that spoils one reducer's part after the other is found out."""
    first = Attempt(members=members(4), reports={0: named(2), 1: (), 2: (), 3: ()})
    second = Attempt(members=surviving_group([first], TRUST), reports={0: (), 1: named(2), 2: (), 3: ()})
    assert uids(surviving_group([first, second], TRUST)) == [0, 1, 3]


def test_trust_weighs_the_accusers() -> None:
    """Two accusers that weigh less than the one who saw nothing convict nobody."""
    attempt = Attempt(members=members(4), reports={0: named(2), 1: named(2), 2: (), 3: ()})
    assert uids(surviving_group([attempt], {**TRUST, 3: 5.0})) == [0, 1, 2, 3]


def test_nobody_left_is_an_empty_group() -> None:
    """No answers, no next attempt; and no group without a reducer."""
    assert surviving_group([Attempt(members=members(3), reports={})], TRUST) == ()
    assert equal_shares(members(3), set()) == ()
