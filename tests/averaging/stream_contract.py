"""What every implementation of the seam in streams.py must do; test_memory.py and test_libp2p.py run it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from distributed_training.averaging.lane import in_thread
from distributed_training.averaging.streams import Stream, Transport
from template.errors import AveragingError


class StreamContract:
    """Tests of a pair of transports; the subclass has the fixture `pair`: (caller, called, addresses of the called)."""

    async def test_bytes_arrive_both_ways_and_the_caller_is_known(self, pair: Pair) -> None:
        """What is written is read, in order, by a handler that knows who called."""
        caller, called, addresses = pair
        seen = []

        async def echo(stream: Stream) -> None:
            seen.append(stream.peer_id)
            await stream.write(b"<" + await stream.readexactly(300_000) + b">")
            await stream.read(1)

        async with serving(called, echo):
            stream = await caller.open(called.peer_id, addresses, "test/1")
            data = bytes(range(256)) * 1172
            await stream.write(memoryview(data)[:300_000])
            assert await stream.readexactly(300_002) == b"<" + data[:300_000] + b">"
            assert (stream.bytes_written, stream.bytes_read) == (300_000, 300_002)
            await stream.close()
        assert seen == [caller.peer_id]

    async def test_a_closed_stream_ends(self, pair: Pair) -> None:
        """All that was written before arrives, then the end."""
        caller, called, addresses = pair
        got = bytearray()
        ended = asyncio.Event()

        async def drain(stream: Stream) -> None:
            while data := await stream.read(7000):
                got.extend(data)
            ended.set()

        async with serving(called, drain):
            stream = await caller.open(called.peer_id, addresses, "test/1")
            for number in range(50):
                await stream.write(bytes([number]) * 10_000)
            await stream.close()
            async with asyncio.timeout(5):
                await ended.wait()
        assert bytes(got) == b"".join(bytes([number]) * 10_000 for number in range(50))

    async def test_threads_may_use_it(self, pair: Pair) -> None:
        """As a lane: one thread sends while another receives, and what passed is counted."""
        caller, called, addresses = pair
        data = bytes(range(250)) * 4000

        async def echo(stream: Stream) -> None:
            lane = stream.lane()
            buffer = memoryview(bytearray(len(data)))

            def work() -> None:
                for start in range(0, len(buffer), 1000):
                    lane.receive_into(buffer[start : start + 1000])
                    lane.send(buffer[start : start + 1000])

            await in_thread(work, lane.abort)
            await stream.read(1)

        async with serving(called, echo):
            stream = await caller.open(called.peer_id, addresses, "test/1")
            lane, back = stream.lane(), memoryview(bytearray(len(data)))
            async with asyncio.timeout(20), asyncio.TaskGroup() as both:
                both.create_task(in_thread(lambda: lane.send(data), lane.abort))
                both.create_task(in_thread(lambda: lane.receive_into(back), lane.abort))
            assert bytes(back) == data
            assert min(lane.sent, lane.received) >= len(data)
            await stream.close()

    async def test_an_early_end_is_an_error(self, pair: Pair) -> None:
        """A reader that was promised more finds the stream lost, and `read` sees its end."""
        caller, called, addresses = pair

        async def short(stream: Stream) -> None:
            await stream.write(b"abc")
            await stream.readexactly(1)

        async with serving(called, short):
            stream = await caller.open(called.peer_id, addresses, "test/1")
            assert await stream.readexactly(3) == b"abc"
            await stream.write(b"x")
            with pytest.raises(AveragingError):
                await stream.readexactly(1)
            stream.abort()

    async def test_a_blocked_write_ends_when_it_is_cancelled(self, pair: Pair) -> None:
        """Nobody reads: writing waits, holds a bounded amount, and the deadline frees it at once."""
        caller, called, addresses = pair

        async def deaf(stream: Stream) -> None:
            await asyncio.sleep(30)

        async with serving(called, deaf):
            stream = await caller.open(called.peer_id, addresses, "test/1")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(write_forever(stream), 1.0)
            assert stream.bytes_written < 100 << 20
            stream.abort()

    async def test_abort_wakes_the_other_side(self, pair: Pair) -> None:
        """The peer of an aborted stream sees it end."""
        caller, called, addresses = pair
        ended = asyncio.Event()

        async def wait(stream: Stream) -> None:
            with contextlib.suppress(AveragingError):
                assert await stream.read(1) == b""
            ended.set()

        async with serving(called, wait):
            stream = await caller.open(called.peer_id, addresses, "test/1")
            stream.abort()
            stream.abort()
            async with asyncio.timeout(5):
                await ended.wait()

    async def test_unserve_cancels_and_then_refuses(self, pair: Pair) -> None:
        """Running handlers end, later streams are refused, and the protocol can be served anew."""
        caller, called, addresses = pair
        cancelled = asyncio.Event()

        async def hang(stream: Stream) -> None:
            try:
                await stream.write(b"!")
                await asyncio.sleep(30)
            finally:
                cancelled.set()

        await called.serve("test/1", hang)
        with pytest.raises(AveragingError, match="already"):
            await called.serve("test/1", hang)
        stream = await caller.open(called.peer_id, addresses, "test/1")
        assert await stream.readexactly(1) == b"!"
        await called.unserve("test/1")
        assert cancelled.is_set()
        stream.abort()
        with pytest.raises(AveragingError):
            await read_one(caller, called, addresses)
        await called.serve("test/1", hang)
        await called.unserve("test/1")


Pair = tuple[Transport, Transport, tuple[str, ...]]


async def write_forever(stream: Stream) -> None:
    while True:
        await stream.write(bytes(1 << 20))


async def read_one(caller: Transport, called: Transport, addresses: tuple[str, ...]) -> bytes:
    stream = await caller.open(called.peer_id, addresses, "test/1")
    try:
        return await stream.readexactly(1)
    finally:
        stream.abort()


class serving:  # noqa: N801 - reads as a statement in `async with`
    """A handler of "test/1" for the length of a block."""

    def __init__(self, transport: Transport, handler: object) -> None:
        self._transport = transport
        self._handler = handler

    async def __aenter__(self) -> None:
        await self._transport.serve("test/1", self._handler)  # type: ignore[arg-type]  # checked by each test's use

    async def __aexit__(self, *error: object) -> None:
        await self._transport.unserve("test/1")
