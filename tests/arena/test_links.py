"""Simulated time, worked out by hand."""

from __future__ import annotations

import pytest

from distributed_training.arena.ledger import Entry
from distributed_training.arena.links import Link, simulated_seconds
from distributed_training.strategies.message import Combine
from template.errors import ConfigurationError

LINK = Link(bandwidth=800.0, latency=0.5)  # 100 bytes a second


def entry(step: int, sent: int, received: int, delay: int = 0, node: int = 0, operation: str = "x") -> Entry:
    return Entry(
        step=step, node=node, operation=operation, combine=Combine.MEAN, codec="none",
        sent=sent, received=received, delay=delay,
    )  # fmt: skip


def test_without_messages_only_computing_takes_time() -> None:
    """And an exchange of no bytes takes none."""
    assert simulated_seconds([entry(1, 0, 0)], 3, 2.0, LINK) == (2.0, 4.0, 6.0)


def test_an_exchange_is_waited_for() -> None:
    """Latency and the larger direction at the slowest node, behind the step that it belongs to."""
    entries = [entry(2, 100, 50), entry(2, 100, 250, node=1)]
    assert simulated_seconds(entries, 3, 2.0, LINK) == (2.0, 7.0, 9.0)


def test_exchanges_of_one_step_follow_one_another() -> None:
    """One link has one rate."""
    assert simulated_seconds([entry(1, 100, 0), entry(1, 0, 50, operation="y")], 1, 2.0, LINK) == (4.5,)


def test_what_is_due_later_overlaps_with_computing() -> None:
    """A transfer of 3.5 s behind step 1 costs nothing if it is due after step 3, and 1.5 s if after step 2."""
    assert simulated_seconds([entry(1, 300, 0, delay=2)], 3, 2.0, LINK) == (2.0, 4.0, 6.0)
    assert simulated_seconds([entry(1, 300, 0, delay=1)], 3, 2.0, LINK) == (2.0, 5.5, 7.5)


def test_a_link_that_is_behind_delays_the_next_transfer() -> None:
    """Two transfers of 3.5 s, sent after steps 1 and 2 and due two steps later: the second waits for the first."""
    entries = [entry(1, 300, 0, delay=2), entry(2, 300, 0, delay=2)]
    assert simulated_seconds(entries, 4, 2.0, LINK) == (2.0, 4.0, 6.0, 9.0)


def test_what_never_arrives_is_not_waited_for() -> None:
    """A transfer due behind the last step."""
    assert simulated_seconds([entry(2, 900, 0, delay=5)], 2, 2.0, LINK) == (2.0, 4.0)


@pytest.mark.parametrize(("bandwidth", "latency"), [(0.0, 0.1), (1.0, -0.1), (float("nan"), 0.1)])
def test_impossible_links_are_refused(bandwidth: float, latency: float) -> None:
    """Bandwidth must be positive."""
    with pytest.raises(ConfigurationError, match="bandwidth must be positive"):
        Link(bandwidth=bandwidth, latency=latency)
