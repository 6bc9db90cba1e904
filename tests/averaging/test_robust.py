"""Rules of reduction: the mean to the bit, clipping against the median norm, and what becomes of an attack."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.averaging.codec import Floats
from distributed_training.averaging.outcome import Restraint
from distributed_training.averaging.robust import CenteredClip, Clip, Mean, TrimmedMean, norm, rule_named, weighted_mean
from template.errors import AveragingError
from tests.averaging.groups import contributions, make_plan, memory_group, weights
from tests.averaging.test_reducer import make


def parts_of(n: int, size: int, seed: int = 0) -> list[Floats]:
    return list(np.random.default_rng(seed).standard_normal((n, size)).astype(np.float32))


def reduce(rule: str, parts: list[Floats], by: list[float]) -> tuple[Floats, tuple[float, ...]]:
    out = np.empty(parts[0].size, dtype=np.float32)
    return out, rule_named(rule).reduce(parts, by, out)


NAMES = {
    "mean": Mean,
    "clip": Clip,
    "clip2.5": Clip,
    "clip10": Clip,
    "trim": TrimmedMean,
    "trim0.1": TrimmedMean,
    "centered": CenteredClip,
    "centered2": CenteredClip,
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_rules_are_found_by_their_name(name: str, kind: type) -> None:
    """And keep it."""
    assert isinstance(rule_named(name), kind)
    assert rule_named(name).name == name


REFUSED = ["", "median", "clip0", "clip0.9", "clip-1", "clipnan", "clip1e5", "Mean", "clip3 ", "mean1"]


@pytest.mark.parametrize("name", [*REFUSED, "trim0", "trim0.5", "trim1", "centered0.9", "centered-2"])
def test_other_names_are_refused(name: str) -> None:
    """With those that there are; a limit below the median would clip honest members for nothing."""
    with pytest.raises(AveragingError, match=r"known: mean, clip"):
        rule_named(name)


@given(
    scales=st.lists(st.floats(0, 50), min_size=1, max_size=7),
    limit=st.floats(1, 5).map(lambda x: round(x, 3)),
    size=st.integers(1, 200),
)
def test_clipping_is_numpys(scales: list[float], limit: float, size: int) -> None:
    """Each part scaled to at most the limit times the (lower) median of the norms that are not zero, then averaged."""
    parts = [part * np.float32(scale) for part, scale in zip(parts_of(len(scales), size), scales, strict=True)]
    by = [1.0 + i for i in range(len(parts))]
    out, kept = reduce(f"clip{limit}", parts, by)
    norms = np.array([np.linalg.norm(part.astype(np.float64)) for part in parts])
    voices = norms[norms > 0]
    bound = limit * np.percentile(voices, 50, method="lower") if voices.size else 0.0
    wanted = np.array([min(1.0, bound / length) if length else 1.0 for length in norms])
    np.testing.assert_allclose(kept, wanted, rtol=1e-6)
    exact = np.average(np.array(parts, dtype=np.float64) * wanted[:, None], axis=0, weights=by)
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-5 * max(1.0, norms.max()))


def test_where_nobody_is_too_long_the_bits_are_the_mean_s() -> None:
    """An honest round pays for clipping in time only."""
    parts, by = parts_of(5, 70_000), [3.0, 1.0, 2.0, 0.7, 0.1]
    out, kept = reduce("clip", parts, by)
    mean = np.empty_like(out)
    weighted_mean(parts, by, mean)
    assert out.tobytes() == mean.tobytes()
    assert kept == (1.0,) * 5


def test_clipping_hardly_changes_an_honest_average() -> None:
    """Batches of other sizes make gradients of other lengths: the least of them is clipped, and weighs little."""
    random, size = np.random.default_rng(1), 100_000
    signal, batches = random.standard_normal(size) * 0.2, [64.0, 64.0, 32.0, 16.0, 2.0]
    parts = [(signal + 4 * random.standard_normal(size) / b**0.5).astype(np.float32) for b in batches]
    clipped, kept = reduce("clip", parts, batches)
    mean, _ = reduce("mean", parts, batches)
    assert kept[:4] == (1.0,) * 4
    assert np.linalg.norm(clipped - mean) < 0.05 * np.linalg.norm(mean)


@pytest.mark.parametrize("huge", [1e3, 1e20, 1e36])
def test_a_huge_part_counts_no_more_than_the_limit(huge: float) -> None:
    """The mean is moved by at most what an honest member could do three times over; nothing overflows."""
    honest = parts_of(4, 1000)
    out, kept = reduce("clip", [*honest, np.float32(huge) * honest[0]], [1.0] * 5)
    without, _ = reduce("mean", honest, [1.0] * 4)
    assert norm(out - without * np.float32(0.8)) <= 3.01 / 5 * max(map(norm, honest))
    assert kept[4] == pytest.approx(3 * np.median([norm(part) for part in honest]) / norm(honest[0]) / huge, rel=0.1)


def test_one_of_two_cannot_raise_the_limit_for_itself() -> None:
    """The lower norm is the median of two."""
    (one,) = parts_of(1, 100)
    _, kept = reduce("clip", [one, 30 * one], [1.0, 1.0])
    assert kept == pytest.approx((1.0, 0.1))


def test_what_only_some_have_seen_is_not_clipped_to_nothing() -> None:
    """Rows of rare words are zero at most members."""
    (seen,), nothing = parts_of(1, 100), np.zeros(100, dtype=np.float32)
    out, kept = reduce("clip", [nothing, nothing, seen, nothing], [1.0] * 4)
    np.testing.assert_array_equal(out, seen / 4)
    assert kept == (1.0,) * 4
    assert reduce("clip", [nothing, nothing], [1.0] * 2)[1] == (1.0, 1.0)


@given(
    scales=st.lists(st.floats(-50, 50), min_size=1, max_size=9),
    share=st.floats(0.01, 0.49).map(lambda x: round(x, 3)),
    size=st.integers(1, 100),
)
def test_trimming_is_a_loop_over_coordinates(scales: list[float], share: float, size: int) -> None:
    """Sorted one coordinate at a time in plain Python, the ends cut off, the rest averaged by weight."""
    parts = [part * np.float32(scale) for part, scale in zip(parts_of(len(scales), size), scales, strict=True)]
    by = [1.0 + i for i in range(len(parts))]
    out, kept = reduce(f"trim{share}", parts, by)
    n = len(parts)
    ends = min(-int(-share * n // 1), (n - 1) // 2)
    counts = [0] * n
    for at in range(size):
        rest = sorted(range(n), key=lambda i: (float(parts[i][at]), i))[ends : n - ends]
        mean = sum(by[i] * float(parts[i][at]) for i in rest) / sum(by[i] for i in rest)
        assert out[at] == pytest.approx(mean, rel=1e-5, abs=1e-6)
        for i in rest:
            counts[i] += 1
    assert kept == pytest.approx([count / size for count in counts])


@given(
    scales=st.lists(st.floats(-50, 50), min_size=1, max_size=9),
    limit=st.floats(1, 5).map(lambda x: round(x, 3)),
    size=st.integers(1, 100),
)
def test_centered_clipping_is_the_paper_s(scales: list[float], limit: float, size: int) -> None:
    """v += mean((x - v) min(1, tau / |x - v|)), three times from the median, with all parts as rows of one matrix."""
    parts = [part * np.float32(scale) for part, scale in zip(parts_of(len(scales), size), scales, strict=True)]
    by = np.array([1.0 + i for i in range(len(parts))])
    out, kept = reduce(f"centered{limit}", parts, list(by))
    rows = np.array(parts, dtype=np.float64)
    at = np.median(rows, axis=0)
    for _ in range(3):
        far = np.linalg.norm(rows - at, axis=1)
        voices = far[far > 0]
        tau = limit * np.percentile(voices, 50, method="lower") if voices.size else 0.0
        wanted = np.minimum(1.0, tau / np.where(far > 0, far, 1.0))
        wanted[far == 0] = 1.0
        at = at + np.average((rows - at) * wanted[:, None], axis=0, weights=by)
    np.testing.assert_allclose(kept, wanted, rtol=1e-5)
    np.testing.assert_allclose(out, at, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ["clip", "trim0.3", "centered"])
@pytest.mark.parametrize("huge", [-1.0, 30.0, 1e36, -1e36])
def test_two_liars_of_ten_move_the_average_little(rule: str, huge: float) -> None:
    """Sign flip, inflation, and the end of the range: the average stays near that of the honest, and is finite."""
    random, size = np.random.default_rng(3), 5000
    signal = random.standard_normal(size)
    honest = [(signal + random.standard_normal(size)).astype(np.float32) for _ in range(8)]
    liars = [np.float32(huge) * signal.astype(np.float32)] * 2
    out, _ = reduce(rule, [*honest, *liars], [1.0] * 10)
    mean, _ = reduce("mean", honest, [1.0] * 8)
    assert np.isfinite(out).all()
    assert norm(out - mean) < 1.1 * norm(mean)
    cosine = float(np.dot(out, mean)) / norm(out) / norm(mean)
    assert cosine > (0.15 if rule == "clip" else 0.95)  # two at -3 times the median leave .2 of eight: its sign


@pytest.mark.parametrize("rule", ["trim", "centered"])
def test_a_spike_at_coordinates_of_its_own_is_held(rule: str) -> None:
    """One part that is honest but for one huge value: no more than the others' values, or their distance, remains."""
    honest = parts_of(6, 2000)
    spike = honest[0].copy()
    spike[7] = 1e4
    out, _ = reduce(rule, [*honest[1:], spike], [1.0] * 6)
    assert abs(out[7]) < (5 if rule == "trim" else 30)  # the mean has 1e4 / 6


