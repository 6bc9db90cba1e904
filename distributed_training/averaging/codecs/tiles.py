"""Vectors are worked through in tiles that stay in the processor's cache, whatever their length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from distributed_training.averaging.codecs.codec import Floats

TILE = 1 << 15  # values: 128 KiB of float32; a multiple of every block and of top-k's chunk


def tiles(n: int) -> Iterator[slice]:
    """The tiles of `n` values; the last may be shorter."""
    return (slice(start, min(n, start + TILE)) for start in range(0, n, TILE))


def in_blocks(values: Floats, block: int) -> Floats:
    """`values` [m] as [blocks, block]; a last block that is not full is filled up with zeros, in a copy."""
    if values.size % block == 0:
        return values.reshape(-1, block)
    padded = np.zeros((-(-values.size // block), block), dtype=np.float32)
    padded.reshape(-1)[: values.size] = values
    return padded


def block_sums(values: Floats) -> Floats:
    """The sum of each row [blocks], by halving, so that the bits do not depend on the machine. Rows are powers of 2."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values.reshape(-1)


def block_peaks(values: Floats) -> Floats:
    """The largest of each row [blocks]; NaN if there is one. Rows are powers of 2."""
    while values.shape[1] > 8:
        half = values.shape[1] // 2
        values = np.maximum(values[:, :half], values[:, half:])
    peaks: Floats = values.max(axis=1)
    return peaks
