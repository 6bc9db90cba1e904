"""Codecs: one contract for all, each format against a slow reference, and what is refused."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distributed_training.averaging.codecs.codec import Floats, bits_per_parameter
from distributed_training.averaging.codecs.registry import codec_named
from distributed_training.averaging.codecs.top_k import TopK
from template.errors import AveragingError
from tests.averaging import slow_codecs

NAMES = [
    "none", "fp16", "bf16", "int8-block256", "int8-block16", "int4-block64", "int4-block4096", "int2-block64",
    "int2-block16", "topk32-fp16", "topk2-bf16", "topk4-int4-block16", "topk32-int2-block64", "topk1024-int8-block32",
]  # fmt: skip
BLOCKWISE = [name for name in NAMES if name.startswith("int")]
SIZES = [0, 1, 2, 3, 15, 17, 64, 65, 255, 4095, 4096, 4097, 8193, 32768, 33001]
FLOOR = 2.0**-118  # far above what the codecs treat as zero, far below any gradient

every = pytest.mark.parametrize("name", NAMES)
blockwise = pytest.mark.parametrize("name", BLOCKWISE)
magnitudes = st.sampled_from([1e-44, 1e-38, 1e-30, 1e-7, 1e-4, 1.0, 3e4])


@st.composite
def vectors(draw: st.DrawFn, largest: int = 9000) -> Floats:
    """Normal values of one magnitude, some of them replaced by zeros, equal ones or much larger ones."""
    n = draw(st.one_of(st.integers(1, 200), st.integers(1, largest)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = random.standard_normal(n) * draw(magnitudes) / 5
    rare = random.random(n) < draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    values[rare] = draw(st.sampled_from([0.0, -0.25, 1.5e-5, 6e4]))
    return values.astype(np.float32)


def there_and_back(name: str, values: Floats) -> Floats:
    return codec_named(name).decode(codec_named(name).encode(values), values.size)


def normal(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(n, dtype=np.float32)


# The contract


@every
@pytest.mark.parametrize("n", SIZES)
def test_sizes_are_exact(name: str, n: int) -> None:
    """The bytes are as many as announced, for odd sizes, one value and none; what comes back has the same length."""
    codec = codec_named(name)
    data = codec.encode(normal(n))
    assert len(data) == codec.encoded_size(n)
    assert codec.decode(data, n).shape == (n,)


@every
@settings(max_examples=12)
@given(values=vectors())
def test_decoding_is_the_slow_reference(name: str, values: Floats) -> None:
    """To the bit, from any kind of buffer, and into an array that is given."""
    data = bytes(codec_named(name).encode(values))
    expected = np.array(slow_codecs.decode(name, data, values.size), dtype=np.float32)
    out = np.full(values.size + 2, np.nan, dtype=np.float32)
    codec_named(name).decode(memoryview(bytearray(data)), values.size, out[1:-1])
    np.testing.assert_array_equal(out[1:-1], expected)
    np.testing.assert_array_equal(codec_named(name).decode(data, values.size), expected)


@every
@settings(max_examples=20)
@given(values=vectors(500))
def test_bytes_are_deterministic_and_the_input_is_left_alone(name: str, values: Floats) -> None:
    """Equal values give equal bytes, whether or not they lie in one piece."""
    before, spread = values.copy(), np.repeat(values, 2)[::2]
    data = bytes(codec_named(name).encode(values))
    assert bytes(codec_named(name).encode(spread)) == data
    np.testing.assert_array_equal(values, before)


@every
@pytest.mark.parametrize("n", [1, 100, 5000])
def test_zeros_stay_zeros(name: str, n: int) -> None:
    """Nothing is made of nothing; negative zero is zero."""
    zeros = np.zeros(n, dtype=np.float32)
    assert not there_and_back(name, zeros).any()
    assert not there_and_back(name, -zeros).any()


@every
def test_the_largest_values_stay_finite(name: str) -> None:
    """Up to `largest` and not beyond it, before and after."""
    codec = codec_named(name)
    values = np.full(300, codec.largest, dtype=np.float32) * np.where(np.arange(300) % 3, 1, -1).astype(np.float32)
    back = codec.decode(codec.encode(values), 300)
    assert np.abs(back).max() <= codec.largest
    beyond = np.float32(codec.largest).view(np.uint32) + np.uint32(1)  # the next float32; infinity for "none"
    with pytest.raises(AveragingError, match="beyond"):
        codec.encode(np.array([0, beyond.view(np.float32)], dtype=np.float32))


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 4999])
def test_what_is_not_finite_is_not_encoded(name: str, value: float, place: int) -> None:
    """One bad value anywhere, whatever else is sent."""
    values = normal(5000)
    values[place] = value
    with pytest.raises(AveragingError, match="NaN or beyond"):
        codec_named(name).encode(values)


@every
def test_other_arrays_are_refused(name: str) -> None:
    """float32 [n] and nothing else; results go where they fit."""
    for wrong in (np.zeros(4), np.zeros((2, 2), dtype=np.float32)):
        with pytest.raises(AveragingError, match="float32"):
            codec_named(name).encode(wrong)  # type: ignore[arg-type]  # that is the point
    data = codec_named(name).encode(normal(4))
    with pytest.raises(AveragingError, match="decoding 4 values"):
        codec_named(name).decode(data, 4, np.zeros(5, dtype=np.float32))


# Errors


@pytest.mark.parametrize(
    ("name", "relative", "floor"), [("none", 0, 0), ("fp16", 2**-11, 2**-25), ("bf16", 2**-8, 2**-134)]
)
@given(values=vectors(500))
def test_floating_point_rounds_to_nearest(name: str, relative: float, floor: float, values: Floats) -> None:
    """The error of each value by itself is bounded."""
    exact = values.astype(np.float64)
    assert (np.abs(there_and_back(name, values) - exact) <= np.maximum(np.abs(exact) * relative, floor)).all()


@given(values=arrays.arrays(np.float32, st.integers(0, 300), elements=st.floats(-6e4, 6e4, width=32)))
def test_floating_point_formats_are_those_of_numpy_and_torch(values: Floats) -> None:
    """Little-endian float32 to the bit, IEEE half precision, bfloat16."""
    assert bytes(codec_named("none").encode(values)) == values.astype("<f4").tobytes()
    assert bytes(codec_named("fp16").encode(values))[8:] == values.astype("<f2").tobytes()
    brain = torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().tobytes()
    assert bytes(codec_named("bf16").encode(values))[8:] == brain


@pytest.mark.parametrize("name", [name for name in BLOCKWISE if not name.startswith("int2")])
@settings(max_examples=25)
@given(values=vectors())
def test_the_error_of_integers_is_half_a_step(name: str, values: Floats) -> None:
    """At most 0.505 / top of the block's largest magnitude, for every value."""
    top, block = (127 if name.startswith("int8") else 7), int(name.split("block")[1])
    back = slow_codecs.blocks(there_and_back(name, values), block)
    for exact, found in zip(slow_codecs.blocks(values, block), back, strict=True):
        assert np.abs(found - exact).max() <= max(0.505 / top * np.abs(exact).max(), FLOOR)


