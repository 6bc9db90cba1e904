"""Codecs: the same contract for each, and numpy's own numbers as reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distributed_training.averaging.codec import CODECS, codec_named
from template.errors import AveragingError

vectors = arrays.arrays(np.float32, st.integers(0, 300), elements=st.floats(-6e4, 6e4, width=32))


@pytest.mark.parametrize("name", sorted(CODECS))
@given(values=vectors)
def test_decoding_is_close_and_of_the_announced_size(name: str, values: np.ndarray) -> None:
    """What comes back is float32 of the same length, within half precision; the bytes are as many as announced."""
    codec = codec_named(name)
    data = bytes(codec.encode(values))
    back = codec.decode(data, values.size)
    assert len(data) == codec.encoded_size(values.size)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, values, rtol=2**-10, atol=2**-24)


@given(values=vectors)
def test_the_codecs_are_numpys_formats(values: np.ndarray) -> None:
    """`none` is little-endian float32 to the bit, `fp16` IEEE half precision."""
    assert bytes(codec_named("none").encode(values)) == values.astype("<f4").tobytes()
    assert bytes(codec_named("fp16").encode(values)) == values.astype("<f2").tobytes()


@pytest.mark.parametrize("name", sorted(CODECS))
def test_wrong_length_is_refused(name: str) -> None:
    """One byte too many or too few is no chunk."""
    codec = codec_named(name)
    for length in (codec.encoded_size(3) - 1, codec.encoded_size(3) + 1):
        with pytest.raises(AveragingError, match="expected"):
            codec.decode(b"\0" * length, 3)


def test_what_does_not_fit_is_refused() -> None:
    """Half precision ends at 65504; nothing becomes infinite in silence."""
    with pytest.raises(AveragingError, match="65504"):
        codec_named("fp16").encode(np.array([7e4], dtype=np.float32))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """The message names the remedy."""
    with pytest.raises(AveragingError, match="fp16, none"):
        codec_named("zstd")
