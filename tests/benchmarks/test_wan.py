"""The emulated network: rates, queues, NATs and cuts as arithmetic, and a real connection through namespaces."""

from __future__ import annotations

import asyncio
import struct
import sys

import pytest

from benchmarks.links import Case, streams_of
from benchmarks.wan import Gate, Line, Queue, Wan, WanConfig, WanError

SERVER = "import socket,sys; c,_=socket.create_server((sys.argv[1],5300)).accept(); c.sendall(c.recv(9))"
CLIENT = "import socket,sys; c=socket.create_connection((sys.argv[1],5300),1); c.sendall(b'x'); c.recv(9)"


def packet(source: int, source_port: int, target: int, target_port: int) -> bytes:
    """The first bytes of a TCP segment between two hosts."""
    head = bytes([0x45]) + bytes(8) + bytes([6]) + bytes(2)
    return head + bytes([10, 77, 0, source + 1, 10, 77, 0, target + 1]) + struct.pack(">HH", source_port, target_port)


def test_a_queue_lets_through_what_its_rate_allows() -> None:
    """8 Mbit/s are a byte a microsecond; what would wait longer than the queue holds is dropped."""
    queue = Queue(Line(rate=8.0, queue=0.0025))
    assert [queue.through(1000, 5.0) for _ in range(4)] == pytest.approx([5.001, 5.002, 5.003, None])
    assert queue.through(1000, 6.0) == pytest.approx(6.001)


def test_a_nat_lets_in_answers_only() -> None:
    """Of the connection that was opened from inside, port by port."""
    gate = Gate([Line(rate=1.0), Line(rate=1.0, nat=True)])
    assert not gate.passes(packet(0, 80, 1, 4000), 0, 1)
    assert gate.passes(packet(1, 4000, 0, 80), 1, 0)
    assert gate.passes(packet(0, 80, 1, 4000), 0, 1)
    assert not gate.passes(packet(0, 80, 1, 4001), 0, 1)


def test_a_cut_drops_both_ways_until_it_is_mended() -> None:
    """Between the two sets, and nowhere else."""
    gate = Gate([Line(rate=1.0)] * 3)
    gate.cut([0], [1])
    assert not gate.passes(packet(0, 1, 1, 1), 0, 1)
    assert not gate.passes(packet(1, 1, 0, 1), 1, 0)
    assert gate.passes(packet(0, 1, 2, 1), 0, 2)
    gate.cut([], [])
    assert gate.passes(packet(0, 1, 1, 1), 0, 1)


def test_the_ideal_is_the_busiest_link() -> None:
    """Four equal members send 2 * 3/4 of the vector; with shares by rate the slow links carry less."""
    case = Case(rates=(100.0,) * 4, rtt=50, size=1_000_000, codec="none", by_rate=False, nat=None)
    assert case.ideal == pytest.approx(1.5 * 32 / 100)
    uneven = Case(rates=(100.0, 300.0), rtt=50, size=1_000_000, codec="none", by_rate=True, nat=None)
    assert uneven.ideal == pytest.approx(max((0.75 + 0.25) * 32 / 100, (0.25 + 0.75) * 32 / 300))


def test_plain_streams_carry_what_a_round_does() -> None:
    """As many bytes each way as `ideal` counts; one side of each opens it, and whom nobody can reach opens its own."""
    case = Case(rates=(100.0,) * 3 + (50.0,), rtt=50, size=1_000_000, codec="none", by_rate=True, nat="reduces")
    hosts = streams_of(case, [("10.0.0.1", port) for port in range(4)])
    ways = [max(sum(stream[way] for stream in streams) for way in ("send", "receive")) for streams in hosts]
    slowest = max(8 * way / 1e6 / rate for way, rate in zip(ways, case.rates, strict=True))
    assert slowest == pytest.approx(case.ideal, rel=1e-3)  # the headers of encodings are not cut like the values
    opened = [stream["number"] for streams in hosts for stream in streams if stream["address"] is not None]
    assert sorted(opened) == list(range(12))
    assert len([stream for stream in hosts[3] if stream["address"] is not None]) == 6
    assert all(stream["address"] != ("10.0.0.1", 3) for streams in hosts for stream in streams)


@pytest.mark.integration
async def test_hosts_reach_each_other_unless_a_nat_forbids() -> None:
    """Through real namespaces, where this machine has them."""

    async def status(client: int, server: int) -> int:
        listening = await asyncio.create_subprocess_exec(
            *wan.command(server), sys.executable, "-c", SERVER, wan.address(server)
        )
        try:
            await asyncio.sleep(0.5)
            calling = await asyncio.create_subprocess_exec(
                *wan.command(client),
                sys.executable,
                "-c",
                CLIENT,
                wan.address(server),
                stderr=asyncio.subprocess.DEVNULL,
            )
            return await calling.wait()
        finally:
            if listening.returncode is None:
                listening.kill()
            await listening.wait()

    lines = (Line(rate=100.0), Line(rate=100.0, nat=True))
    try:
        async with Wan(WanConfig(lines=lines, delay=0.01)) as wan:
            assert await status(1, 0) == 0
            assert await status(0, 1) != 0
    except WanError as error:
        pytest.skip(str(error))
