"""What was put into the average against the records: an honest miner never fails, and each kind of cheat does."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.averaging.codec import codec_named
from distributed_training.averaging.codecs.errors import error_bounds
from distributed_training.protocol import Record
from distributed_training.scoring.contribution import (
    HONEST,
    Gradients,
    Sent,
    alignment,
    check_weight,
    excess,
    judge_sum,
    judge_together,
    judge_work,
    least_alignment,
    points_along,
    relative_size,
)
from distributed_training.scoring.gradient import Finding
from tests.scoring.evidence import NANO

AUDIT = dataclasses.replace(NANO.audit, alignment=0.2, inflation=4.0)
COORDINATES = 12


def made(seed: int, count: int, size: int = 600, scale: float = 1.0) -> tuple[list[Record], np.ndarray, np.ndarray]:
    """Records of `count` micro-batches, what an engine makes of them in float32 [size], and where records look."""
    random = np.random.default_rng(seed)
    gradients = (random.standard_t(2, (count, size)) * scale).astype(np.float32)
    samples = random.integers(1, 40, count)
    shown = np.sort(random.choice(size, COORDINATES, replace=False))
    total = np.zeros(size, np.float32)
    for gradient, n in zip(gradients, samples, strict=True):
        total += np.float32(n) * gradient
    records = [
        Record(number=k, pages=(k,), samples=int(n), loss=1.0, gradient=tuple(map(float, g[shown])))
        for k, (g, n) in enumerate(zip(gradients, samples, strict=True))
    ]
    return records, total / np.float32(samples.sum()), shown


def sent(vector: np.ndarray, shown: np.ndarray, codec: str = "none") -> Sent:
    """What a reducer of the second half of the vector keeps, having decoded it."""
    half = vector[300:].astype(np.float32)
    decoded = codec_named(codec).decode(codec_named(codec).encode(half), half.size)
    (columns,) = np.nonzero(shown >= 300)
    where = shown[columns] - 300
    return Sent(columns, decoded[where], error_bounds(codec, decoded, where))


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([1.0, 1e-4, 1e4]))
@settings(max_examples=60, deadline=None)
def test_the_sum_of_an_honest_miner_is_within_rounding(seed: int, count: int, scale: float) -> None:
    """Whatever the batches, as float32 adds them up; nearer than a part in a thousand, too."""
    records, vector, shown = made(seed, count, scale=scale)
    worst, relative = excess(records, sent(vector, shown))
    assert worst <= 1
    assert relative < 1e-3


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8-block64", "int4-block64", "topk4-fp16", "topk2-int8-block64"])
def test_what_a_codec_loses_is_not_held_against_anybody(codec: str) -> None:
    """Each bounds its own error."""
    for seed in range(20):
        records, vector, shown = made(seed, 5)
        assert excess(records, sent(vector, shown, codec))[0] <= 1


@pytest.mark.parametrize("codec", ["none", "fp16", "int8-block64"])
@pytest.mark.parametrize("cheat", ["flipped", "doubled", "zeros", "noise", "of others", "one value"])
def test_what_is_not_the_sum_is_seen(codec: str, cheat: str) -> None:
    """Even if only one of the values that are looked at is off by as much as it is large."""
    records, vector, shown = made(1, 8)
    random = np.random.default_rng(7)
    single = vector.copy()
    single[shown[-1]] += 2 * np.abs(vector).max()
    changed = {
        "flipped": -vector,
        "doubled": 2 * vector,
        "zeros": 0 * vector,
        "noise": random.normal(0, vector.std(), vector.size).astype(np.float32),
        "of others": made(2, 8)[1],
        "one value": single,
    }[cheat]
    result = judge_sum(3, 4, records, float(sum(r.samples for r in records)), 1e9, sent(changed, shown, codec))
    assert (result.passed, result.finding, result.number) == (False, Finding.NOT_THE_SUM, None)


def test_the_weight_is_the_samples_of_the_records() -> None:
    """Or all that one may weigh; neither more nor less."""
    records, _, _ = made(0, 4)
    samples = float(sum(r.samples for r in records))
    assert check_weight(records, samples, 1e9)
    assert check_weight(records, 5.0, 5.0)
    assert not check_weight(records, samples + 1, 1e9)
    assert not check_weight(records, samples - 1, 1e9)
    assert judge_sum(3, 4, records, samples + 1, 1e9, None).finding is Finding.WRONG_WEIGHT
    assert judge_sum(3, 4, records, samples, 1e9, None).passed


def test_records_that_show_too_little_prove_nothing() -> None:
    """As few as they please, or as large as a float can be."""
    records, vector, shown = made(0, 3)
    short = [records[0].model_copy(update={"gradient": ()}), *records[1:]]
    huge = [records[0].model_copy(update={"gradient": (1.7e308,) * COORDINATES}), *records[1:]]
    opposite = records[1].model_copy(update={"gradient": (-1.7e308,) * COORDINATES})
    for lie in (short, huge, [huge[0], opposite, huge[0], opposite]):
        assert excess(lie, sent(vector, shown)) == (math.inf, math.inf)
        result = judge_sum(3, 4, lie, float(sum(r.samples for r in lie)), 1e9, sent(vector, shown))
        assert (result.passed, result.gradient_difference) == (False, None)


def work(seed: int, count: int, common: float, size: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Gradients [count, size] of very different scales, that share `common` times their noise; and their mean."""
    random = np.random.default_rng(seed)
    scale = np.exp(random.normal(0, 3, size))
    gradients = (random.normal(size=(count, size)) + common * random.normal(size=size)) * scale
    return gradients.astype(np.float32), gradients.mean(axis=0).astype(np.float32)


