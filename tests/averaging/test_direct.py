"""Direct streams: the contract of all transports, who is refused, limits, reuse, and blocked calls that end."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from distributed_training.averaging.direct import DirectConfig, DirectStream, DirectTransport, direct_addresses
from distributed_training.averaging.lane import in_thread
from distributed_training.averaging.sealed import FRAME
from distributed_training.averaging.streams import Stream
from distributed_training.averaging.tls import Trust
from template.errors import AveragingError
from tests.averaging.direct_pairs import address_of, direct_transports, host_key
from tests.averaging.stream_contract import Pair, StreamContract, serving

CONFIG = DirectConfig(host="127.0.0.1", dial_seconds=1.0, handshake_seconds=1.0, end_seconds=1.0)


@pytest_asyncio.fixture
async def two(tmp_path: Path) -> AsyncIterator[list[DirectTransport]]:
    async with direct_transports([host_key(number, tmp_path) for number in range(2)], CONFIG) as transports:
        yield transports


class TestDirectStreams(StreamContract):
    @pytest.fixture
    def pair(self, two: list[DirectTransport]) -> Pair:
        return two[0], two[1], address_of(two[1])


# Who is refused


@contextlib.asynccontextmanager
async def started(number: int, folder: Path) -> AsyncIterator[DirectTransport]:
    transport = DirectTransport(host_key(number, folder), CONFIG)
    await transport.start()
    try:
        yield transport
    finally:
        await transport.close()


def refuse(_: Stream) -> None:
    raise AssertionError("a stranger was served")


async def test_a_caller_that_is_not_known_gets_nowhere(two: list[DirectTransport], tmp_path: Path) -> None:
    """It knows the called one, but not the other way round."""
    async with started(2, tmp_path) as stranger, serving(two[1], refuse):
        stranger.trust(two[1].peer_id, two[1].certificate)
        with pytest.raises(AveragingError, match="cannot be reached"):
            await stranger.open(two[1].peer_id, address_of(two[1]), "test/1")


async def test_somebody_else_at_the_address_is_not_spoken_to(two: list[DirectTransport], tmp_path: Path) -> None:
    """Neither a peer that we know under its own name, nor one with the right name and another key."""
    async with started(2, tmp_path) as other, started(1, tmp_path) as twin:
        two[0].trust(other.peer_id, other.certificate)
        other.trust(two[0].peer_id, two[0].certificate)
        twin.trust(two[0].peer_id, two[0].certificate)
        for wrong in (other, twin):
            with pytest.raises(AveragingError, match="cannot be reached"):
                await two[0].open(two[1].peer_id, address_of(wrong), "test/1")
            two[0]._unreachable.clear()


async def test_a_certificate_of_another_peer_is_not_trusted(two: list[DirectTransport], tmp_path: Path) -> None:
    """A member cannot pass somebody's certificate, even a good one, off as its own."""
    async with started(2, tmp_path) as other:
        with pytest.raises(AveragingError, match="was given for"):
            two[0].trust(two[1].peer_id, other.certificate)


async def test_a_replaced_certificate_is_refused(two: list[DirectTransport], tmp_path: Path) -> None:
    """After a restart a peer has a new key; the old one opens nothing any more."""
    async with started(0, tmp_path) as restarted, serving(two[1], refuse):
        two[1].trust(restarted.peer_id, restarted.certificate)
        with pytest.raises(AveragingError, match="cannot be reached"):
            await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_caller_without_a_certificate_is_refused(two: list[DirectTransport], version: ssl.TLSVersion) -> None:
    """And one that speaks an older TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode, context.maximum_version = False, ssl.CERT_NONE, version

    def knock() -> bytes:
        with socket.create_connection(("127.0.0.1", two[1].port), timeout=5) as raw, context.wrap_socket(raw) as tls:
            return tls.recv(1)

    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(knock)


async def test_there_are_no_session_tickets(two: list[DirectTransport]) -> None:
    """Every connection proves both identities anew."""
    stream = await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")
    tls = stream.connection.tls._tls
    assert tls.version() == "TLSv1.3"
    assert tls.session is None or not tls.session.has_ticket
    stream.abort()


def test_replaced_certificates_do_not_pile_up(tmp_path: Path) -> None:
    """OpenSSL's store is made anew from time to time, with those that count."""
    now = datetime.datetime.now(datetime.UTC)
    trust = Trust(host_key(0, tmp_path), lambda: now)
    for _ in range(80):
        other = Trust(host_key(1, tmp_path), lambda: now)
        trust.add(host_key(1, tmp_path).peer_id, other.certificate)
        assert trust._loaded <= 67
    assert list(trust._peers) == [other.certificate]


