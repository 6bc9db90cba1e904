"""What only a real socket shows: ports, slow and greedy peers, shutdown, and bytes that are no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from bittensor.keyfiles import Keypair
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from template.clock import ManualClock
from template.errors import ConfigurationError
from template.telemetry import MemorySink
from template.transport.axon import Axon, AxonConfig
from template.transport.dendrite import Dendrite, Target
from template.transport.envelope import sign_request
from template.transport.server import bind
from tests.template.transport.wires import ALICE, BOB, RUN, Handlers, Ping, Pong, Register, axon_of

PING = Ping(run_id=RUN, number=7)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_port_in_use_names_the_flag_and_the_remedy(handlers: Handlers) -> None:
    """The operator reads which flag to set and how to see who holds the port."""
    async with axon_of(handlers) as first:
        second = axon_of(handlers, port=first.port)
        with pytest.raises(ConfigurationError, match=r"--axon\.port.*ss -ltnp") as error:
            await second.start()
    assert str(first.port) in str(error.value)


async def test_small_answers_do_not_wait_for_acknowledgements() -> None:
    """The listening socket is of the kind for which asyncio sets TCP_NODELAY on each connection."""
    listener = bind("127.0.0.1", 0)
    with listener:
        assert listener.proto == socket.IPPROTO_TCP


async def test_an_address_of_another_machine_is_refused(handlers: Handlers) -> None:
    """Listening where this machine is not is a matter of configuration."""
    with pytest.raises(ConfigurationError, match=r"--axon\.ip"):
        await axon_of(handlers, ip="192.0.2.1").start()


@pytest.mark.parametrize("change", [{"port": 65536}, {"port": -1}, {"max_body_bytes": 0}, {"hotkey_rate": -1.0}])
def test_impossible_settings_are_refused_naming_the_flag(change: dict[str, float]) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigurationError, match=f"--axon.{next(iter(change))}"):
        AxonConfig(**change)  # type: ignore[arg-type]


async def test_what_is_published_is_what_others_can_reach(handlers: Handlers) -> None:
    """The external address and port where configured, else the port listened on."""
    async with axon_of(handlers) as plain:
        assert plain.published == (None, plain.port)
    async with axon_of(handlers, external_ip="203.0.113.9", external_port=4242) as mapped:
        assert mapped.published == ("203.0.113.9", 4242)


async def test_an_axon_is_opened_once(handlers: Handlers) -> None:
    """Neither twice nor again after close; closing twice is nothing."""
    axon = axon_of(handlers)
    with pytest.raises(RuntimeError, match="not listening"):
        _ = axon.port
    async with axon:
        with pytest.raises(RuntimeError, match="once"):
            await axon.start()
    await axon.close()
    with pytest.raises(RuntimeError, match="once"):
        await axon.start()


def test_a_synapse_is_attached_once(handlers: Handlers) -> None:
    """A second handler would silently replace the first."""
    with pytest.raises(ValueError, match="attached already"):
        axon_of(handlers).attach(Ping, handlers.ping, validators_only=False)


def test_an_ed25519_hotkey_cannot_serve() -> None:
    """Its signatures would be refused by everybody."""
    with pytest.raises(ConfigurationError, match="sr25519"):
        Axon(Keypair.create_from_uri("//Bob", crypto_type=0), RUN, Register())


async def test_the_port_is_free_after_close(handlers: Handlers) -> None:
    """A restart finds its port, with connections of the first life still dying."""
    async with axon_of(handlers) as first, Dendrite(ALICE) as dendrite:
        await dendrite.call(Target(1, first.hotkey, "127.0.0.1", first.port), PING, 5)
        port = first.port
        await first.close()
        async with axon_of(handlers, port=port) as second:
            assert second.port == port


async def test_requests_from_before_the_opening_are_stale(handlers: Handlers) -> None:
    """What was signed between building and opening the axon may have been taken by the process before."""
    clock = ManualClock()
    axon = axon_of(handlers, clock=clock)
    body = PING.model_dump_json().encode()
    nonce = int(clock.time() * 1e9)
    signed = sign_request(ALICE, target="/Ping", body=body, receiver=BOB.ss58_address, nonce=nonce)
    await clock.advance(1)
    async with axon, httpx.AsyncClient(base_url=f"http://127.0.0.1:{axon.port}", trust_env=False) as client:
        answer = await client.post("/Ping", content=body, headers=signed.headers)
    assert (answer.json()["reason"], handlers.calls) == ("stale", 0)


async def test_signals_stay_with_the_neuron(handlers: Handlers) -> None:
    """Serving does not touch the handlers of SIGINT and SIGTERM."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with axon_of(handlers):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_closing_tells_those_who_wait(sink: MemorySink) -> None:
    """A request whose handler does not end is answered 503, signed, within the time to close."""

    class Slow(Handlers):
        entered = asyncio.Event()

        async def ping(self, message: Ping, caller: object) -> Pong:
            self.entered.set()
            await asyncio.Event().wait()
            raise AssertionError

    slow = Slow()
    axon = axon_of(slow, sink, close_s=0.2)
    async with axon, Dendrite(ALICE) as dendrite:
        asking = asyncio.create_task(dendrite.call(Target(1, axon.hotkey, "127.0.0.1", axon.port), PING, 30))
        await asyncio.wait_for(slow.entered.wait(), 5)
        start = time.monotonic()
        await axon.close()
        assert time.monotonic() - start < 2
        outcome = await asking
    assert (outcome.status, outcome.reason) == (503, "closing")
    assert outcome.evidence is not None