@pytest.mark.parametrize("name", [name for name in BLOCKWISE if name.startswith("int2")])
@settings(max_examples=25)
@given(values=vectors())
def test_two_bits_decode_to_the_means_of_two_groups(name: str, values: Floats) -> None:
    """As the reference finds them, but for rounding; no value moves further than its block's largest magnitude."""
    block = int(name.split("block")[1])
    back = slow_codecs.blocks(there_and_back(name, values), block)
    for exact, found in zip(slow_codecs.blocks(values, block), back, strict=True):
        size = np.abs(exact)
        peak = size.max()
        assert np.abs(found - exact).max() <= max((1 + 2**-8) * peak, FLOOR)
        if peak <= FLOOR or (np.abs(size - 1.25 * size.mean()) < 1e-5 * peak).any():
            continue  # zero, or on the border of the groups
        big = size > 1.25 * size.mean()
        level = np.where(big, size[big].mean() if big.any() else 0, size[~big].mean())
        np.testing.assert_allclose(np.abs(found), level, rtol=2**-8, atol=FLOOR)
        assert ((found - exact) ** 2).sum() < (exact**2).sum()


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("topk")])
@settings(max_examples=12)
@given(values=vectors())
def test_top_k_sends_the_largest(name: str, values: Floats) -> None:
    """The positions are the reference's, ties included; the values are those of the inner codec; the rest is zero."""
    codec = codec_named(name)
    assert isinstance(codec, TopK)
    density, inner = int(name[4:].split("-")[0]), name.split("-", 1)[1]
    where = slow_codecs.largest_positions(values, density)
    assert codec.choose(values).tolist() == where
    expected = np.zeros_like(values)
    expected[where] = there_and_back(inner, values[where])
    np.testing.assert_array_equal(there_and_back(name, values), expected)


