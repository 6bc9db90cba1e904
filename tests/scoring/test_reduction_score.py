"""What separates an honest reducer's average from a false one: pure arithmetic, no rounds."""

from __future__ import annotations

import numpy as np
import pytest

from distributed_training.averaging.codec import Floats, codec_named
from distributed_training.averaging.robust import rule_named
from distributed_training.protocol import Record
from distributed_training.scoring.contribution import Put, distances, unexplained
from distributed_training.scoring.gradient import Finding
from distributed_training.scoring.reduction import compare, lied

WEIGHTS = [1.0, 64.0, 7.5, 30.0, 30.0]
SIZE = 4096
RULES = ("mean", "clip", "trim", "centered")
CODECS = ("none", "fp16", "bf16", "int8-block64", "int4-block64", "int2-block64")


def parts_of(seed: int = 0) -> list[Floats]:
    """One of them loud, as a rule that clips would restrain it."""
    random = np.random.default_rng(seed)
    return [(scale * random.standard_normal(SIZE)).astype(np.float32) for scale in (1, 0.5, 2, 1, 20)]


def averaged(rule: str, codec: str, parts: list[Floats]) -> Floats:
    """As a reducer makes it and everybody decodes it."""
    out = np.empty(SIZE, np.float32)
    rule_named(rule).reduce(parts, WEIGHTS, out)
    return codec_named(codec).decode(codec_named(codec).encode(out), SIZE).copy()


def judged(average: Floats, rule: str, codec: str, parts: list[Floats]) -> bool:
    return compare(average, parts, WEIGHTS, rule_named(rule), codec_named(codec)).agrees


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("codec", CODECS)
def test_an_honest_average_agrees_and_another_does_not(rule: str, codec: str) -> None:
    """Scaled, flipped, of other parts, or of one part left out: all are seen, by every rule and codec."""
    parts, others = parts_of(), parts_of(1)
    average = averaged(rule, codec, parts)
    assert judged(average, rule, codec, parts)
    zero = [*parts[:3], np.zeros(SIZE, np.float32), parts[4]]
    for false in (average * np.float32(-3), average * np.float32(1.05), averaged(rule, codec, others)):
        assert not judged(false, rule, codec, parts)
    assert not judged(averaged(rule, codec, zero), rule, codec, parts)


def test_the_mean_is_held_against_numpy() -> None:
    """In float64, an average that was not made by our own code."""
    parts = parts_of()
    exact = np.average(np.stack(parts).astype(np.float64), axis=0, weights=WEIGHTS).astype(np.float32)
    assert judged(exact, "mean", "none", parts)


@pytest.mark.parametrize("place", [0, 77, SIZE - 1])
def test_without_a_codec_one_value_is_enough(place: int) -> None:
    """Though all others are right."""
    parts = parts_of()
    average = averaged("clip", "none", parts)
    average[place] += np.float32(1e-2)
    assert not judged(average, "clip", "none", parts)


@pytest.mark.parametrize("codec", ["int8-block64", "int4-block64", "int2-block64"])
def test_a_value_that_rounds_the_other_way_is_no_lie(codec: str) -> None:
    """Two machines disagree by an ulp before the codec, and so by a step of a few values after it."""
    parts = parts_of()
    out = np.empty(SIZE, np.float32)
    rule_named("clip").reduce(parts, WEIGHTS, out)
    wobbled = out * (1 + 3e-7 * np.random.default_rng(0).standard_normal(SIZE)).astype(np.float32)
    average = codec_named(codec).decode(codec_named(codec).encode(wobbled), SIZE).copy()
    assert judged(average, "clip", codec, parts)


def test_where_nothing_was_sent_nothing_comes_out() -> None:
    """Zeros agree with zeros alone; the difference stays a number."""
    zeros = [np.zeros(SIZE, np.float32)] * len(WEIGHTS)
    assert judged(zeros[0], "clip", "none", zeros)
    false = compare(np.ones(SIZE, np.float32), zeros, WEIGHTS, rule_named("clip"), codec_named("none"))
    assert not false.agrees
    result = lied(3, 7, float("inf"))
    assert (result.finding, result.passed, result.gradient_difference) == (Finding.NOT_REDUCED, False, None)
    assert lied(3, 7, 4.0).gradient_difference == 4.0


def test_the_farthest_from_the_records_is_where_it_was_changed() -> None:
    """In magnitudes of what was put in, so that a loud coordinate is no likelier than a quiet one."""
    shown = [tuple(np.random.default_rng(n).normal(size=6).tolist()) for n in range(4)]
    records = [Record(number=n, pages=(n,), samples=8, loss=1.0, gradient=g) for n, g in enumerate(shown)]
    put = [Put(records[:2], 16.0), Put(records[2:], 16.0)]
    average = np.mean([record.gradient for record in records], axis=0).astype(np.float32)
    assert distances(average, put).max() < 1e-6
    changed = average.copy()
    changed[4] *= -3
    assert int(distances(changed, put).argmax()) == 4
    assert unexplained(changed, put).tolist() == [4]
    assert not distances(average[:-1], put).any()
