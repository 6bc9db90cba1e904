"""The rule that thins old epochs: what it never removes, and that it comes to rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.hub.retention import LEAST_KEPT, Retention
from template.errors import ConfigurationError

rules = st.builds(
    Retention, keep_last=st.integers(LEAST_KEPT, 20), keep_every=st.one_of(st.just(0), st.integers(1, 30))
)
hubs = st.sets(st.integers(0, 500), max_size=80)


def test_all_of_the_last_then_every_so_many() -> None:
    """The rule by an example that anybody can check."""
    rule = Retention(keep_last=3, keep_every=10)
    assert rule.surplus(range(25)) == (*range(1, 10), *range(11, 20), 21)


def test_what_is_wanted_now_stays() -> None:
    """The epoch that peers are told to fetch, and those after it, are spared however old they are."""
    rule = Retention(keep_last=2, keep_every=0)
    assert rule.surplus(range(10), spare=[5]) == (0, 1, 2, 3, 4)
    assert rule.surplus(range(10), spare=[99]) == tuple(range(8))  # not there, so nobody can be fetching it


@given(rule=rules, epochs=hubs, spare=hubs)
def test_the_newest_and_the_spared_are_never_removed(rule: Retention, epochs: set[int], spare: set[int]) -> None:
    """Whatever the rule and whatever is there; and only what is there is named, each once, oldest first."""
    surplus = rule.surplus(epochs, spare)
    assert not set(surplus) & (set(sorted(epochs)[-rule.keep_last :]) | spare)
    assert list(surplus) == sorted(set(surplus) & epochs)


@given(rule=rules, epochs=hubs)
def test_thinning_twice_removes_nothing_more(rule: Retention, epochs: set[int]) -> None:
    """What is left is what the rule keeps, as much as it allows and no more."""
    left = epochs - set(rule.surplus(epochs))
    assert rule.surplus(left) == ()
    landmarks = len([epoch for epoch in left if rule.keep_every and epoch % rule.keep_every == 0])
    assert len(left) <= rule.keep_last + landmarks


@given(rule=rules, count=st.integers(1, 120))
def test_thinning_as_one_goes_leaves_what_thinning_at_the_end_leaves(rule: Retention, count: int) -> None:
    """A hub that is thinned after every epoch keeps no less than one that is thinned once."""
    held: set[int] = set()
    for epoch in range(count):
        held.add(epoch)
        held -= set(rule.surplus(held))
    assert held == set(range(count)) - set(rule.surplus(range(count)))


def test_everything_can_be_kept() -> None:
    """0 turns thinning off."""
    assert Retention(keep_last=0, keep_every=0).surplus(range(1000)) == ()


@pytest.mark.parametrize(("last", "every"), [(1, 0), (-1, 0), (5, -1)])
def test_a_rule_that_would_take_what_peers_fetch_is_refused(last: int, every: int) -> None:
    """With the least that is allowed in the message."""
    with pytest.raises(ConfigurationError, match="hub keep_"):
        Retention(keep_last=last, keep_every=every)