@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_norms_neither_overflow_nor_vanish(values: list[float]) -> None:
    """Squares of float32 fit into float64."""
    part = np.array(values, dtype=np.float32)
    assert norm(part) == pytest.approx(np.linalg.norm(part.astype(np.longdouble)), rel=1e-12)


def test_the_reducer_tells_whom_it_restrained() -> None:
    """In how many of its chunks, and how much of it counted there."""
    out = np.empty(30, dtype=np.float32)
    reducer = make(out, 10, {1: 1.0, 2: 1.0, 5: 1.0}, rule="clip2")
    for index, scale in enumerate((1.0, 8.0, 4.0)):
        for uid in (1, 2, 5):
            reducer.add(uid, index, np.full(10, scale if uid == 2 else 1.0, dtype=np.float32))
    assert reducer.restraints() == (Restraint(uid=2, chunks=2, of=3, kept=pytest.approx((2 / 8 + 2 / 4) / 2)),)
    np.testing.assert_allclose(out[10:], 4 / 3, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["trim", "centered"])
async def test_other_rules_leave_everybody_with_the_same_bits(reduction: str) -> None:
    """Each reducer applies them to its own share."""
    async with memory_group(4) as (group, _):
        plan = make_plan(group.members(), 4000, chunk=300, reduction=reduction)
        values = contributions(plan)
        results = await group.run(plan, values)
    averages = [result.average for result in results.values()]
    assert len({average.tobytes() for average in averages if average is not None}) == 1
    parts = [v for _, v in sorted(values.items()) if v is not None]
    whole, _ = reduce(reduction, parts, [weights(plan)[uid] for uid in sorted(values)])
    assert averages[0] is not None
    if reduction == "trim":  # which looks at each coordinate alone
        np.testing.assert_array_equal(averages[0], whole)


@pytest.mark.parametrize("codec", ["none", "int8-block256"])
async def test_in_a_round_everybody_holds_the_clipped_average(codec: str) -> None:
    """Every reducer clips in its own share, names the same member, and all end with the same bits."""
    async with memory_group(4) as (group, _):
        plan = make_plan(group.members(auxiliary=[3]), 4000, codec=codec, chunk=300, reduction="clip")
        values = contributions(plan)
        assert values[1] is not None
        honest, values[1] = values[1], values[1] * np.float32(100)
        results = await group.run(plan, values)
        averages = [result.average for result in results.values()]
    assert len({average.tobytes() for average in averages if average is not None}) == 1
    assert [[r.uid for r in result.outcome.restrained] for result in results.values()] == [[1]] * 4
    assert averages[0] is not None
    by = weights(plan)
    stacked = np.stack([v for uid, v in values.items() if v is not None and uid != 1])
    rest = np.average(stacked, axis=0, weights=[by[0], by[2]]) * (by[0] + by[2]) / (by[0] + by[1] + by[2])
    assert norm(averages[0] - rest.astype(np.float32)) < 4 * norm(honest) * by[1] / (by[0] + by[1] + by[2])
