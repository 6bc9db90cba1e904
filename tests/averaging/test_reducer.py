"""The reducer against numpy's weighted mean."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.averaging.buffers import Buffers
from distributed_training.averaging.codec import Floats, codec_named
from distributed_training.averaging.reducer import Part, Reducer
from distributed_training.averaging.robust import rule_named, weighted_mean
from distributed_training.averaging.traffic import Effort
from template.errors import AveragingError


def make(out: Floats, chunk: int, weights: dict[int, float], codec: str = "none", rule: str = "mean") -> Reducer:
    return Reducer(out, chunk, weights, codec_named(codec), rule_named(rule), Buffers(), Effort())


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


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8-block256", "int2-block64"])
def test_a_mean_at_the_end_of_the_codecs_range_is_carried(codec: str) -> None:
    """Rounding of the weights takes nobody beyond what the codec can encode."""
    largest = codec_named(codec).largest
    for weights in ([1.0, 1 / 3, 0.1], [0.7, 0.7, 0.7, 0.3, 1e-3]):
        out = np.empty(300, dtype=np.float32)
        reducer = make(out, 300, dict(enumerate(weights)), codec)
        for uid in range(len(weights)):
            reducer.add(uid, 0, np.full(300, largest, dtype=np.float32))
        decoded = codec_named(codec).decode(reducer.encoded(0, never), 300)
        assert out.tobytes() == decoded.tobytes()
        np.testing.assert_allclose(out, largest, rtol=0.01)


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


def fill(reducer: Reducer, index: int, values: Floats) -> Part:
    """A part as it arrives: in the reducer's own memory."""
    buffer = reducer.buffer(index)
    buffer[:] = values.tobytes()
    return buffer


def test_buffers_are_used_again() -> None:
    """What was averaged makes room for what comes."""
    out = np.empty(100, dtype=np.float32)
    reducer = make(out, 10, {1: 1.0, 2: 3.0})
    seen = set()
    for index in range(10):
        for uid in (1, 2):
            part = fill(reducer, index, np.full(10, uid, dtype=np.float32))
            assert isinstance(part, memoryview)
            seen.add(id(part.obj))
            reducer.add(uid, index, part)
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
