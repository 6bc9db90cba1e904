"""DeMo against SciPy's DCT, block by block in NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from distributed_training.model.layout import Tensor
from distributed_training.strategies.demo import DeMo, backward, forward
from distributed_training.strategies.inner import AdamW
from template.errors import ConfigurationError
from tests.strategies.lossy import bfloat16, largest
from tests.strategies.problem import LAYOUT, SPEC, P, close, gradient, initial, layout_of, play, rate

INNER = AdamW(SPEC)
MATRICES = [t for t in LAYOUT.tensors if len(t.shape) == 2]
VECTORS = [t for t in LAYOUT.tensors if len(t.shape) == 1]


def blocks_of(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Blocks of at most 64 a side, row by row; a side's largest divisor up to 64."""
    sides = [max(d for d in range(1, 65) if n % d == 0) for n in shape]
    starts = [range(0, n, side) for n, side in zip(shape, sides, strict=True)]
    if len(shape) == 1:
        return [(slice(i, i + sides[0]),) for i in starts[0]]
    return [(slice(i, i + sides[0]), slice(j, j + sides[1])) for i in starts[0] for j in starts[1]]


def transformed(vector: np.ndarray, tensors: Sequence[Tensor]) -> np.ndarray:
    parts = [vector[t.slice].reshape(t.shape)[b] for t in tensors for b in blocks_of(t.shape)]
    return np.concatenate([dctn(part, norm="ortho").reshape(-1) for part in parts])


def restored(components: np.ndarray, tensors: Sequence[Tensor]) -> np.ndarray:
    vector, start = np.zeros(P), 0
    for tensor in tensors:
        values = np.zeros(tensor.shape)
        for block in blocks_of(tensor.shape):
            size = values[block].size
            values[block] = idctn(components[start : start + size].reshape(values[block].shape), norm="ortho")
            start += size
        vector[tensor.slice] = values.reshape(-1)
    return vector


def reference(nodes: int, steps: int) -> list[torch.Tensor]:
    theta, momentum = initial().double().numpy().copy(), np.zeros((nodes, P))
    places = {128: np.zeros(P, bool), 2: np.zeros(P, bool)}
    for tensor in LAYOUT.tensors:
        places[128 if len(tensor.shape) == 2 else 2][tensor.slice] = True
    for t in range(steps):
        for node in range(nodes):
            momentum[node] = 0.999 * momentum[node] + gradient(node, t, theta)
        theta = theta * (1 - rate(t) * SPEC.weight_decay * places[128])
        for tensors, density in ((MATRICES, 128), (VECTORS, 2)):
            sent = []
            for node in range(nodes):
                components = transformed(momentum[node], tensors)
                chosen = np.zeros(components.size)
                where = largest(components, density)
                chosen[where] = bfloat16(components[where])
                slow = restored(components - chosen, tensors)
                momentum[node] = np.where(places[density], slow, momentum[node])
                sent.append(chosen)
            theta = theta - rate(t) * np.sign(restored(np.mean(sent, axis=0), tensors))
    return [torch.from_numpy(theta)] * nodes


@pytest.mark.parametrize("nodes", [1, 3])
def test_follows_numpy(nodes: int) -> None:
    """Six steps of nodes that stay alike."""
    states = play(DeMo(inner=INNER), nodes, 6)[0]
    close(states, reference(nodes, 6), flips=2)  # a sign where components nearly cancel
    assert all(torch.equal(state.params, states[0].params) for state in states)


def test_the_transform_is_scipy_s_and_goes_back() -> None:
    """Of blocks of 64 x 64 and smaller ones; what is not transformed is left alone."""
    layout = layout_of({"a": (128, 192), "b": (40, 130), "c": (200,)})
    vector = torch.from_numpy(np.random.default_rng(0).standard_normal(layout.size).astype(np.float32))
    components = forward(vector, layout.tensors[:2], 64)
    expected = transformed(vector.double().numpy(), layout.tensors[:2])
    assert float((components - torch.from_numpy(expected)).abs().max()) < 1e-5
    out = torch.zeros(layout.size)
    backward(components, layout.tensors[:2], 64, out)
    assert float((out - vector)[:-200].abs().max()) < 1e-5
    assert not out[-200:].any()


def test_impossible_numbers_are_refused() -> None:
    """With the limits in the message; dense codecs too."""
    with pytest.raises(ConfigurationError, match="decay must lie in"):
        DeMo(inner=INNER, decay=math.nan)
    with pytest.raises(ConfigurationError, match="block must lie between"):
        DeMo(inner=INNER, block=1)
    with pytest.raises(ConfigurationError, match="codec must be sparse"):
        DeMo(inner=INNER, codec="bf16")
