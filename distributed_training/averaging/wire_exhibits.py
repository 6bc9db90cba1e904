"""What was sent in a round, shown again over streams: `Showcase` at each contributor, `WireExhibits` at a validator.

A contributor shows a chunk to members of that very round that put nothing in themselves, and to nobody else. The bytes
of a reply are checked against the hash that the contributor was bound to before they are decoded, and their number
before they are read.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import numpy as np
from pydantic import Field

from distributed_training.averaging.codec import Codec, Floats, all_within, codec_named, pair_named
from distributed_training.averaging.exhibits import Wanted
from distributed_training.averaging.frames import HASH_BYTES, MAX_FRAME, Parts, read_message, write_message
from distributed_training.averaging.packing import Packing, chunk_hash, is_bound
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.plan import Participant
from distributed_training.averaging.streams import Stream, Transport
from distributed_training.protocol import Uid
from template.clock import Clock
from template.errors import AveragingError
from template.transport.synapse import Message

PROTOCOL = "dt-shown/1"
MAX_ASK = 1024  # bytes
SECONDS = 10.0  # for a chunk of 1 MiB, on either side
TRIES = 3  # a member may be in COMMIT for a moment longer than we are
PAUSE_SECONDS = 1.0
AT_ONCE = 8  # chunks that are shown at a time


class Ask(Message):
    """Which chunk of the asked member's part for a reducer."""

    round_id: str
    reducer: Uid
    chunk: Annotated[int, Field(ge=0)]


class Showcase:
    """Keeps what this member sent in its last rounds, and shows it. `add` and `ended` are the averager's to call."""

    def __init__(self) -> None:
        self._kept: dict[int, Packing] = {}  # by epoch
        self._showing = 0

    def add(self, packing: Packing) -> None:
        """An attempt begins: it replaces the ones before of its epoch."""
        self._kept[packing.plan.epoch] = packing

    def completed(self, epoch: int) -> None:
        """The epoch is over, and nobody has to be shown what was sent before it any more."""
        self._kept = {kept: packing for kept, packing in self._kept.items() if kept >= epoch}

    async def serve(self, stream: Stream) -> None:
        """Answer one question; a stranger, and one that asks for what there is not, hear nothing."""
        if self._showing >= AT_ONCE:
            return
        self._showing += 1
        try:
            async with asyncio.timeout(SECONDS):
                await self._answer(stream)
        except (AveragingError, TimeoutError):
            return  # it left, or asked for nothing that we have; it knows by the stream's end
        finally:
            self._showing -= 1

    async def _answer(self, stream: Stream) -> None:
        ask = await read_message(stream, Ask, MAX_ASK)
        packing = next((kept for kept in self._kept.values() if kept.plan.round_id == ask.round_id), None)
        if packing is None or stream.peer_id not in {m.peer_id for m in packing.plan.members if not m.contributes}:
            return
        hashes = packing.chunk_hashes(ask.reducer) if ask.reducer in packing.shares else ()
        if ask.chunk >= len(hashes):
            return
        await write_message(stream, Parts(shares=tuple(packing.shares.items()), chunks=hashes))
        await stream.write(packing.payload(ask.reducer, ask.chunk))
        await stream.read(1)  # the asking side closes first


class WireExhibits:
    """See Exhibits."""

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock

    async def show(self, wanted: Wanted) -> Floats | None:
        """See Exhibits: asks a few times, for up to `TRIES * (SECONDS + PAUSE_SECONDS)`."""
        member = next(m for m in wanted.plan.members if m.uid == wanted.uid)
        for attempt in range(TRIES):
            if attempt:
                await self._clock.sleep(PAUSE_SECONDS)
            try:
                async with asyncio.timeout(SECONDS):
                    return await self._ask(wanted, member)
            except (AveragingError, TimeoutError):
                continue
        return None

    async def _ask(self, wanted: Wanted, member: Participant) -> Floats:
        """The chunk.

        Raises:
            AveragingError: the member cannot be reached, shows nothing, or not what it is bound to.
        """
        plan = wanted.plan
        start, stop = plan.ranges()[wanted.reducer]
        pieces = chunks(stop - start, plan.chunk)
        low, high = pieces[wanted.chunk]
        codec = codec_named("none") if wanted.uid == wanted.reducer else pair_named(plan.codec).parts
        stream = await self._transport.open(member.peer_id, member.addresses, PROTOCOL)
        try:
            await write_message(stream, Ask(round_id=plan.round_id, reducer=wanted.reducer, chunk=wanted.chunk))
            parts = await read_message(stream, Parts, MAX_FRAME + HASH_BYTES * len(pieces))
            if not is_bound(wanted.root, parts.shares, wanted.reducer, parts.chunks, len(pieces)):
                raise AveragingError("the hashes are not those that the member is bound to")
            payload = await stream.readexactly(codec.encoded_size(high - low))
        finally:
            stream.abort()
        if chunk_hash(payload) != parts.chunks[wanted.chunk]:
            raise AveragingError("the bytes are not those that the member is bound to")
        return _decoded(codec, payload, high - low, pair_named(plan.codec).largest)


def _decoded(codec: Codec, payload: bytes, size: int, largest: float) -> Floats:
    values = np.empty(size, dtype=np.float32)
    codec.decode(payload, size, values)
    if not all_within(values, largest):
        raise AveragingError("values that no honest reducer would have taken")
    return values
