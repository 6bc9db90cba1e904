"""The reducer's half of a round: takes everybody's parts of its share and makes the average, once, chunk by chunk.

A chunk is averaged when all contributors' parts of it are there, in ascending order of uid, so the result does not
depend on the order of arrival; the thread that brings the last part does it. It is encoded once; everybody, this member
included, decodes the same bytes. Buffers of averaged chunks are used again, so what is held is what is in flight.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distributed_training.averaging.buffers import Buffers
from distributed_training.averaging.codec import Codec, Floats
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.traffic import Effort
from template.errors import AveragingError

_BLOCK = 1 << 14  # values that are summed at a time: they stay in a core's cache
_LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class _Part:
    values: Floats
    memory: bytearray | None


def weighted_mean(parts: Sequence[Floats], weights: Sequence[float], out: Floats) -> None:
    """sum(w_i x_i) / sum(w_i) of equally long parts [n] into `out` [n], summed in float32 in the given order.

    Weights are normalised first, so no sum of finite parts overflows. Multiplications and additions are rounded one by
    one as IEEE says, so anybody can recompute the bits; the error is below (parts + 1) 2^-24 sum(w_i |x_i|) / sum(w_i).
    """
    total = math.fsum(weights)
    scale = [np.float32(weight / total) for weight in weights]
    product = np.empty(min(_BLOCK, out.size), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # looked for afterwards
        for start in range(0, out.size, _BLOCK):
            block = out[start : start + _BLOCK]
            scaled = product[: block.size]
            np.multiply(parts[0][start : start + _BLOCK], scale[0], out=block)
            for part, factor in zip(parts[1:], scale[1:], strict=True):
                np.multiply(part[start : start + _BLOCK], factor, out=scaled)
                np.add(block, scaled, out=block)


def is_finite(values: Floats) -> bool:
    """Whether there is neither NaN nor infinity in `values` [n]; without temporaries of its size."""
    step = 4 * _BLOCK
    return all(np.isfinite(values[start : start + step]).all() for start in range(0, values.size, step))


class Reducer:
    """Averages one share over the contributors in `weights`, in chunks of `chunk` values, into `out` [size].

    All methods may be called from any thread.
    """

    def __init__(
        self, out: Floats, chunk: int, weights: Mapping[int, float], codec: Codec, buffers: Buffers, effort: Effort
    ) -> None:
        self.chunks = chunks(out.size, chunk)
        self._out = out
        self._weights = dict(sorted(weights.items()))
        self._codec = codec
        self._buffers = buffers
        self._effort = effort
        self._parts: list[dict[int, _Part]] = [{} for _ in self.chunks]
        self._encoded: list[bytes | memoryview | None] = [None] * len(self.chunks)
        self._changed = threading.Condition()

    def memory(self, index: int) -> tuple[bytearray, memoryview]:
        """Memory for the encoded chunk `index`, and the view of it that is to be filled. It comes back by `add`."""
        start, stop = self.chunks[index]
        low, high = self.chunks[0]
        size = self._codec.encoded_size(stop - start)
        memory = self._buffers.chunk(max(size, self._codec.encoded_size(high - low)))
        return memory, memoryview(memory)[:size]

    def add(self, uid: int, index: int, values: Floats, memory: bytearray | None = None) -> None:
        """Take the finite values of a contributor's chunk; averages it if it was the last one.

        `values` must not change any more; they may lie in `memory`, which is used again when they were averaged.
        """
        with self._changed:
            parts = self._parts[index]
            assert uid in self._weights
            assert uid not in parts
            parts[uid] = _Part(values, memory)
            complete = len(parts) == len(self._weights)
        if complete:
            self._average(index, parts)

    def encoded(self, index: int, gone: Callable[[], bool]) -> bytes | memoryview:
        """The encoded average of a chunk, when it is there: the same object for everybody.

        Raises:
            AveragingError: `gone` holds; it is looked at whenever `wake` is called.
        """
        with self._changed:
            while True:
                data = self._encoded[index]
                if data is not None:
                    return data
                if gone():
                    raise AveragingError("the stream was dropped")
                self._changed.wait()

    def wake(self) -> None:
        """Let those who wait look whether they still should."""
        with self._changed:
            self._changed.notify_all()

    def release(self) -> None:
        """Let go of all memory; nothing may be asked of the reducer any more."""
        with self._changed:
            self._out = np.empty(0, dtype=np.float32)
            self._parts.clear()
            self._encoded.clear()

    def _average(self, index: int, parts: dict[int, _Part]) -> None:
        start, stop = self.chunks[index]
        mean = self._out[start:stop]
        with self._effort.spent("reduce"):
            weighted_mean([parts[uid].values for uid in self._weights], list(self._weights.values()), mean)
            if not is_finite(mean):  # by rounding at the end of the range, as all parts were finite
                np.clip(mean, -_LARGEST, _LARGEST, out=mean)
        with self._effort.spent("encode"):
            data = self._codec.encode(mean)
            decoded = self._codec.decode(data, stop - start)
            if not np.may_share_memory(decoded, mean):
                mean[:] = decoded
        with self._changed:
            used = [part.memory for part in parts.values() if part.memory is not None]
            parts.clear()
            self._encoded[index] = data
            self._changed.notify_all()
        for memory in used:
            self._buffers.free(memory)
