"""Names of codecs: one spelling for each, and a remedy for every wrong one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.averaging.codecs import names
from distributed_training.averaging.codecs.registry import codec_named, pair_named
from template.errors import AveragingError

dense = st.one_of(
    st.sampled_from(names.PLAIN),
    st.builds("int{}-block{}".format, st.sampled_from(names.BITS), st.sampled_from(names.BLOCKS)),
)
sparse = st.builds("topk{}-{}".format, st.sampled_from(names.DENSITIES), dense.filter(lambda name: name != "none"))


@given(name=st.one_of(dense, sparse))
def test_every_name_of_the_grammar_has_a_codec_of_that_name(name: str) -> None:
    """And the codec says so itself."""
    assert codec_named(name).name == name


@given(parts=st.one_of(dense, sparse), average=dense)
def test_pairs_carry_both(parts: str, average: str) -> None:
    """Two codecs, and the smaller of their limits."""
    name = parts if parts == average else f"{parts}+{average}"
    pair = pair_named(name)
    assert (pair.parts.name, pair.average.name) == (parts, average)
    assert pair.largest == min(pair.parts.largest, pair.average.largest)
    assert len(name) <= 64  # the limit of the AllReduce message


@pytest.mark.parametrize(
    "name",
    ["zstd", "", "NONE", "fp16 ", "int4", "int4-block", "int4-block064", "int4-block48", "int4-block8192", "fp16\n",
     "int3-block64", "int16-block64", "int\u0664-block64", "topk32", "topk32-none", "topk3-fp16", "topk2048-fp16",
     "topk32-topk4-fp16", "topk-1/32-fp16"],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    """The message lists what there is."""
    for find in (codec_named, pair_named):
        with pytest.raises(AveragingError, match=r"unknown codec .*known: none, fp16, bf16, int8-block<size>"):
            find(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("topk32-fp16", r"does not say how averages travel.*'topk32-fp16\+int8-block256'"),
        ("fp16+fp16", "twice; write 'fp16'"),
        ("fp16+", "unknown codec ''"),
        ("+fp16", "unknown codec ''"),
        ("none+fp16+bf16", r"unknown codec 'fp16\+bf16'"),
    ],
)
def test_contradictions_are_refused_with_the_remedy(name: str, message: str) -> None:
    """A pair says exactly what travels which way."""
    with pytest.raises(AveragingError, match=message):
        pair_named(name)


def test_names_are_checked_without_arithmetic() -> None:
    """A run spec can be read without numpy."""
    code = "import sys; import distributed_training.run; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
