"""What a contributor is bound to: every byte of every part, and no other reducer's chunks in place of it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from distributed_training.averaging.codec import pair_named
from distributed_training.averaging.feedback import ErrorFeedback
from distributed_training.averaging.packing import Packing, chunk_hash, is_bound
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.traffic import Effort
from tests.averaging.groups import make_plan, memory_group

SIZE = 5000


def plan_of(codec: str) -> RoundPlan:
    async def made() -> RoundPlan:
        async with memory_group(3) as (group, _):
            return make_plan(group.members(), SIZE, codec=codec, chunk=400)

    return asyncio.run(made())


def packed(plan: RoundPlan, vector: np.ndarray, feedback: ErrorFeedback | None = None) -> Packing:
    attempt = None if feedback is None else feedback.attempt()
    return Packing(plan, 1, pair_named(plan.codec), vector, attempt, Effort())


@pytest.mark.parametrize("codec", ["none", "fp16", "int8-block64"])
def test_the_payloads_are_the_encoded_chunks(codec: str) -> None:
    """Of each reducer's share what the codec makes of it; its own part goes as it is."""
    plan, vector = plan_of(codec), np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    packing, parts = packed(plan, vector), pair_named(codec).parts
    for reducer, (start, stop) in plan.ranges().items():
        count = len(packing.chunk_hashes(reducer))
        sent = b"".join(bytes(packing.payload(reducer, index)) for index in range(count))
        if reducer == 1:
            assert sent == vector[start:stop].tobytes()
            assert packing.own.tobytes() == vector[start:stop].tobytes()
        elif codec == "none":
            assert sent == vector[start:stop].tobytes()
        else:
            low, high = chunks(stop - start, plan.chunk)[1]
            decoded = parts.decode(packing.payload(reducer, 1), high - low)
            np.testing.assert_allclose(decoded, vector[start + low : start + high], atol=0.02)


def test_one_bit_changes_the_root() -> None:
    """Wherever it is, also in the own part; and the same contribution gives the same root."""
    plan, vector = plan_of("none"), np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    roots = {packed(plan, vector).root}
    assert packed(plan, vector.copy()).root in roots
    for place in (0, 1700, SIZE - 1):
        changed = vector.copy()
        changed[place] = np.nextafter(changed[place], np.float32(9))
        roots.add(packed(plan, changed).root)
    assert len(roots) == 4


def test_with_error_feedback_what_is_owed_is_bound_too() -> None:
    """What is sent is the contribution and the residual, which nobody else knows."""
    plan, vector = plan_of("int4-block64"), np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    feedback = ErrorFeedback(SIZE)
    attempt = feedback.attempt()
    first = Packing(plan, 1, pair_named(plan.codec), vector, attempt, Effort())
    feedback.commit(attempt)
    assert packed(plan, vector, feedback).root != first.root


def test_nothing_else_passes_for_what_is_bound() -> None:
    """Not another share's chunks, not fewer of them, not another root, not a share that is made up."""
    plan, vector = plan_of("none"), np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    packing = packed(plan, vector)
    shares, hashes = tuple(packing.shares.items()), packing.chunk_hashes(0)
    count = len(hashes)
    assert is_bound(packing.root, shares, 0, hashes, count)
    assert not is_bound(packing.root, shares, 2, hashes, count)
    assert not is_bound(packing.root, shares, 0, hashes[:-1], count - 1)
    assert not is_bound(packed(plan, -vector).root, shares, 0, hashes, count)
    forged = (chunk_hash(b"else"), *hashes[1:])
    assert not is_bound(packing.root, shares, 0, forged, count)
