"""Inner optimisers against torch's AdamW and against Muon written in NumPy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from distributed_training.strategies.inner import AdamW
from distributed_training.strategies.local_sgd import Apart
from distributed_training.strategies.muon import Muon, orthogonal
from template.errors import ConfigurationError
from tests.strategies.problem import LAYOUT, SHAPES, SPEC, P, Worker, close, gradient, initial, layout_of, play, rate


def test_adamw_follows_torch() -> None:
    """Warm-up, cosine, clipping and the decay of matrices only, over the whole schedule."""
    worker = Worker(0)
    for _ in range(35):
        worker.train()
    close(play(Apart(inner=AdamW(SPEC)), 1, 35)[0], [worker.vector], 5e-6)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    x = matrix / np.sqrt((matrix**2).sum())
    if x.shape[0] > x.shape[1]:
        return newton_schulz(matrix.T).T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def muon_in_numpy(steps: int) -> np.ndarray:
    """Per tensor: Muon for what has "h." in its name and two dimensions, AdamW for the others."""
    theta = initial().double().numpy().copy()
    momentum, first, second = np.zeros(P), np.zeros(P), np.zeros(P)
    for t in range(steps):
        g = gradient(0, t, theta).astype(np.float64)
        g *= min(1.0, SPEC.clip_norm / (np.linalg.norm(g) + 1e-6))
        for tensor in LAYOUT.tensors:
            w, matrix = tensor.slice, len(tensor.shape) == 2
            decayed = theta[w] * (1 - rate(t) * SPEC.weight_decay * matrix)
            if matrix and ".h." in tensor.name:
                momentum[w] = 0.95 * momentum[w] + g[w]
                nesterov = (g[w] + 0.95 * momentum[w]).reshape(tensor.shape)
                size = 0.2 * math.sqrt(max(tensor.shape))
                theta[w] = decayed - rate(t) * size * newton_schulz(nesterov).reshape(-1)
                continue
            first[w] = 0.9 * first[w] + 0.1 * g[w]
            second[w] = 0.95 * second[w] + 0.05 * g[w] ** 2
            root = np.sqrt(second[w] / (1 - 0.95 ** (t + 1))) + 1e-8
            theta[w] = decayed - rate(t) * first[w] / (1 - 0.9 ** (t + 1)) / root
    return theta


def test_muon_follows_numpy() -> None:
    """Matrices of the blocks by Muon; embeddings, though matrices, and biases by AdamW."""
    close(play(Apart(inner=Muon(SPEC)), 1, 10)[0], [torch.from_numpy(muon_in_numpy(10))], 3e-5)


@pytest.mark.parametrize("shape", [(64, 64), (16, 96), (96, 16)])
def test_orthogonal_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    """Singular values end between 0.6 and 1.3, with the vectors of the matrix's own decomposition."""
    matrix = torch.from_numpy(np.random.default_rng(3).standard_normal(shape))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.diagonal(u.T @ orthogonal(matrix) @ v.T)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    assert float((orthogonal(matrix) - u @ torch.diag(values) @ v).abs().max()) < 1e-9


def test_numbers_that_are_none_are_refused() -> None:
    """NaN and negative decay; Muon where there are no hidden matrices."""
    for change in ({"weight_decay": -0.1}, {"clip_norm": math.inf}, {"weight_decay": math.nan}):
        with pytest.raises(ConfigurationError, match="must be finite"):
            AdamW(dataclasses.replace(SPEC, **change))
    with pytest.raises(ConfigurationError, match="momentum"):
        Muon(SPEC, momentum=1.0)
    embeddings = layout_of({name: shape for name, shape in SHAPES.items() if ".h." not in name})
    with pytest.raises(ConfigurationError, match="AdamW"):
        Muon(SPEC).init(embeddings, torch.device("cpu"))