# Limits


async def knock(transport: DirectTransport, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", transport.port)
    writer.write(data)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), bytes(70_000)])
async def test_what_is_not_tls_is_dropped_in_time(two: list[DirectTransport], data: bytes) -> None:
    """Silence included; the next caller is served."""
    await knock(two[1], data)
    await (await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")).close()


async def test_a_giant_frame_is_not_read(two: list[DirectTransport]) -> None:
    """Four gigabytes announced by a proven peer, nothing allocated."""
    failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read(stream: Stream) -> None:
        try:
            await stream.read(1)
        except AveragingError as error:
            failed.set_result(str(error))

    async with serving(two[1], read):
        stream = await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")
        stream.connection.raw.sendall(b"\xff\xff\xff\xff")
        async with asyncio.timeout(5):
            assert "4294967295" in await failed
        stream.abort()


async def test_a_changed_byte_ends_the_stream(two: list[DirectTransport]) -> None:
    """Frames cannot be forged, and repeating one is forging it."""
    for forge in (lambda f: f[:9] + bytes([f[9] ^ 1]) + f[10:], lambda f: f + f):
        failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def read(stream: Stream, failed: asyncio.Future[str] = failed) -> None:
            try:
                await stream.readexactly(10_000)
            except AveragingError as error:
                failed.set_result(str(error))

        async with serving(two[1], read):
            stream = await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")
            sent: list[bytes] = []
            real, stream.connection.raw = stream.connection.raw, _Tap(sent)  # type: ignore[assignment]
            await stream.write(bytes(5000))
            stream.connection.raw = real
            real.sendall(forge(sent[0]))
            async with asyncio.timeout(5):
                assert "not sealed" in await failed
            stream.abort()


class _Tap:
    """A socket that keeps what it should send."""

    def __init__(self, sent: list[bytes]) -> None:
        self._sent = sent

    def sendall(self, data: memoryview, flags: int) -> None:
        self._sent.append(bytes(data))


async def test_an_end_without_a_word_is_a_loss(two: list[DirectTransport]) -> None:
    """Cutting the connection does not look like the end of the stream."""
    failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read(stream: Stream) -> None:
        try:
            while await stream.read(10):
                pass
            failed.set_result("")
        except AveragingError as error:
            failed.set_result(str(error))

    async with serving(two[1], read):
        stream = await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")
        await stream.write(b"abc")
        stream.abort()
        async with asyncio.timeout(5):
            assert "cut off" in await failed


async def test_a_peer_has_a_few_connections_at_most(two: list[DirectTransport]) -> None:
    """More are refused; others are not in its way."""

    async def hold(stream: Stream) -> None:
        await stream.read(1)

    async with serving(two[1], hold):
        streams = [await two[0].open(two[1].peer_id, address_of(two[1]), "test/1") for _ in range(CONFIG.per_peer)]
        with pytest.raises(AveragingError):
            await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")
        for stream in streams:
            stream.abort()


# Unreachable peers


async def test_an_unreachable_peer_is_found_out_soon_and_remembered(two: list[DirectTransport]) -> None:
    """A closed port at once, a silent one after the limit; the second try costs nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        silent_port = silent.getsockname()[1]
        for port, limit in [(1, 0.5), (silent_port, 1.5)]:
            began = time.monotonic()
            with pytest.raises(AveragingError, match="cannot be reached"):
                await two[0].open(two[1].peer_id, (f"/ip4/127.0.0.1/tcp/{port}",), "test/1")
            assert time.monotonic() - began < limit
            began = time.monotonic()
            with pytest.raises(AveragingError, match="a short while ago"):
                await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")
            assert time.monotonic() - began < 0.1
            two[0]._unreachable.clear()


async def test_a_peer_that_started_anew_is_tried_at_once(two: list[DirectTransport], tmp_path: Path) -> None:
    """A new certificate is a new process, which may be reachable where the old one was not."""
    with pytest.raises(AveragingError, match="cannot be reached"):
        await two[0].open(two[1].peer_id, ("/ip4/127.0.0.1/tcp/1",), "test/1")
    async with started(1, tmp_path) as again:
        again.trust(two[0].peer_id, two[0].certificate)
        two[0].trust(again.peer_id, again.certificate)
        await (await two[0].open(again.peer_id, address_of(again), "test/1")).close()


async def test_one_good_address_among_bad_ones_is_enough(two: list[DirectTransport]) -> None:
    """They are tried at the same time."""
    addresses = ("/ip4/127.0.0.1/tcp/1", "/dns4/x/tcp/1", "/ip4/127.0.0.1/udp/1", *address_of(two[1]))
    await (await two[0].open(two[1].peer_id, addresses, "test/1")).close()


def test_direct_addresses_are_the_peers_own() -> None:
    """Its signed IPs with the direct port: no relay's, no name's, each once."""
    signed = (
        "/ip4/1.2.3.4/tcp/5/p2p/Qm",
        "/ip4/1.2.3.4/tcp/6/p2p/Qm",
        "/ip6/::1/tcp/5",
        "/dns4/host/tcp/5",
        "/ip4/9.9.9.9/tcp/5/p2p/Relay/p2p-circuit/p2p/Qm",
    )
    assert direct_addresses(signed, 7) == ("/ip4/1.2.3.4/tcp/7", "/ip6/::1/tcp/7")


# Reuse


async def test_a_connection_is_used_again(two: list[DirectTransport]) -> None:
    """Twenty streams one after another over one connection; neither descriptors nor threads grow."""
    seen: list[int] = []

    async def echo(stream: Stream) -> None:
        assert isinstance(stream, DirectStream)
        seen.append(stream.connection.raw.fileno())
        while data := await stream.read(FRAME):
            await stream.write(data)

    async with serving(two[1], echo):
        counts = []
        for number in range(20):
            stream = await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")
            await stream.write(struct.pack(">I", number) * 1000)
            assert await stream.readexactly(4000) == struct.pack(">I", number) * 1000
            await stream.close()
            stream.abort()  # comes too late to do harm
            await _until_idle(two[0])
            counts.append((len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))
    assert len(set(seen)) == 1
    assert counts[0] == counts[-1]


async def _until_idle(transport: DirectTransport) -> None:
    async with asyncio.timeout(5):
        while not any(transport._idle.values()):  # noqa: ASYNC110 - the pool has no event
            await asyncio.sleep(0.01)


async def test_a_connection_that_died_while_idle_is_replaced(two: list[DirectTransport]) -> None:
    """The called side may restart between two rounds."""

    async def end(stream: Stream) -> None:
        await stream.read(1)

    async with serving(two[1], end):
        await (await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")).close()
        await _until_idle(two[0])
        for task in list(two[1]._callers):
            task.cancel()
        await asyncio.sleep(0.1)
        stream = await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")
        await stream.close()
        await _until_idle(two[0])


# Threads


async def test_blocked_threads_end_when_their_stream_is_aborted(two: list[DirectTransport]) -> None:
    """One writes to a peer that does not read, one reads from a peer that does not write."""

    async def deaf(stream: Stream) -> None:
        await asyncio.sleep(30)

    async with serving(two[1], deaf):
        stream = await two[0].open(two[1].peer_id, address_of(two[1]), "test/1")
        lane = stream.lane()

        def send() -> None:
            while True:
                lane.send(bytes(1 << 20))

        blocked = [
            asyncio.create_task(in_thread(send, lane.abort)),
            asyncio.create_task(in_thread(lambda: lane.receive_into(memoryview(bytearray(1))), lane.abort)),
        ]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in blocked)
        began = time.monotonic()
        blocked[0].cancel()
        results = await asyncio.gather(*blocked, return_exceptions=True)
        assert time.monotonic() - began < 1
        assert isinstance(results[0], asyncio.CancelledError)
        assert isinstance(results[1], AveragingError)
