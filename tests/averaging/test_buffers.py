"""Memory that is used again, and never while somebody still uses it."""

from __future__ import annotations

import gc

import numpy as np

from distributed_training.averaging.buffers import Buffers


def test_a_vector_comes_back_only_when_every_view_of_it_is_gone() -> None:
    """A slice, a reshape or a memoryview of the result keeps it."""
    buffers = Buffers()
    first = buffers.vector(1000)
    first[:] = 1
    place = first.ctypes.data
    views = [first[10:], first.reshape(10, 100).T[1], memoryview(first)]
    del first
    while views:
        other = buffers.vector(1000)
        assert other.ctypes.data != place
        other[:] = 2
        del other
        assert np.asarray(views.pop()).flat[0] == 1
    gc.collect()
    assert buffers.vector(1000).ctypes.data == place


def test_a_dropped_vector_is_used_again() -> None:
    """The same memory; another size is another vector."""
    buffers = Buffers()
    vector = buffers.vector(1000)
    place = vector.ctypes.data
    del vector
    again = buffers.vector(1000)
    assert again.ctypes.data == place
    del again
    assert buffers.vector(999).size == 999


def test_chunks_come_back_when_they_are_given() -> None:
    """And only in the size that is in use."""
    buffers = Buffers()
    first, second = buffers.chunk(8), buffers.chunk(8)
    assert first is not second
    buffers.free(first)
    assert buffers.chunk(8) is first
    other = buffers.chunk(9)
    buffers.free(first)
    buffers.free(other)
    assert buffers.chunk(9) is other
    assert buffers.chunk(9) is not first
