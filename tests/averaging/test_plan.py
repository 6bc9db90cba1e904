"""The plan of a round: what its digest covers, and how large its frames are."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from distributed_training.averaging.memory import MemoryNetwork
from distributed_training.averaging.plan import CHUNK, SMALL_CHUNK, RoundPlan, StateDeadlines, chunk_for
from tests.averaging.groups import make_plan, member


def plan_of(n: int = 3) -> RoundPlan:
    network = MemoryNetwork()
    return make_plan([member(uid, network.transport(f"peer-{uid}")) for uid in range(n)], 100)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 101},
        {"codec": "fp16"},
        {"chunk": 7},
        {"quorum": 0.8},
        {"max_weight": 1.0},
        {"attempt": 99},
        {"epoch": 9},
    ],
)
def test_the_digest_covers_what_all_must_agree_on(change: dict[str, Any]) -> None:
    """Whoever has another size, codec, cut, quorum or bound is in another round."""
    plan = plan_of()
    assert dataclasses.replace(plan, **change).digest() != plan.digest()


@pytest.mark.parametrize("change", [{"share": 0.5}, {"contributes": False}, {"peer_id": "other"}, {"uid": 7}])
def test_the_digest_covers_the_members(change: dict[str, Any]) -> None:
    """Who they are and what each does, in whatever order they are listed."""
    plan = plan_of()
    first, *others = plan.members
    other = dataclasses.replace(plan, members=(dataclasses.replace(first, **change), *others))
    assert other.digest() != plan.digest()
    assert dataclasses.replace(plan, members=tuple(reversed(plan.members))).digest() == plan.digest()


def test_the_digest_leaves_out_what_may_differ() -> None:
    """Where a member is found, and how long it is waited for, change no result."""
    plan = plan_of()
    moved = tuple(dataclasses.replace(m, addresses=("/elsewhere",)) for m in plan.members)
    later = StateDeadlines(connect=9.0, exchange=9.0, commit=9.0)
    assert dataclasses.replace(plan, members=moved, deadlines=later).digest() == plan.digest()


@pytest.mark.parametrize(
    ("size", "reducers", "chunk"),
    [(124_000_000, 8, CHUNK), (10_000_000, 4, 98_304), (1_000_000, 4, SMALL_CHUNK), (10, 1, SMALL_CHUNK)],
)
def test_a_share_is_cut_into_enough_frames_to_keep_a_link_busy(size: int, reducers: int, chunk: int) -> None:
    """At least 24 of a large share, none larger than 1 MiB nor smaller than 64 KiB."""
    assert chunk_for(size, reducers) == chunk