@pytest.mark.parametrize("count", [1, 4, 16, 40])
@pytest.mark.parametrize("common", [0.0, 0.3, 3.0])
def test_work_that_was_done_is_found_in_the_contribution(count: int, common: float) -> None:
    """Also where gradients have nothing in common: then by 2/pi asin(sqrt(w)), as the closed form says."""
    gradients, mean = work(count, count, common)
    for gradient in gradients[:4]:
        surplus, n = alignment(mean, gradient, 1 / count, zeros=False)
        assert n == gradient.size
        result = judge_work(1, 2, mean, gradient, 1 / count, 1.0, AUDIT, zeros=False)
        assert result is not None
        assert result.passed
        if common == 0.0:
            closed = 2 / math.pi * math.asin(math.sqrt(1 / count)) * math.sqrt(count)
            assert surplus == pytest.approx(closed, abs=4 / math.sqrt(n / count))


@pytest.mark.parametrize(
    ("cheat", "finding"),
    [
        ("garbage", Finding.NOT_ITS_WORK),
        ("flipped", Finding.NOT_ITS_WORK),
        ("zeros", Finding.NOT_ITS_WORK),
        ("almost nothing", Finding.NOT_ITS_WORK),
        ("a few true values", Finding.NOT_ITS_WORK),
        ("inflated", Finding.INFLATED),
    ],
)
def test_garbage_where_nobody_is_said_to_look_is_seen(cheat: str, finding: Finding) -> None:
    """The same scale by coordinate as honest work, and right wherever records look: only its signs are not."""
    gradients, mean = work(3, 16, 0.3)
    random = np.random.default_rng(1)
    sparse = np.where(random.random(mean.size) < 0.02, mean, 0)
    garbage = np.abs(mean) * random.choice([-1, 1], mean.size)
    vector = {
        "garbage": garbage,
        "flipped": -mean,
        "zeros": 0 * mean,
        "almost nothing": 1e-3 * mean,
        "a few true values": sparse,
        "inflated": 30 * mean,
    }[cheat].astype(np.float32)
    result = judge_work(1, 2, vector, gradients[0], 1 / 16, 1.0, AUDIT, zeros=False)
    assert result is not None
    assert (result.passed, result.finding) == (False, finding)


def test_no_mean_is_larger_than_all_records_together_say() -> None:
    """However small one of them is; then nothing but what was sent besides can make it larger."""
    gradients, _ = work(3, 16, 0.0)
    gradients[0] *= 0.001
    mean = gradients.mean(axis=0)
    everything = Gradients([(4, gradient) for gradient in gradients])
    np.testing.assert_allclose(everything.mean, mean, rtol=1e-4, atol=1e-6 * float(np.abs(mean).max()))
    assert np.linalg.norm(mean) < everything.usual
    alone = judge_work(1, 2, mean, gradients[0], 1 / 16, 1.0, AUDIT, zeros=False)
    whole = judge_together(1, 2, mean, everything, 1.0, AUDIT, zeros=False)
    much = 1.1 * AUDIT.inflation * everything.usual / float(np.linalg.norm(mean))
    larger = judge_together(1, 2, np.float32(much) * mean, everything, 1.0, AUDIT, zeros=False)
    assert alone is not None
    assert whole is not None
    assert larger is not None
    assert (alone.finding, whole.finding, larger.finding) == (Finding.INFLATED, Finding.AGREES, Finding.INFLATED)
    assert larger.inflation == pytest.approx(1.1 * AUDIT.inflation)
    nothing = Gradients([(4, 0 * mean)])
    assert judge_together(1, 2, 0 * mean, nothing, 1.0, AUDIT, zeros=False) is None


def test_gradients_count_by_samples() -> None:
    """A record of three samples has the say of three."""
    one, other = np.array([4.0, 0.0], np.float32), np.array([0.0, 8.0], np.float32)
    both = Gradients([(3, one), (1, other)])
    assert (both.samples, both.mean.tolist(), both.usual) == (4, [3.0, 2.0], 5.0)


def test_too_few_coordinates_decide_nothing() -> None:
    """What chance alone can do convicts nobody."""
    gradients, mean = work(5, 16, 0.0, size=200)
    assert least_alignment(200, 1 / 16) > HONEST
    assert judge_work(1, 2, mean, gradients[0], 1 / 16, 1.0, AUDIT, zeros=False) is None
    assert judge_work(1, 2, mean, 0 * gradients[0], 1 / 16, 1.0, AUDIT, zeros=False) is None


