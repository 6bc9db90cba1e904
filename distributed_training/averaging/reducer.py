"""The reducer's half of a round: takes everybody's parts of its share and makes the average, once, chunk by chunk.

A chunk is averaged when all contributors' parts of it are there, in ascending order of uid, so the result does not
depend on the order of arrival; the thread that brings the last part does it. It is encoded once; everybody, this member
included, decodes the same bytes. Buffers of averaged chunks are used again, so what is held is what is in flight.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from distributed_training.averaging.buffers import Buffers
from distributed_training.averaging.codec import Codec, Floats, all_within, as_it_lies, octets
from distributed_training.averaging.outcome import Restraint
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.robust import Rule
from distributed_training.averaging.traffic import Effort
from template.errors import AveragingError

Part = Floats | memoryview  # values, or those in memory of the reducer's own


class Reducer:
    """Averages one share over the contributors in `weights`, in chunks of `chunk` values, into `out` [size].

    `codec` is that of the average; parts come decoded, with values that it can carry. `rule` makes one of them. All
    methods may be called from any thread.
    """

    def __init__(
        self,
        out: Floats,
        chunk: int,
        weights: Mapping[int, float],
        codec: Codec,
        rule: Rule,
        buffers: Buffers,
        effort: Effort,
    ) -> None:
        self.chunks = chunks(out.size, chunk)
        self._out = out
        self._room = 4 * min(chunk, out.size)  # the same in the next round, where shares may differ a little
        self._weights = dict(sorted(weights.items()))
        self._codec = codec
        self._rule = rule
        self._kept: dict[int, list[float]] = {}  # of each contributor, where it is less than all
        self._buffers = buffers
        self._effort = effort
        self._parts: list[dict[int, Part]] = [{} for _ in self.chunks]
        self._encoded: list[bytes | memoryview | None] = [None] * len(self.chunks)
        self._changed = threading.Condition()

    def buffer(self, index: int) -> memoryview:
        """Memory for the float32 values of chunk `index`; it goes back when the chunk is averaged."""
        start, stop = self.chunks[index]
        return memoryview(self._buffers.chunk(self._room))[: 4 * (stop - start)]

    def add(self, uid: int, index: int, part: Part) -> None:
        """Take chunk `index` of a contributor, whose values `codec` can carry; averages it if it was the last one.

        `part` must not change any more; what came from `buffer` is used again when it was averaged.
        """
        with self._changed:
            parts = self._parts[index]
            assert uid in self._weights
            assert uid not in parts
            parts[uid] = part
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

    def restraints(self) -> tuple[Restraint, ...]:
        """Whose parts did not count in full, so far."""
        with self._changed:
            return tuple(
                Restraint(uid=uid, chunks=len(kept), of=len(self.chunks), kept=sum(kept) / len(kept))
                for uid, kept in sorted(self._kept.items())
            )

    def _note(self, kept: Sequence[float]) -> None:
        for uid, part in zip(self._weights, kept, strict=True):
            if part < 1:
                self._kept.setdefault(uid, []).append(part)

    def _average(self, index: int, parts: dict[int, Part]) -> None:
        start, stop = self.chunks[index]
        mean = self._out[start:stop]
        with self._effort.spent("reduce"):
            values = [_values(parts[uid]) for uid in self._weights]
            kept = self._rule.reduce(values, list(self._weights.values()), mean)
            largest = self._codec.largest
            if not all_within(mean, largest):  # by rounding at the end of the range, as all parts were within
                np.clip(mean, -largest, largest, out=mean)
        with self._effort.spent("encode"):
            data = self._encode(mean)
        with self._changed:
            used = [part.obj for part in parts.values() if isinstance(part, memoryview)]
            parts.clear()
            self._note(kept)
            self._encoded[index] = data
            self._changed.notify_all()
        del values  # they may share the chunks' memory
        for memory in used:
            if isinstance(memory, bytearray):
                self._buffers.free(memory)

    def _encode(self, mean: Floats) -> memoryview:
        """The encoding of `mean` [n], which becomes what everybody decodes from it."""
        if as_it_lies(self._codec):
            return octets(mean)
        data = self._codec.encode(mean)
        self._codec.decode(data, mean.size, mean)
        return data


def _values(part: Part) -> Floats:
    return np.frombuffer(part, dtype=np.float32) if isinstance(part, memoryview) else part