async def test_closing_does_not_wait_for_the_idle_and_the_half_open(handlers: Handlers) -> None:
    """Connections without a request, or with half of one, do not hold up a stop."""
    axon = axon_of(handlers, close_s=0.2)
    async with axon, connected(axon.port), connected(axon.port) as (_, half), connected(axon.port) as (_, body):
        half.write(b"POST /Ping HT")
        body.write(b"POST /Ping HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        await asyncio.sleep(0.1)
        start = time.monotonic()
        await axon.close()
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("dripped", [b"", b"P", b"POST /Ping HTTP/1.1\r\nhost: x\r\nx-long: "])
async def test_headers_that_never_end_are_cut_off(handlers: Handlers, dripped: bytes) -> None:
    """However steadily a peer drips, its headers must be complete in time."""
    async with axon_of(handlers, header_s=0.3) as axon, connected(axon.port) as (reader, writer):
        writer.write(dripped)

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.05)
                writer.write(b"x")

        dripping = asyncio.create_task(drip())
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 5)
        assert time.monotonic() - start < 2
        dripping.cancel()
        await asyncio.wait({dripping})


async def test_a_second_request_on_a_connection_must_hurry_too(handlers: Handlers) -> None:
    """The limit counts again after an answered request."""
    async with axon_of(handlers, header_s=0.3) as axon, connected(axon.port) as (reader, writer):
        writer.write(b"POST /Ping HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        assert b"401" in await reader.readline()
        writer.write(b"POST /Ping HT")
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 5)
        assert time.monotonic() - start < 2


