"""The vote: when to commit, and whom to name when members hold different bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.averaging.vote import Decision, decide, disagreements

A, B = "a" * 64, "b" * 64
EQUAL = {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}


@pytest.mark.parametrize(
    ("votes", "silent", "mine", "decision"),
    [
        ({0: A}, [], A, Decision.WAIT),
        ({0: A, 1: A, 2: A}, [], A, Decision.COMMIT),
        ({0: A, 1: None}, [], A, Decision.WAIT),
        ({0: A, 1: None, 2: None}, [], A, Decision.ABORT),
        ({0: A, 1: B, 2: B}, [], A, Decision.ABORT),
        ({0: A}, [1, 2], A, Decision.ABORT),
        ({0: A, 1: A}, [2], A, Decision.WAIT),
        ({1: None}, [], None, Decision.WAIT),
        ({1: None, 2: None}, [], None, Decision.ABORT),
        ({0: A, 9: None, 8: None}, [], A, Decision.WAIT),
    ],
)
def test_decisions_of_four_equal_members(
    votes: dict[int, str | None], silent: list[int], mine: str | None, decision: Decision
) -> None:
    """With a quorum of 0.67 three of four must agree; auxiliary members (8, 9) have no say."""
    assert decide(EQUAL, votes, silent, mine, 0.67) is decision


def test_a_quorum_of_one_needs_everybody_and_is_reached() -> None:
    """No rounding stands between full agreement and the commit."""
    weights = {uid: 0.1 * (uid + 1) for uid in range(7)}
    votes: dict[int, str | None] = dict.fromkeys(weights, A)
    assert decide(weights, votes, [], A, 1.0) is Decision.COMMIT


@given(st.dictionaries(st.integers(0, 7), st.floats(0.01, 1e6), min_size=1, max_size=8), st.integers(1, 255))
def test_nobody_gives_up_while_all_may_still_agree(weights: dict[int, float], voted: int) -> None:
    """Whoever has voted so far, the sum of those and the others is the whole, whatever is rounded on the way."""
    votes: dict[int, str | None] = {uid: A for uid in weights if voted >> uid & 1}
    assert decide(weights, votes, [], None, 1.0) is Decision.WAIT
    mine = next(iter(weights))
    assert decide(weights, votes | {mine: A}, [], A, 1.0) is not Decision.ABORT


ballots = st.dictionaries(st.integers(0, 7), st.sampled_from([A, B, None]), max_size=8)


@given(
    weights=st.dictionaries(st.integers(0, 7), st.floats(0.01, 1e6), min_size=1, max_size=8),
    votes=ballots,
    quorum=st.floats(0.51, 1.0),
)
def test_two_averages_are_never_both_committed(
    weights: dict[int, float], votes: dict[int, str | None], quorum: float
) -> None:
    """Whatever the votes, at most one hash can be committed, and a commit is never undone by later votes."""
    decisions = [decide(weights, votes, [], average, quorum) for average in (A, B)]
    assert decisions.count(Decision.COMMIT) <= 1
    for average, decision in zip((A, B), decisions, strict=True):
        for late in set(weights) - set(votes) if decision is not Decision.WAIT else ():
            assert decide(weights, {**votes, late: A}, [], average, quorum) is decision
            assert decide(weights, {**votes, late: B}, [], average, quorum) is decision


def test_agreement_names_nobody() -> None:
    """Equal digests are no failure, nor is a share that one member does not know."""
    assert disagreements({0: {0: A, 1: B}, 1: {0: A, 1: B}, 2: {0: A}}) == ()


def test_different_bytes_name_the_reducer_and_the_minority() -> None:
    """The reducer sent different bytes or the lone voter lies: both are named, the majority is not."""
    named = disagreements({0: {1: A}, 1: {1: A}, 2: {1: A}, 3: {1: B}})
    assert [(f.uid, f.role) for f in named] == [(1, "reducer"), (3, "voter")]


def test_a_reducer_alone_against_all_is_named_once() -> None:
    """Everybody received the same bytes, which are not those that the reducer claims."""
    named = disagreements({uid: {1: B if uid == 1 else A} for uid in range(4)})
    assert [(f.uid, f.role) for f in named] == [(1, "reducer")]


def test_an_even_split_names_the_reducer_only() -> None:
    """Without a majority no voter is known to lie."""
    named = disagreements({uid: {1: average} for uid, average in zip(range(4), itertools.cycle([A, B]), strict=False)})
    assert [(f.uid, f.role) for f in named] == [(1, "reducer")]
