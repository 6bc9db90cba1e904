"""The reducer against numpy's weighted mean."""

from __future__ import annotations

import asyncio

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.averaging.codec import codec_named
from distributed_training.averaging.reducer import Reducer, weighted_mean


@given(
    size=st.integers(1, 50),
    weights=st.lists(st.floats(0.001, 1e6), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_mean_is_numpys(size: int, weights: list[float], seed: int) -> None:
    """To float32 rounding, for any weights."""
    parts = list(np.random.default_rng(seed).standard_normal((len(weights), size)).astype(np.float32))
    expected = np.average(np.asarray(parts, dtype=np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(weighted_mean(parts, weights), expected, rtol=1e-6, atol=1e-6)


def test_large_values_do_not_overflow() -> None:
    """Sums beyond float32 are held in float64."""
    part = np.full(3, 3e38, dtype=np.float32)
    np.testing.assert_allclose(weighted_mean([part, part], [1e6, 1e6]), part, rtol=1e-6)


@given(order=st.permutations(range(4)), chunk=st.integers(1, 12))
async def test_the_average_does_not_depend_on_the_order_of_arrival(order: list[int], chunk: int) -> None:
    """Any order of senders gives the bytes of the ascending one."""
    parts = np.random.default_rng(1).standard_normal((4, 10)).astype(np.float32)
    weights = {uid: 0.1 + uid for uid in range(4)}
    reducer = Reducer(10, chunk, weights, codec_named("none"))
    for index, (start, stop) in enumerate(reducer.chunks):
        for uid in order:
            await reducer.add(uid, index, parts[uid, start:stop])
    encoded = [bytes(await reducer.encoded(index)) for index in range(len(reducer.chunks))]
    assert b"".join(encoded) == weighted_mean(list(parts), list(weights.values())).tobytes()


async def test_everybody_gets_the_same_object_and_only_when_all_parts_are_there() -> None:
    """One encoding for all."""
    reducer = Reducer(4, 4, {1: 1.0, 2: 1.0}, codec_named("fp16"))
    waiting = [asyncio.create_task(reducer.encoded(0)) for _ in range(2)]
    await reducer.add(2, 0, np.ones(4, dtype=np.float32))
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    await reducer.add(1, 0, np.zeros(4, dtype=np.float32))
    first, second = await asyncio.gather(*waiting)
    assert first is second