def test_more_is_wanted_where_chance_could_reach_the_limit() -> None:
    """However lenient the run is, garbage does not pass, and work still does."""
    gradients, mean = work(5, 16, 0.0, size=4000)
    lenient = dataclasses.replace(AUDIT, alignment=0.001)
    assert 0.2 < least_alignment(4000, 1 / 16) < 0.3
    random = np.random.default_rng(1)
    for _ in range(200):
        garbage = (np.abs(mean) * random.choice([-1, 1], mean.size)).astype(np.float32)
        result = judge_work(1, 2, garbage, gradients[0], 1 / 16, 1.0, lenient, zeros=False)
        assert result is not None
        assert not result.passed
    result = judge_work(1, 2, mean, gradients[0], 1 / 16, 1.0, lenient, zeros=False)
    assert result is not None
    assert result.passed


def test_chance_reaches_the_limit_once_in_ten_thousand_times_at_most() -> None:
    """Where the decision is taken at all: four deviations, counted."""
    random = np.random.default_rng(0)
    n, share = 6400, 1 / 16
    assert least_alignment(n, share) <= AUDIT.alignment
    signs = random.integers(0, 2, (5000, n), dtype=np.int8) * 2 - 1
    surplus = signs.mean(axis=1) / math.sqrt(share)
    assert np.abs(surplus).max() < AUDIT.alignment * 1.05
    assert np.std(surplus) == pytest.approx(AUDIT.alignment / 4, rel=0.05)


def test_a_page_that_the_model_knows_by_heart_convicts_nobody() -> None:
    """Of its gradient next to nothing is left in the sum, and what is left may point anywhere."""
    gradients, mean = work(6, 16, 0.3)
    small = 1e-3 * np.abs(gradients[0]) * np.sign(-mean)
    records = [
        Record(number=k, pages=(k,), samples=4, loss=1.0, gradient=tuple(map(float, g[:64])))
        for k, g in enumerate([small, *gradients[1:]])
    ]
    relative = relative_size(records[0], records)
    assert relative < 0.01
    assert judge_work(1, 2, mean, small, 1 / 16, relative, AUDIT, zeros=False) is None


def test_a_page_that_is_all_new_convicts_nobody() -> None:
    """Its gradient outweighs all the others; the sum is as good as that one alone."""
    gradients, _ = work(6, 32, 0.0)
    gradients[0] *= 300
    mean = gradients.mean(axis=0)
    records = [
        Record(number=k, pages=(k,), samples=4, loss=1.0, gradient=tuple(map(float, g[:64])))
        for k, g in enumerate(gradients)
    ]
    relative = relative_size(records[0], records)
    assert relative > 20
    result = judge_work(1, 2, mean, gradients[0], 1 / 32, relative, AUDIT, zeros=False)
    assert result is not None
    assert result.passed


def test_sizes_are_relative_to_the_mean_by_samples() -> None:
    """By hand; of nothing but zeros none is usual."""
    large = Record(number=0, pages=(0,), samples=1, loss=1.0, gradient=(3.0, 4.0))
    small = Record(number=1, pages=(1,), samples=4, loss=1.0, gradient=(0.0, 1.0))
    assert relative_size(large, [large, small]) == pytest.approx(5 / (9 / 5))
    assert relative_size(small, [large, small]) == pytest.approx(1 / (9 / 5))
    nothing = small.model_copy(update={"gradient": (0.0, 0.0)})
    assert relative_size(nothing, [nothing]) == 0.0


def loud(seed: int, n: int = 4096) -> np.ndarray:
    """A gradient whose energy lies in a few coordinates, which others do not share."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(n) * np.exp(0.7 * random.standard_normal(n))).astype(np.float32)


def test_a_sum_of_loud_gradients_points_along_each() -> None:
    """The signs of quiet coordinates are those of the others there: the surplus is small, the direction is right."""
    records = [loud(seed) for seed in range(7)]
    total = np.mean(records, axis=0).astype(np.float32)
    for record in records:
        assert points_along(total, record, 1 / 7, 0.22)
        assert not points_along(-total, record, 1 / 7, 0.22)
        assert not points_along(np.zeros_like(total), record, 1 / 7, 0.22)


def test_what_has_nothing_to_do_with_it_points_along_by_no_chance() -> None:
    """Noise, other gradients, the same with random signs: of four thousand none, though few coordinates decide."""
    random, gradient = np.random.default_rng(0), loud(0)
    for seed in range(1, 1001):
        signs, order = random.choice([-1, 1], 4096), random.permutation(4096)
        for other in (random.standard_normal(4096), loud(seed), gradient * signs, gradient[order]):
            assert not points_along(np.asarray(other, np.float32), gradient, 1 / 7, 0.22)
