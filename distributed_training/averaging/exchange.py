"""The data streams of a round. As sender: our part of a share to its reducer, the average of that share back.

As reducer: the same from the other side. All goes chunk by chunk, so that both directions move at once and nothing is
allocated that the plan does not have.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import numpy as np

from distributed_training.averaging.board import Board, Fault, Link
from distributed_training.averaging.codec import Codec, CodecPair, Floats, within
from distributed_training.averaging.feedback import Attempt
from distributed_training.averaging.frames import (
    Answer,
    Hello,
    Weights,
    length_prefix,
    read_length,
    read_message,
    write_message,
)
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.reducer import Reducer
from distributed_training.averaging.streams import Stream
from template.errors import AveragingError

Opener = Callable[[Link], Coroutine[Any, Any, Stream | None]]


class Exchange:
    """What this member sends and receives as data. `average` [size] fills up; `digests` tell what it is made of."""

    def __init__(
        self,
        plan: RoundPlan,
        uid: int,
        board: Board,
        codecs: CodecPair,
        contribution: Floats | None,
        attempt: Attempt | None,
    ) -> None:
        self.average = np.empty(plan.size, dtype=np.float32)
        self._plan = plan
        self._uid = uid
        self._board = board
        self._codecs = codecs
        self._contribution = contribution
        self._attempt = attempt
        self._ranges = plan.ranges()
        self._weights: Mapping[int, float] = {}
        self._reducer: Reducer | None = None
        self._begun = asyncio.Event()
        self._own_digest: str | None = None

    def begin(self, weights: Mapping[int, float], opened: Opener) -> None:
        """Start all transfers; `weights` are those of the contributors, `opened` opens a data stream to a reducer."""
        self._weights = weights
        start, stop = self._ranges[self._uid]
        if stop > start:
            self._reducer = Reducer(stop - start, self._plan.chunk, weights, self._codecs.average)
            self._board.spawn(self._reduce_own(self._reducer, start, stop))
        self._begun.set()
        for link in self._board.links.values():
            if not link.average_done:
                self._board.spawn(self._exchange_with(link, opened))

    def complete(self) -> bool:
        """Whether the whole average is here, and everything that others owe us."""
        own = self._own_digest is not None or self._reducer is None
        return own and all(link.part_done and link.average_done for link in self._board.links.values())

    def digests(self) -> dict[int, str]:
        """sha256 over the encoded average of each share, by reducer."""
        digests = {uid: link.digest for uid, link in self._board.links.items()} | {self._uid: self._own_digest}
        return {uid: digest for uid, digest in sorted(digests.items()) if digest is not None}

    # As sender

    async def _exchange_with(self, link: Link, opened: Opener) -> None:
        uid = link.member.uid
        stream: Stream | None = None
        try:
            stream = await opened(link)
            if stream is None:
                return
            async with asyncio.TaskGroup() as both:
                both.create_task(self._send_part(link, stream))
                both.create_task(self._receive_average(link, stream))
            await stream.close()
            link.average_done = True
            self._board.ring()
        except* AveragingError as lost:
            self._board.suspect(uid, "reducer", f"stream lost: {lost.exceptions[0]}")
        except* Fault as fault:
            self._board.fail(uid, "reducer", str(fault.exceptions[0]))
        finally:
            if stream is not None:
                stream.abort()

    async def _send_part(self, link: Link, stream: Stream) -> None:
        if self._contribution is None:
            return
        start, stop = self._ranges[link.member.uid]
        part = self._contribution[start:stop]
        for low, high in chunks(stop - start, self._plan.chunk):
            await self._write_chunk(link, stream, self._encode_part(start + low, part[low:high]))

    def _encode_part(self, start: int, values: Floats) -> memoryview:
        codec = self._codecs.parts
        return self._attempt.encode(codec, start, values) if self._attempt else codec.encode(values)

    async def _receive_average(self, link: Link, stream: Stream) -> None:
        claimed = await read_message(stream, Weights)
        self._compare_weights(link.member.uid, dict(claimed.weights))
        start, stop = self._ranges[link.member.uid]
        digest = hashlib.sha256()
        for low, high in chunks(stop - start, self._plan.chunk):
            data, values = await self._read_chunk(link, stream, self._codecs.average, high - low)
            self.average[start + low : start + high] = values
            digest.update(data)
        link.digest = digest.hexdigest()

    def _compare_weights(self, reducer: int, claimed: Mapping[int, float]) -> None:
        """The reducer must use the weights that the senders told us. If not, one of the two lies: both are named."""
        if claimed == self._weights:
            return
        for uid, weight in self._weights.items():
            if claimed.get(uid) != weight and uid not in (self._uid, reducer):
                self._board.fail(uid, "sender", f"its weight is disputed between us and reducer {reducer}")
        raise Fault("uses other weights than the members told us")

    # As reducer

    async def _reduce_own(self, reducer: Reducer, start: int, stop: int) -> None:
        """Put our own part in, and take the average out as everybody does: from the encoded bytes."""
        if self._contribution is not None:
            part = self._contribution[start:stop]
            if self._attempt:
                part = self._attempt.whole(start, part, self._codecs.largest)
            reducer.lend(self._uid, part)
            for index, (low, high) in enumerate(reducer.chunks):
                await reducer.add(self._uid, index, part[low:high])
        digest = hashlib.sha256()
        for index, (low, high) in enumerate(reducer.chunks):
            data = await reducer.encoded(index)
            self.average[start + low : start + high] = self._codecs.average.decode(data, high - low)
            digest.update(data)
            await asyncio.sleep(0)
        self._own_digest = digest.hexdigest()
        self._board.ring()

    async def accept(self, link: Link, stream: Stream, hello: Hello) -> None:
        """Serve the one data stream of a member."""
        uid = link.member.uid
        if link.data_open or link.greeting is None or hello.weight != link.weight or not self._reduces():
            self._board.fail(uid, "sender", "a data stream that the plan does not have")
            return
        link.data_open = True
        await self._begun.wait()
        assert self._reducer is not None
        try:
            await write_message(stream, Answer(code="ready"))
            async with asyncio.TaskGroup() as both:
                both.create_task(self._receive_part(self._reducer, link, stream))
                both.create_task(self._send_average(self._reducer, link, stream))
            if await stream.read(1):  # the opener closes first, when it has everything; the round's end bounds this
                raise Fault("more than its part")
        except* AveragingError as lost:
            if not link.part_done:
                self._board.suspect(uid, "sender", f"stream lost: {lost.exceptions[0]}")
        except* Fault as fault:
            self._board.fail(uid, "sender", str(fault.exceptions[0]))

    def _reduces(self) -> bool:
        start, stop = self._ranges[self._uid]
        return stop > start

    async def _receive_part(self, reducer: Reducer, link: Link, stream: Stream) -> None:
        if link.part_done:  # an auxiliary member, which sends none
            return
        for index, (low, high) in enumerate(reducer.chunks):
            _, values = await self._read_chunk(link, stream, self._codecs.parts, high - low)
            if not within(values, self._codecs.largest):
                raise Fault(f"values beyond {self._codecs.largest:g}, the largest that the average can carry")
            await reducer.add(link.member.uid, index, values)
        link.part_done = True
        self._board.ring()

    async def _send_average(self, reducer: Reducer, link: Link, stream: Stream) -> None:
        await write_message(stream, Weights(weights=tuple(self._weights.items())))
        for index in range(len(reducer.chunks)):
            await self._write_chunk(link, stream, await reducer.encoded(index))

    # Chunks

    async def _write_chunk(self, link: Link, stream: Stream, data: bytes | memoryview) -> None:
        began = time.monotonic()
        await stream.write(length_prefix(len(data)))
        await stream.write(data)
        link.traffic.bytes_sent += 4 + len(data)
        link.traffic.seconds_sending += time.monotonic() - began
        await asyncio.sleep(0)  # a stream that never blocks must not starve the neuron's other tasks

    async def _read_chunk(self, link: Link, stream: Stream, codec: Codec, n: int) -> tuple[bytes, Floats]:
        """The next chunk [n]. Time counts from its length on: before, the other side may wait for third members."""
        expected = codec.encoded_size(n)
        length = await read_length(stream)
        if length != expected:
            raise Fault(f"a chunk of {length} bytes where {expected} are due")
        began = time.monotonic()
        data = await stream.readexactly(expected)
        link.traffic.bytes_received += 4 + len(data)
        link.traffic.seconds_receiving += time.monotonic() - began
        try:
            values = codec.decode(data, n)
        except AveragingError as error:
            raise Fault(str(error)) from error
        await asyncio.sleep(0)
        return data, values
