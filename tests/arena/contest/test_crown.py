"""What the contest pays: everything to one, or to nobody."""

from __future__ import annotations

import dataclasses

import pytest

from distributed_training.arena.contest.crown import MECHANISM, crown
from tests.roles import metagraph_of

GRAPH = metagraph_of(5)  # hotkeys of uids 0 to 4
OWNED = dataclasses.replace(GRAPH, owner_hotkey=GRAPH.hotkeys[4])


def test_the_winner_takes_it_all() -> None:
    """Weight 1 of mechanism 1."""
    assert crown(GRAPH.hotkeys[2], OWNED) == {2: 1.0}
    assert MECHANISM == 1


@pytest.mark.parametrize("champion", [None, "5HasLeft"])
def test_nobody_s_weight_is_burned(champion: str | None) -> None:
    """No champion, or one without a uid."""
    assert crown(champion, OWNED) == {4: 1.0}


def test_with_nobody_to_burn_nothing_is_set() -> None:
    """Never evenly to all; a champion is paid all the same."""
    alone = dataclasses.replace(GRAPH, owner_hotkey="5Nobody")
    assert crown(None, alone) == {}
    assert crown(GRAPH.hotkeys[2], alone) == {2: 1.0}


def test_a_subnet_that_wants_more_entries_gets_the_smallest() -> None:
    """As far as u16 allows, all is still the champion's."""
    found = crown(GRAPH.hotkeys[2], dataclasses.replace(OWNED, min_allowed_weights=3))
    assert len(found) == 3
    assert found[2] > 0.9999
    assert sum(found.values()) == pytest.approx(1.0)
