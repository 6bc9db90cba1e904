"""The data streams of a round. As sender: our part of a share to its reducer, the average of that share back.

As reducer: the same from the other side. All goes chunk by chunk, so that both directions move at once and nothing is
allocated that the plan does not have. Each direction of each stream is a blocking loop in a thread of its own; the
event loop only starts them and hears how they ended.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import blake3
import numpy as np

from distributed_training.averaging.board import Board, Fault, Link
from distributed_training.averaging.buffers import Buffers
from distributed_training.averaging.codec import Codec, CodecPair, Floats, all_within, as_it_lies, octets
from distributed_training.averaging.frames import (
    HASH_BYTES,
    MAX_FRAME,
    Answer,
    Hello,
    Parts,
    Weights,
    length_prefix,
    read_message,
    unpack_length,
    write_message,
)
from distributed_training.averaging.lane import in_thread
from distributed_training.averaging.outcome import Restraint
from distributed_training.averaging.packing import Packing, is_bound
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.reducer import Reducer
from distributed_training.averaging.robust import rule_named
from distributed_training.averaging.sealed import FRAME
from distributed_training.averaging.streams import Lane, Stream
from distributed_training.averaging.traffic import Effort
from distributed_training.averaging.witness import Sightings, Watch, Witness
from template.errors import AveragingError

PIECE = FRAME  # bytes that are looked at, and hashed, at once
SURPLUS = 1 << 16  # bytes that are read, and dropped, at once

Opener = Callable[[Link], Coroutine[Any, Any, Stream | None]]
Take = Callable[[memoryview], None]


class Exchange:
    """What this member sends and receives as data. `average` [size] fills up; `digests` tell what it is made of."""

    def __init__(
        self,
        plan: RoundPlan,
        uid: int,
        board: Board,
        codecs: CodecPair,
        buffers: Buffers,
        watch: Watch | None = None,
    ) -> None:
        self.average = buffers.vector(plan.size)
        self.effort = Effort()
        self._plan = plan
        self._uid = uid
        self._board = board
        self._codecs = codecs
        self._packing: Packing | None = None
        self._roots: Mapping[int, str] = {}
        self._buffers = buffers
        self._ranges = plan.ranges()
        self._weights: Mapping[int, float] = {}
        self._watch = watch
        self._witness: Witness | None = None
        self._reducer: Reducer | None = None
        self._begun = asyncio.Event()
        self._own_digest: str | None = None

    def begin(
        self, weights: Mapping[int, float], roots: Mapping[int, str], packing: Packing | None, opened: Opener
    ) -> None:
        """Start all transfers. `weights` are those of the contributors and `roots` what binds them to their parts,
        `packing` is what we send, None if nothing; `opened` opens a data stream to a reducer.
        """
        self._weights, self._roots, self._packing = weights, roots, packing
        start, stop = self._ranges[self._uid]
        if stop > start:
            share, codec = self.average[start:stop], self._codecs.average
            rule = rule_named(self._plan.reduction)
            self._reducer = Reducer(share, self._plan.chunk, weights, codec, rule, self._buffers, self.effort)
            if self._watch is not None:
                self._witness = Witness(self._watch, start, stop, self._codecs.parts.name)
            self._board.spawn(self._reduce_own(self._reducer))
        self._begun.set()
        for link in self._board.links.values():
            if not link.average_done:
                self._board.spawn(self._exchange_with(link, opened))

    def release(self) -> None:
        """Let go of the average at the end of the round: its memory is used again when its last user is done."""
        self.average = np.empty(0, dtype=np.float32)
        if self._reducer is not None:
            self._reducer.release()

    def restraints(self) -> tuple[Restraint, ...]:
        """Whose parts the reduction's rule did not take in full, in our share."""
        return () if self._reducer is None else self._reducer.restraints()

    def sightings(self) -> Sightings | None:
        """What was kept of the others' parts; None if we were told to keep nothing, or reduce nothing."""
        return None if self._witness is None else self._witness.sightings(self.average, self._ranges)

    def complete(self) -> bool:
        """Whether the whole average is here, and everything that others owe us."""
        own = self._own_digest is not None or self._reducer is None
        return own and all(link.part_done and link.average_done for link in self._board.links.values())

    def digests(self) -> dict[int, str]:
        """BLAKE3 over the encoded average of each share, by reducer: several times as fast as SHA-256."""
        digests = {uid: link.digest for uid, link in self._board.links.items()} | {self._uid: self._own_digest}
        return {uid: digest for uid, digest in sorted(digests.items()) if digest is not None}

    def average_hash(self) -> str:
        """Names the average: sha256 over the digests of its shares, whose encodings fix it to the bit."""
        lines = "".join(f"{uid} {digest}\n" for uid, digest in self.digests().items())
        return hashlib.sha256(f"{self._codecs.average.name} {self._plan.size}\n{lines}".encode()).hexdigest()

    # As sender

    async def _exchange_with(self, link: Link, opened: Opener) -> None:
        uid = link.member.uid
        stream: Stream | None = None
        try:
            stream = await opened(link)
            if stream is None:
                return
            lane = stream.lane()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._give_part(link, stream, lane))
                both.create_task(self._receive_average(link, stream, lane))
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

    async def _give_part(self, link: Link, stream: Stream, lane: Lane) -> None:
        packing = self._packing
        if packing is None:
            return
        hashes = packing.chunk_hashes(link.member.uid)
        await write_message(stream, Parts(shares=tuple(packing.shares.items()), chunks=hashes))
        await in_thread(lambda: self._send_part(link, lane), lane.abort)

    def _send_part(self, link: Link, lane: Lane) -> None:
        packing = self._packing
        assert packing is not None, "who puts nothing in sends nothing"
        start, stop = self._ranges[link.member.uid]
        for index, (low, high) in enumerate(chunks(stop - start, self._plan.chunk)):
            self._send_chunk(link, lane, packing.payload(link.member.uid, index), high - low)

    async def _receive_average(self, link: Link, stream: Stream, lane: Lane) -> None:
        claimed = await read_message(stream, Weights)
        self._compare_weights(link.member.uid, dict(claimed.weights))
        self._compare_roots(link.member.uid, dict(claimed.parts))
        link.digest = await in_thread(lambda: self._receive_chunks(link, lane), lane.abort)

    def _receive_chunks(self, link: Link, lane: Lane) -> str:
        """Fill the share of a reducer; the digest of what it sent."""
        start, stop = self._ranges[link.member.uid]
        share = self.average[start:stop]
        digest = blake3.blake3()
        codec = self._codecs.average
        lies = as_it_lies(codec)  # else decoding looks at the values

        def take(piece: memoryview) -> None:
            if lies and not all_within(np.frombuffer(piece, dtype=np.float32), codec.largest):
                raise Fault("values that are not finite")
            with self.effort.spent("hash"):
                digest.update(piece)

        room = _room_for(codec, min(self._plan.chunk, stop - start))
        for low, high in chunks(stop - start, self._plan.chunk):
            self._receive_values(link, lane, codec, share[low:high], room, take)
        return digest.hexdigest()

    def _compare_weights(self, reducer: int, claimed: Mapping[int, float]) -> None:
        """The reducer must use the weights that the senders told us. If not, one of the two lies: both are named."""
        if claimed == self._weights:
            return
        if claimed.keys() != self._weights.keys():
            raise Fault("averages other members than the plan has")
        for uid, weight in self._weights.items():
            if claimed[uid] != weight and uid not in (self._uid, reducer):
                self._board.fail(uid, "sender", f"its weight is disputed between us and reducer {reducer}")
        raise Fault("uses other weights than the members told us")

    def _compare_roots(self, reducer: int, claimed: Mapping[int, str]) -> None:
        """The reducer must hold the parts against what the senders told us, too. If not, one of the two lies."""
        if claimed == self._roots:
            return
        for uid, root in self._roots.items():
            if claimed.get(uid) != root and uid not in (self._uid, reducer):
                self._board.fail(uid, "sender", f"what binds it to its parts is disputed between us and {reducer}")
        raise Fault("goes by other hashes of the parts than the members told us")

    # As reducer

    async def _reduce_own(self, reducer: Reducer) -> None:
        """Put our own part in, and take the digest of what everybody gets."""
        ended = asyncio.Event()

        def unblock() -> None:
            ended.set()
            reducer.wake()

        def work() -> str:
            self._add_own(reducer)
            digest = blake3.blake3()
            for index in range(len(reducer.chunks)):
                data = reducer.encoded(index, ended.is_set)
                with self.effort.spent("hash"):
                    digest.update(data)
            return digest.hexdigest()

        self._own_digest = await in_thread(work, unblock)
        self._board.ring()

    def _add_own(self, reducer: Reducer) -> None:
        if self._packing is None:
            return
        for index, (low, high) in enumerate(reducer.chunks):
            reducer.add(self._uid, index, self._packing.own[low:high])

    async def accept(self, link: Link, stream: Stream, hello: Hello) -> None:
        """Serve the one data stream of a member."""
        uid = link.member.uid
        if link.data_open or link.greeting is None or hello.weight != link.weight or not self._reduces():
            self._board.fail(uid, "sender", "a data stream that the plan does not have")
            return
        link.data_open = link.data_live = True
        await self._begun.wait()
        assert self._reducer is not None
        try:
            await write_message(stream, Answer(code="ready"))
            lane = stream.lane()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._take_part(self._reducer, link, stream, lane))
                both.create_task(self._give_average(self._reducer, link, stream, lane))
            while await stream.read(SURPLUS):  # until the opener, who has everything then, or the round's end closes it
                self._board.note(uid, "sender", "more than its part")
        except* AveragingError as lost:
            self._lost(link, lost.exceptions[0])
        except* Fault as fault:
            self._board.fail(uid, "sender", str(fault.exceptions[0]))
        finally:
            link.data_live = False
            self._board.ring()

    def _lost(self, link: Link, error: BaseException) -> None:
        if not link.receiving.bytes and not link.part_done:
            link.data_open = False  # it had not begun; its opener may come again on the other plane
        elif not link.part_done:
            self._board.suspect(link.member.uid, "sender", f"stream lost: {error}")

    def _reduces(self) -> bool:
        start, stop = self._ranges[self._uid]
        return stop > start

    async def _take_part(self, reducer: Reducer, link: Link, stream: Stream, lane: Lane) -> None:
        if link.part_done:  # an auxiliary member, which sends none
            return

        codec = self._codecs.parts
        lies = as_it_lies(codec)
        hasher = blake3.blake3()

        def take(piece: memoryview) -> None:
            if lies:
                self._require_carried(np.frombuffer(piece, dtype=np.float32))
            with self.effort.spent("hash"):
                hasher.update(piece)

        def work() -> None:
            low, high = reducer.chunks[0]
            room = _room_for(codec, high - low)
            for index in range(len(reducer.chunks)):
                memory = reducer.buffer(index)
                values = np.frombuffer(memory, dtype=np.float32)
                hasher.reset()
                self._receive_values(link, lane, codec, values, room, take)
                if hasher.hexdigest() != hashes[index]:
                    raise Fault("sends something else than it is bound to")
                if not lies:
                    self._require_carried(values)
                if self._witness is not None:
                    self._witness.see(link.member.uid, reducer.chunks[index][0], values)
                reducer.add(link.member.uid, index, memory)

        try:
            hashes = await self._bound_hashes(reducer, link, stream)
            await in_thread(work, lane.abort)
        except Fault as fault:  # named before our dropping of the stream makes the sender suspect us
            self._board.fail(link.member.uid, "sender", str(fault))
            raise
        link.part_done = True
        self._board.ring()

    async def _bound_hashes(self, reducer: Reducer, link: Link, stream: Stream) -> tuple[str, ...]:
        """Of the chunks of a sender's part; they are what it told all members by its root."""
        count = len(reducer.chunks)
        parts = await read_message(stream, Parts, MAX_FRAME + HASH_BYTES * count)
        if link.parts is None or not is_bound(link.parts, parts.shares, self._uid, parts.chunks, count):
            raise Fault("does not show what binds it to its part")
        return parts.chunks

    def _require_carried(self, part: Floats) -> None:
        """What was decoded is within its own codec's range; values as they lie nobody has looked at yet."""
        limit, parts = self._codecs.largest, self._codecs.parts
        if (as_it_lies(parts) or limit < parts.largest) and not all_within(part, limit):
            raise Fault(f"values that are not finite, or beyond {limit:g}, the largest that the average can carry")

    async def _give_average(self, reducer: Reducer, link: Link, stream: Stream, lane: Lane) -> None:
        bound = Weights(weights=tuple(self._weights.items()), parts=tuple(self._roots.items()))
        await write_message(stream, bound)
        ended = asyncio.Event()

        def unblock() -> None:
            ended.set()
            lane.abort()
            reducer.wake()

        def work() -> None:
            for index, (low, high) in enumerate(reducer.chunks):
                self._send_chunk(link, lane, reducer.encoded(index, ended.is_set), high - low)

        await in_thread(work, unblock)

    # Chunks

    def _send_chunk(self, link: Link, lane: Lane, data: bytes | memoryview, values: int) -> None:
        before, moved = lane.sent, 0
        link.sending.begin()
        try:
            lane.send(length_prefix(len(data)), more=True)
            lane.send(data)
            moved = values
        finally:
            link.sending.end(lane.sent - before, moved)

    def _receive_values(
        self, link: Link, lane: Lane, codec: Codec, values: Floats, room: memoryview, take: Take
    ) -> None:
        """The next chunk into `values` [n], by way of `room` unless the encoding is the memory."""
        in_place = as_it_lies(codec)
        data = octets(values) if in_place else room[: codec.encoded_size(values.size)]
        self._receive_chunk(link, lane, data, values.size, take)
        if not in_place:
            with self.effort.spent("decode"):
                _decode_into(values, codec, data)

    def _receive_chunk(self, link: Link, lane: Lane, buffer: memoryview, values: int, take: Take) -> None:
        """The next chunk. Time counts from its length on: before, the other side may wait for third members.

        `take` gets it piece by piece, each while it is still in a core's cache.
        """
        before, moved = lane.received, 0
        prefix = bytearray(4)
        lane.receive_into(memoryview(prefix))
        length = unpack_length(prefix)
        if length != len(buffer):
            raise Fault(f"a chunk of {length} bytes where {len(buffer)} are due")
        link.receiving.begin()
        try:
            for start in range(0, length, PIECE):
                piece = buffer[start : start + PIECE]
                lane.receive_into(piece)
                take(piece)
            moved = values
        finally:
            link.receiving.end(lane.received - before, moved)


def _room_for(codec: Codec, n: int) -> memoryview:
    """Memory for the encoding of up to `n` values; none where they are received as they lie."""
    return memoryview(bytearray(0 if as_it_lies(codec) else codec.encoded_size(n)))


def _decode_into(values: Floats, codec: Codec, data: memoryview) -> None:
    """Bytes that are no payload are the other side's doing."""
    try:
        codec.decode(data, values.size, values)
    except AveragingError as error:
        raise Fault(str(error)) from error