@every
@pytest.mark.parametrize("value", [1e-45, 1e-38, -3.0, 6e4])
def test_constant_vectors(name: str, value: float) -> None:
    """All values equal, down to the smallest subnormal: what is sent is within one part in a hundred."""
    back = there_and_back(name, np.full(777, value, dtype=np.float32)).astype(np.float64)
    sent = back[: codec_named(name).count(777)] if name.startswith("topk") else back  # ties: the first ones
    assert (np.abs(sent - np.float64(np.float32(value))) <= max(abs(value) / 100, 2**-25)).all()


@blockwise
def test_subnormal_numbers_do_not_depend_on_the_processor_s_mode(name: str) -> None:
    """A machine that flushes them to zero decodes the same bits."""
    values = (normal(4096).reshape(64, 64) * np.logspace(-45, -30, 64, dtype=np.float64)[:, None]).astype(np.float32)
    data = codec_named(name).encode(values.reshape(-1))
    expected = codec_named(name).decode(data, 4096).copy()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        flushed = codec_named(name).decode(data, 4096).copy()
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(flushed.view(np.uint32), expected.view(np.uint32))
    assert expected.any()


# Garbage


@every
@settings(max_examples=20)
@given(data=st.data())
def test_garbage_is_refused_or_harmless(name: str, data: st.DataObject) -> None:
    """Any bytes of the right length either raise or decode to values within `largest`."""
    codec, n = codec_named(name), data.draw(st.integers(1, 400))
    payload = bytearray(codec.encode(normal(n)))
    for _ in range(data.draw(st.integers(1, 8))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        values = codec.decode(payload, n)
    except AveragingError:
        return
    assert values.shape == (n,)
    assert np.abs(values).max() <= codec.largest


@every
def test_a_wrong_length_is_refused_before_anything_is_allocated(name: str) -> None:
    """Neither short nor long bytes, nor four billion values that are not there."""
    codec = codec_named(name)
    tracemalloc.start()
    try:
        for size in (codec.encoded_size(300) - 1, codec.encoded_size(300) + 1, 0, 7):
            for n in (300, 2**32 - 1):
                with pytest.raises(AveragingError, match="expected"):
                    codec.decode(b"\0" * size, n)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize(("at", "value"), [(0, 2), (1, 99), (2, 7), (4, 3)])
def test_a_header_of_something_else_is_refused(name: str, at: int, value: int) -> None:
    """Another version, codec, parameter or number of values."""
    payload = bytearray(codec_named(name).encode(normal(5)))
    payload[at] = value
    with pytest.raises(AveragingError, match="expected"):
        codec_named(name).decode(payload, 5)


@blockwise
@pytest.mark.parametrize("code", [0x8000, 0xBF80, 0x7F80, 0x7FC0, 0x7F7F, 0x0001])
def test_an_impossible_scale_is_refused(name: str, code: int) -> None:
    """Negative, infinite, NaN, too large, subnormal."""
    payload = bytearray(codec_named(name).encode(normal(40)))
    payload[8:10] = struct.pack("<H", code)
    with pytest.raises(AveragingError, match="negative, not finite or out of range"):
        codec_named(name).decode(payload, 40)


def test_impossible_indices_are_refused() -> None:
    """The same one twice, descending, beyond the last value, or bits where none belong."""
    codec, values = codec_named("topk2-fp16"), np.array([4, 3, 2, 0.5, 0.2], dtype=np.float32)
    good = bytes(codec.encode(values))
    for indices in (0x002_001_001, 0x000_001_002, 0x005_001_000, 0x1002_001_000):
        with pytest.raises(AveragingError, match=r"out of order|unused bits"):
            codec.decode(good[:8] + indices.to_bytes(5, "little") + good[13:], 5)
    assert good[8:13] == 0x002_001_000.to_bytes(5, "little")


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_infinite_codes_are_refused(name: str) -> None:
    """A peer cannot bring what we would not send."""
    payload = bytearray(codec_named(name).encode(normal(3)))
    payload[8:10] = b"\xff\x7f"
    with pytest.raises(AveragingError, match="not finite"):
        codec_named(name).decode(payload, 3)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("none", 32), ("fp16", 16), ("bf16", 16), ("int8-block256", 8 + 1 / 16), ("int4-block64", 4.25),
     ("int2-block64", 2.5), ("topk32-fp16", 28 / 32), ("topk32-int2-block64", 14.5 / 32)],
)  # fmt: skip
def test_bits_per_parameter(name: str, bits: float) -> None:
    """The layout's own count, and at most two headers on top."""
    n = 1 << 18
    assert 0 <= bits_per_parameter(codec_named(name), n) - bits <= 8 * 16 / n
    with pytest.raises(ValueError, match="no bits"):
        bits_per_parameter(codec_named(name), 0)
