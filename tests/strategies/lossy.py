"""What lossy codecs make of a vector, in NumPy and float64: the reference of the strategies that send by them."""

from __future__ import annotations

import math

import numpy as np
import torch


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to nearest, by torch."""
    return torch.from_numpy(values.astype(np.float32)).to(torch.bfloat16).double().numpy()


def two_bits(values: np.ndarray, block: int) -> np.ndarray:
    """Per block: the mean magnitude of those above and of those below 1.25 times the mean, with the sign."""
    result = np.empty(values.size)
    for start in range(0, values.size, block):
        part = np.asarray(values[start : start + block], np.float64)
        size = np.abs(part)
        big = size > 1.25 * size.mean()
        levels = [bfloat16(size[g].mean(keepdims=True))[0] if g.any() else 0.0 for g in (~big, big)]
        result[start : start + block] = np.where(big, levels[1], levels[0]) * np.where(part < 0, -1, 1)
    return result


def four_bits(values: np.ndarray, block: int) -> np.ndarray:
    """Per block: the nearest of -7 ... 7 times the largest magnitude / 7, which is rounded up to a bfloat16."""
    result = np.empty(values.size)
    for start in range(0, values.size, block):
        part = np.asarray(values[start : start + block], np.float64)
        wanted = np.abs(part).max() / 7
        scale = bfloat16(np.array([wanted]))[0]
        if scale < wanted:
            scale = bfloat16(np.array([wanted * (1 + 2.0**-8)]))[0]
        result[start : start + block] = np.rint(part / scale) * scale
    return result


def largest(values: np.ndarray, density: int) -> np.ndarray:
    """The positions of the largest magnitudes of each 4,096, ascending."""
    chosen = []
    for start in range(0, values.size, 4096):
        size = np.abs(values[start : start + 4096])
        order = np.argsort(-size, kind="stable")[: math.ceil(size.size / density)]
        chosen.append(start + np.sort(order))
    return np.concatenate(chosen)