async def test_a_body_that_never_ends_is_cut_off(handlers: Handlers, sink: MemorySink) -> None:
    """With an answer that says so."""
    async with axon_of(handlers, sink, body_s=0.3) as axon, connected(axon.port) as (reader, writer):
        writer.write(b"POST /Ping HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"body_timeout"' in answer
    assert [record["reason"] for record in sink.records] == ["body_timeout"]


async def test_an_endless_chunked_body_is_not_read(handlers: Handlers) -> None:
    """The server stops near the cap however much the peer would send."""
    async with axon_of(handlers, max_body_bytes=1000) as axon, connected(axon.port) as (reader, writer):
        writer.write(b"POST /Ping HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 2**26 and not reader.at_eof():
                writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                await writer.drain()
                sent += 65536
        assert sent < 2**26


async def test_an_idle_connection_is_closed(handlers: Handlers) -> None:
    """Keep-alive has an end."""
    async with axon_of(handlers, idle_s=0.2) as axon, connected(axon.port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_a_peer_that_does_not_read_is_dropped(handlers: Handlers) -> None:
    """An answer nobody takes does not hold its memory for long."""
    handlers.padding = 2**24
    async with axon_of(handlers, write_s=0.3) as axon, connected(axon.port) as (reader, writer):
        body = PING.model_dump_json().encode()
        nonce = time.time_ns()
        signed = sign_request(ALICE, target="/Ping", body=body, receiver=BOB.ss58_address, nonce=nonce)
        head = "".join(f"{name}: {value}\r\n" for name, value in signed.headers.items())
        writer.write(f"POST /Ping HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode() + body)
        await asyncio.sleep(1.0)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(2**24)


async def test_connections_of_one_place_are_bounded(handlers: Handlers, sink: MemorySink) -> None:
    """The one too many gets 503 and is counted; room is made when one leaves."""
    async with axon_of(handlers, sink, max_connections_per_address=2) as axon:
        async with connected(axon.port), connected(axon.port), connected(axon.port) as (reader, _):
            answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.split(b"\r\n\r\n")[1])["reason"] == "too_many_connections"
        await asyncio.sleep(0.05)
        async with connected(axon.port) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"401" in await reader.readline()
    assert [record["reason"] for record in sink.records] == ["too_many_connections", "unsigned"]


async def test_a_peer_that_leaves_early_is_no_event(handlers: Handlers, sink: MemorySink) -> None:
    """Hanging up in the middle of a body is nobody's error."""
    async with axon_of(handlers, sink) as axon:
        async with connected(axon.port) as (_, writer):
            writer.write(b"POST /Ping HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
            await writer.drain()
        await asyncio.sleep(0.05)
    assert sink.records == []


def statuses(answer: bytes) -> list[int]:
    lines = [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    return [int(line.split()[1]) for line in lines]


http_like = st.builds(
    lambda method, target, headers, body: (
        method + b" " + target + b" HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n" + body
    ),
    st.sampled_from([b"POST", b"GET", b"HEAD", b"OPTIONS", b"CONNECT", b"BREW", b"post"]),
    st.sampled_from([b"/Ping", b"/", b"*", b"http://x/Ping", b"//", b"/%00", b"/Ping?a=b", b"/" + b"a" * 2000, b"x"]),
    st.sampled_from(
        [
            b"",
            b"content-length: 5\r\n",
            b"content-length: 99999999999999999999999\r\n",
            b"content-length: -1\r\n",
            b"transfer-encoding: chunked\r\n",
            b"expect: 100-continue\r\ncontent-length: 2\r\n",
            b"upgrade: websocket\r\nconnection: upgrade\r\n",
            b"x-bittensor-hotkey: \xff\r\n",
            b"x-bittensor-version: 1\r\nx-bittensor-nonce: 1\r\n",
        ]
    ),
    st.one_of(st.binary(max_size=20), st.sampled_from([b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n"])),
)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.binary(max_size=200), http_like), min_size=10, max_size=25))
def test_no_bytes_cause_a_server_error(blobs: list[bytes]) -> None:
    """Whatever arrives at the socket is answered with a refusal or hung up on, and the next caller is served."""

    async def scenario() -> None:
        handlers, sink = Handlers(), MemorySink()
        async with axon_of(handlers, sink, body_s=0.2, header_s=0.2, close_s=0.1) as axon:
            for blob in blobs:
                async with connected(axon.port) as (reader, writer):
                    writer.write(blob)
                    if writer.can_write_eof():
                        writer.write_eof()
                    with contextlib.suppress(ConnectionError):
                        answer = await asyncio.wait_for(reader.read(), 5)
                        assert all(status in {100} or 400 <= status < 500 for status in statuses(answer)), (
                            blob,
                            answer,
                        )
            async with Dendrite(ALICE) as dendrite:
                outcome = await dendrite.call(Target(1, axon.hotkey, "127.0.0.1", axon.port), PING, 5)
            assert (outcome.reason, handlers.calls) == ("ok", 1)
            assert "internal" not in {record.get("reason") for record in sink.records}

    asyncio.run(scenario())


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["POST", "GET", "PUT", "HEAD", "X"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
    st.one_of(
        st.binary(max_size=60), st.recursive(st.none() | st.floats() | st.text(), st.lists).map(repr).map(str.encode)
    ),
)
def test_no_signed_request_causes_a_server_error(method: str, path: str, body: bytes) -> None:
    """A registered caller who sends nonsense is refused for it, with 400 to 499, and reaches no handler."""

    async def scenario() -> int:
        axon = axon_of(handlers)
        transport = httpx.ASGITransport(axon.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            request = client.build_request(method, httpx.URL("http://x/Ping" + path[:1]), content=body)
            target = request.url.raw_path.decode()
            signed = sign_request(ALICE, target=target, body=body, receiver=BOB.ss58_address, nonce=time.time_ns())
            request.headers.update(signed.headers)
            return (await client.send(request)).status_code

    handlers = Handlers()
    assert 400 <= asyncio.run(scenario()) < 500
    assert handlers.calls == 0
