"""Codecs in rounds: the same bits for everybody, error feedback kept only by rounds that commit, garbage named."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distributed_training.averaging.codec import Floats, pair_named
from distributed_training.averaging.codecs.integer import Integer
from distributed_training.averaging.feedback import ErrorFeedback
from distributed_training.averaging.outcome import RoundResult, RoundState
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.plan import RoundPlan, StateDeadlines
from template.errors import AveragingError
from tests.averaging.groups import Group, contributions, exact_mean, make_plan, member, memory_group, weights

PAIRS = [
    "none", "fp16", "bf16", "int8-block256", "int4-block64", "int2-block64", "int2-block64+int8-block256",
    "topk32-fp16+bf16", "topk4-int2-block64+int4-block64", "topk8-int4-block32+topk2-fp16",
]  # fmt: skip
SHORT = StateDeadlines(connect=0.6, exchange=0.6, commit=0.6)


def expected(plan: RoundPlan, values: Mapping[int, Floats | None], by: Mapping[int, float]) -> Floats:
    """The average that everybody must hold: parts through their codec unless they stay at home, then the average."""
    pair, average = pair_named(plan.codec), np.empty(plan.size, dtype=np.float32)
    for reducer, (first, last) in plan.ranges().items():
        for low, high in chunks(last - first, plan.chunk):
            start, stop = first + low, first + high
            parts: dict[int, Floats | None] = {}
            for uid, value in values.items():
                if value is None:
                    continue
                part = value[start:stop]
                at_home = uid == reducer
                parts[uid] = part if at_home else pair.parts.decode(pair.parts.encode(part), stop - start)
            mean = exact_mean(parts, by).astype(np.float32)
            average[start:stop] = pair.average.decode(pair.average.encode(mean), stop - start)
    return average


def require_same(results: Mapping[int, RoundResult]) -> Floats:
    """The average of all, equal to the bit."""
    averages = [result.average for result in results.values()]
    assert all(average is not None for average in averages), [r.outcome for r in results.values()]
    assert len({average.tobytes() for average in averages if average is not None}) == 1
    assert averages[0] is not None
    return averages[0]


@pytest.mark.parametrize("codec", PAIRS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(n=st.integers(2, 5), size=st.integers(1, 3000), chunk=st.integers(50, 5000), data=st.data())
async def test_everybody_ends_with_the_same_bits(
    codec: str, n: int, size: int, chunk: int, data: st.DataObject
) -> None:
    """Every codec, group, size and cut, with auxiliary members and other weights: the average of the encoded parts."""
    auxiliary = data.draw(st.sets(st.integers(1, n - 1), max_size=n - 1))
    async with memory_group(n) as (group, _):
        plan = make_plan(group.members(auxiliary=sorted(auxiliary)), size, codec=codec, chunk=max(chunk, size // 9))
        values = contributions(plan, seed=size)
        average = require_same(await group.run(plan, values))
        reference = expected(plan, values, weights(plan))
        wrong = np.abs(average - reference) > 1e-5  # a mean that rounds otherwise may fall into the next step
        assert wrong.mean() <= 0.02


@pytest.mark.parametrize("codec", PAIRS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), n=st.integers(1, 8), size=st.integers(1, 2000), feedback=st.booleans())
async def test_the_same_bits_with_any_weights_shares_and_values(
    codec: str, data: st.DataObject, n: int, size: int, feedback: bool
) -> None:
    """Weights over nine decades, shares from none to all, values over many, members that keep their errors.

    No average is beyond the largest value that anybody put in.
    """
    by = data.draw(st.lists(st.floats(1e-3, 1e6), min_size=n, max_size=n), label="weights")
    shares = data.draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), min_size=n, max_size=n).filter(any))
    spread = data.draw(st.sampled_from([1.0, 1e-6, 100.0]), label="spread")
    async with memory_group(n) as (group, _):
        members = [member(uid, transport, shares[uid]) for uid, transport in group.transports.items()]
        plan = make_plan(members, size, codec=codec, chunk=max(100, size // 9))
        scale = np.random.default_rng(size).lognormal(size=size).astype(np.float32) * np.float32(spread)
        values = {uid: value * scale for uid, value in contributions(plan, seed=size).items() if value is not None}
        attempts = {uid: ErrorFeedback(size).attempt() if feedback else None for uid in values}
        results = await asyncio.gather(
            *(group.averagers[uid].run(plan, values[uid], by[uid], attempts[uid]) for uid in values)
        )
        average = require_same(dict(enumerate(results)))
        assert np.abs(average).max() <= 1.01 * max(np.abs(value).max() for value in values.values())


async def run_with(
    group: Group, plan: RoundPlan, values: Mapping[int, Floats | None], keepers: Mapping[int, ErrorFeedback]
) -> dict[int, RoundResult]:
    """A round of members that keep their errors, as a neuron runs it."""
    by = weights(plan)
    attempts = {uid: keeper.attempt() for uid, keeper in keepers.items()}
    results = await asyncio.gather(
        *(group.averagers[uid].run(plan, values[uid], by[uid], attempts[uid]) for uid in keepers)
    )
    for uid, result in zip(keepers, results, strict=True):
        if result.average is not None:
            keepers[uid].commit(attempts[uid])
    return dict(zip(keepers, results, strict=True))


@pytest.mark.parametrize("codec", ["int2-block64+none", "topk32-fp16+none"])
async def test_feedback_sends_everything_in_the_end(codec: str) -> None:
    """The averages of all rounds and the mean of what is owed are the mean of all contributions."""
    async with memory_group(3) as (group, _):
        keepers, total, wanted = {uid: ErrorFeedback(2000) for uid in range(3)}, np.zeros(2000), np.zeros(2000)
        for number in range(6):
            plan = make_plan(group.members(idle=[number % 3]), 2000, codec=codec, chunk=300 + number)
            values = contributions(plan, seed=number)
            total += require_same(await run_with(group, plan, values, keepers))
            wanted += exact_mean(values, weights(plan))
        owed = exact_mean({uid: keeper.residual for uid, keeper in keepers.items()}, weights(plan))
        assert np.abs(owed).max() > 0.01
        np.testing.assert_allclose(total + owed, wanted, atol=1e-4)


async def test_a_round_that_fails_leaves_what_is_owed() -> None:
    """A member is missing: the others keep their residuals, and the next round begins with them."""
    async with memory_group(3) as (group, _):
        keepers = {uid: ErrorFeedback(500) for uid in range(3)}
        plan = make_plan(group.members(), 500, codec="int4-block64")
        require_same(await run_with(group, plan, contributions(plan), keepers))
        before = {uid: keeper.residual for uid, keeper in keepers.items()}
        keepers.pop(2)
        failing = make_plan(group.members(), 500, codec="int4-block64", deadlines=SHORT)
        results = await run_with(group, failing, contributions(failing, seed=1), keepers)
        assert {r.outcome.state for r in results.values()} == {RoundState.ABORTED}
        assert all(keepers[uid].residual is before[uid] and before[uid].any() for uid in keepers)


async def test_a_sender_of_garbage_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of the right length that are no payload are the sender's fault, and nobody else's."""
    async with memory_group(3) as (group, _):
        plan = make_plan(group.members(), 3000, codec="int8-block256+bf16", chunk=5000, deadlines=SHORT)
        values, encode = contributions(plan), Integer.encode
        assert values[1] is not None
        values[1] = np.full(3000, 7, dtype=np.float32)

        def spoilt(self: Integer, part: Floats) -> memoryview:
            data = encode(self, part)
            if part[0] == 7:
                data[8:10] = b"\xff\xff"  # a negative scale that is no number
            return data

        monkeypatch.setattr(Integer, "encode", spoilt)
        results = await group.run(plan, values)
        for uid in (0, 2):
            assert [(f.uid, f.role) for f in results[uid].outcome.failures] == [(1, "sender")]
            assert results[uid].average is None


async def test_parts_that_the_average_cannot_carry_are_named() -> None:
    """Within the parts' codec but beyond the average's: refused at home, and by the others if it is sent."""
    async with memory_group(2) as (group, _):
        plan = make_plan(group.members(), 100, codec="bf16+fp16", deadlines=SHORT)
        values, by = contributions(plan), weights(plan)
        other = asyncio.create_task(group.averagers[0].run(plan, values[0], by[0]))
        with pytest.raises(AveragingError, match="65504"):
            await group.averagers[1].run(plan, np.full(100, 1e6, dtype=np.float32), by[1])
        assert (await other).average is None


async def test_traffic_is_that_of_the_codecs() -> None:
    """Bytes at the stream: parts one way, averages the other, a length in front of each."""
    async with memory_group(2) as (group, _):
        plan = make_plan(group.members(), 4000, codec="int2-block64+int8-block256", chunk=1000)
        pair = pair_named(plan.codec)
        one_way = 2 * (pair.parts.encoded_size(1000) + pair.average.encoded_size(1000) + 2 * 4)
        for result in (await group.run(plan, contributions(plan))).values():
            (transfer,) = result.outcome.transfers
            assert transfer.bytes_sent == transfer.bytes_received == one_way
