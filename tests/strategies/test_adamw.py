"""AdamW and the norm: against torch, against one-element IEEE arithmetic, and independent of how the vector is cut."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from distributed_training.strategies.adamw import (
    BLOCK,
    Buffers,
    Step,
    adamw,
    global_norm,
    power,
    require_gradual_underflow,
)
from template.errors import StateError

STEP = Step(scale=0.7, learning_rate=3e-3, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, number=3)


def normal(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def moved(old: Buffers, gradient: np.ndarray, step: Step = STEP) -> Buffers:
    new = Buffers(*(np.full(len(gradient), np.nan, dtype=np.float32) for _ in range(3)))
    adamw(old, gradient, step, new)
    return new


def start(size: int) -> Buffers:
    return Buffers(normal(size, 1), normal(size, 2) * np.float32(0.1), normal(size, 3) ** 2)


def test_many_steps_follow_torch() -> None:
    """Ten updates from zero moments agree with torch.optim.AdamW to float32 rounding."""
    size = BLOCK + 77
    parameter = torch.nn.Parameter(torch.from_numpy(normal(size, 1)).double())
    reference = torch.optim.AdamW([parameter], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    ours = Buffers(normal(size, 1), np.zeros(size, np.float32), np.zeros(size, np.float32))
    for number in range(1, 11):
        gradient = normal(size, 10 + number)
        parameter.grad = torch.from_numpy(gradient).double()
        reference.step()
        ours = moved(ours, gradient, dataclasses.replace(STEP, scale=1.0, number=number))
    expected = parameter.detach().numpy()
    assert np.abs(ours.params - expected).max() < 3e-6  # ten roundings of numbers up to 4
    assert np.linalg.norm(ours.params - expected) < 2e-7 * np.linalg.norm(expected)
    np.testing.assert_allclose(ours.second, reference.state[parameter]["exp_avg_sq"].numpy(), rtol=2e-6)


def test_bits_are_those_of_single_ieee_operations() -> None:
    """Every element equals the formula evaluated with scalars, each operation rounded to float32 on its own."""
    old, gradient = start(50), normal(50, 4)
    new = moved(old, gradient)
    f = np.float32
    bias1, bias2 = 1 - 0.9 * 0.9 * 0.9, 1 - 0.95 * 0.95 * 0.95
    for i in range(50):
        g = gradient[i] * f(0.7)
        first = old.first[i] * f(0.9) + g * f(1 - 0.9)
        second = old.second[i] * f(0.95) + (g * g) * f(1 - 0.95)
        step = (first / (np.sqrt(second) / f(math.sqrt(bias2)) + f(1e-8))) * f(3e-3 / bias1)
        params = old.params[i] * f(1 - 3e-3 * 0.1) - step
        assert (new.first[i], new.second[i], new.params[i]) == (first, second, params)


def test_how_the_vector_is_cut_does_not_matter() -> None:
    """Unaligned pieces of any length give the bits of the whole."""
    size = 2 * BLOCK + 13
    old, gradient = start(size), normal(size, 4)
    whole = moved(old, gradient)
    for where in (slice(0, 1), slice(1, 4), slice(7, BLOCK + 3), slice(BLOCK + 3, size)):
        part = moved(old.part(where), gradient[where])
        assert part.params.tobytes() == whole.params[where].tobytes()
        assert part.second.tobytes() == whole.second[where].tobytes()


def test_old_values_are_only_read() -> None:
    """The update is pure: read-only inputs are enough."""
    old, gradient = start(10), normal(10, 4)
    for array in (old.params, old.first, old.second, gradient):
        array.flags.writeable = False
    assert np.isfinite(moved(old, gradient).params).all()


@pytest.mark.parametrize("size", [0, 1, 3, BLOCK, 3 * BLOCK + 5])
def test_norm_agrees_with_exact_summation(size: int) -> None:
    """Within one rounding of the correctly rounded sum of exact squares."""
    vector = normal(size, 5) * np.float32(1e18)
    exact = math.sqrt(math.fsum(float(x) ** 2 for x in vector.tolist()))
    assert global_norm(vector) == pytest.approx(exact, rel=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_norm_shows_a_single_bad_element(bad: float) -> None:
    """One NaN or infinity anywhere makes it non-finite; the largest finite numbers do not."""
    vector = np.full(BLOCK + 9, np.finfo(np.float32).max, dtype=np.float32)
    assert math.isfinite(global_norm(vector))
    vector[BLOCK + 3] = bad
    assert not math.isfinite(global_norm(vector))


def test_power() -> None:
    """Powers by squaring agree with pow; the relative error grows with the exponent, as far as it matters."""
    for exponent in (0, 1, 2, 3, 7, 100, 12345):
        assert power(0.95, exponent) == pytest.approx(0.95**exponent, rel=1e-15 + 2e-16 * exponent)


def test_flushing_subnormals_is_refused() -> None:
    """A process in that mode would compute other bits than its peers."""
    require_gradual_underflow()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        with pytest.raises(StateError, match="subnormal"):
            require_gradual_underflow()
    finally:
        torch.set_flush_denormal(False)
