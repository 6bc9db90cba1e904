"""Who is asked for what: every chunk once, again if it is lost, and of another if it does not come."""

from __future__ import annotations

import random

from distributed_training.averaging.chunk_plan import ChunkPlan


def test_each_chunk_is_asked_of_one_source() -> None:
    """Until none is left."""
    plan = ChunkPlan(4, patience=2)
    asked = [plan.next("ab"[i % 2], 0) for i in range(5)]
    assert asked == [0, 1, 2, 3, None]
    assert [plan.arrived(number) for number in (0, 1, 2, 3)] == [True] * 4
    assert plan.complete


def test_what_a_lost_source_owed_is_asked_of_others_first() -> None:
    """And nothing that had arrived already."""
    plan = ChunkPlan(5, patience=2)
    assert [plan.next("a", 0) for _ in range(3)] == [0, 1, 2]
    plan.arrived(0)
    plan.lost("a")
    assert plan.missing == 4
    assert sorted(plan.next("b", 0) or 0 for _ in range(2)) == [1, 2]
    assert plan.next("b", 0) == 3


def test_what_is_overdue_is_asked_of_another_as_well() -> None:
    """The longest waiting first, not of the same source, not before patience has ended; the first arrival counts."""
    plan = ChunkPlan(2, patience=2)
    assert (plan.next("slow", 0.0), plan.next("slow", 1.0)) == (0, 1)
    assert plan.next("fast", 1.9) is None
    assert plan.next("slow", 9.0) is None
    assert plan.next("fast", 2.5) == 0
    assert plan.arrived(0)
    assert not plan.arrived(0)
    assert plan.next("fast", 3.0) == 1
    plan.lost("slow")  # the other still has it
    assert plan.next("third", 3.0) is None
    plan.lost("fast")
    assert plan.next("third", 3.0) == 1


def test_any_order_of_losses_and_arrivals_ends_with_every_chunk_once() -> None:
    """A thousand random histories: nothing is forgotten, nothing counted twice."""
    for seed in range(1000):
        order = random.Random(seed)
        plan, first, asked = ChunkPlan(7, patience=1), [0] * 7, dict[str, list[int]]()
        for now in range(2000):
            name = order.choice("abc")
            mine = asked.setdefault(name, [])
            action = order.random()
            if action < 0.1:
                plan.lost(name)
                mine.clear()
            elif action < 0.5 and mine:
                number = mine.pop(0)
                first[number] += plan.arrived(number)
            elif (number_or_none := plan.next(name, now)) is not None:
                mine.append(number_or_none)
            if plan.complete:
                break
        assert plan.complete, seed
        assert first == [1] * 7, seed
