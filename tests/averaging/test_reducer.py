"""The reducer against numpy's weighted mean."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.averaging.buffers import Buffers
from distributed_training.averaging.codec import Floats, codec_named
from distributed_training.averaging.reducer import Reducer, is_finite, weighted_mean
from distributed_training.averaging.traffic import Effort
from template.errors import AveragingError


def make(out: Floats, chunk: int, weights: dict[int, float], codec: str = "none") -> Reducer:
    return Reducer(out, chunk, weights, codec_named(codec), Buffers(), Effort())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@given(size=st.integers(1, 150_000), place=st.floats(0, 1, exclude_max=True))
def test_one_value_that_is_not_finite_is_found(size: int, place: float, value: float) -> None:
    """Wherever it is."""
    values = np.ones(size, dtype=np.float32)
    assert is_finite(values)
    values[int(place * size)] = value
    assert not is_finite(values)


def never() -> bool:
    return False


@given(
    size=st.integers(1, 50),
    weights=st.lists(st.floats(0.001, 1e6), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_mean_is_numpys(size: int, weights: list[float], seed: int) -> None:
    """To the promised bound, for any weights."""
    parts = list(np.random.default_rng(seed).standard_normal((len(weights), size)).astype(np.float32))
    exact = np.asarray(parts, dtype=np.float64)
    out = np.empty(size, dtype=np.float32)
    weighted_mean(parts, weights, out)
    bound = (len(weights) + 1) * 2.0**-24 * np.average(np.abs(exact), axis=0, weights=weights)
    assert np.all(np.abs(out - np.average(exact, axis=0, weights=weights)) <= bound + 1e-44)


def test_long_parts_are_summed_block_by_block() -> None:
    """Every value counts once, also where a block ends."""
    parts = [np.full(100_001, value, dtype=np.float32) for value in (1.0, 2.0, 6.0)]
    out = np.empty(100_001, dtype=np.float32)
    weighted_mean(parts, [1.0, 1.0, 2.0], out)
    np.testing.assert_array_equal(out, np.full(100_001, 3.75, dtype=np.float32))


def test_large_values_do_not_overflow() -> None:
    """Not in the sum, and not by rounding at the end of the range."""
    for value, weights in [(3e38, [1e6, 1e6]), (float(np.finfo(np.float32).max), [1.0, 1 / 3, 0.1])]:
        out = np.empty(3, dtype=np.float32)
        reducer = make(out, 3, dict(enumerate(weights)))
        for uid in range(len(weights)):
            reducer.add(uid, 0, np.full(3, value, dtype=np.float32))
        np.testing.assert_allclose(out, value, rtol=1e-6)


@given(order=st.permutations(range(4)), chunk=st.integers(1, 12))
def test_the_average_does_not_depend_on_the_order_of_arrival(order: list[int], chunk: int) -> None:
    """Any order of senders gives the bytes of the ascending one."""
    parts = np.random.default_rng(1).standard_normal((4, 10)).astype(np.float32)
    weights = {uid: 0.1 + uid for uid in range(4)}
    out, expected = np.empty(10, dtype=np.float32), np.empty(10, dtype=np.float32)
    reducer = make(out, chunk, weights)
    for index, (start, stop) in enumerate(reducer.chunks):
        for uid in order:
            reducer.add(uid, index, parts[uid, start:stop])
    weighted_mean(list(parts), list(weights.values()), expected)
    assert out.tobytes() == expected.tobytes()
    assert b"".join(bytes(reducer.encoded(i, never)) for i in range(len(reducer.chunks))) == expected.tobytes()


def test_memory_is_used_again() -> None:
    """What was averaged makes room for what comes."""
    codec = codec_named("none")
    out = np.empty(100, dtype=np.float32)
    reducer = make(out, 10, {1: 1.0, 2: 3.0})
    seen = set()
    for index in range(10):
        for uid in (1, 2):
            memory, data = reducer.memory(index)
            data[:] = codec.encode(np.full(10, uid, dtype=np.float32))
            seen.add(id(memory))
            reducer.add(uid, index, codec.decode(data, 10), memory)
    assert len(seen) == 2
    np.testing.assert_array_equal(out, np.full(100, 1.75, dtype=np.float32))


def test_everybody_gets_the_same_object_and_only_when_all_parts_are_there() -> None:
    """One encoding for all."""
    reducer = make(np.empty(4, dtype=np.float32), 4, {1: 1.0, 2: 1.0}, "fp16")
    got: list[bytes | memoryview] = []
    waiting = [threading.Thread(target=lambda: got.append(reducer.encoded(0, never))) for _ in range(2)]
    for thread in waiting:
        thread.start()
    reducer.add(2, 0, np.ones(4, dtype=np.float32))
    assert got == []
    reducer.add(1, 0, np.zeros(4, dtype=np.float32))
    for thread in waiting:
        thread.join(5)
    assert got[0] is got[1]


def test_who_waits_can_be_called_off() -> None:
    """A blocked reader ends when it is told to look, not before."""
    reducer = make(np.empty(4, dtype=np.float32), 4, {1: 1.0})
    gone, ended = threading.Event(), threading.Event()

    def wait() -> None:
        with pytest.raises(AveragingError):
            reducer.encoded(0, gone.is_set)
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    reducer.wake()
    assert not ended.wait(0.1)
    gone.set()
    reducer.wake()
    assert ended.wait(5)
