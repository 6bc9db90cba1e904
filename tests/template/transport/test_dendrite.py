"""What an asker endures from servers that are broken or hostile, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from template.errors import BadResponse, ConfigurationError, Refused, Unreachable
from template.telemetry import MemorySink, Telemetry
from template.transport.dendrite import Dendrite, DendriteConfig, Outcome, Target
from template.transport.envelope import SignedRequest, sign_answer
from tests.template.transport.wires import ALICE, BOB, EVE, RUN, Handlers, Ping, Pong, Secret, axon_of

PING = Ping(run_id=RUN, number=7)
PONG = Pong(number=7, caller=0).model_dump_json().encode()
Talk = Callable[[SignedRequest, asyncio.StreamWriter], Awaitable[None]]


async def received(reader: asyncio.StreamReader) -> SignedRequest:
    """The request that arrived, taken apart by hand."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
    return SignedRequest(
        method="POST",
        target=head[0].split()[1],
        body=await reader.readexactly(int(headers["content-length"])),
        nonce=int(headers["x-bittensor-nonce"]),
        sender=headers["x-bittensor-hotkey"],
        receiver=headers["x-bittensor-receiver"],
        signature=headers["x-bittensor-signature"],
    )


@contextlib.asynccontextmanager
async def server(talk: Talk) -> AsyncIterator[Target]:
    """A server at Bob's address that answers with whatever `talk` writes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await talk(await received(reader), writer)
                await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    tasks: set[asyncio.Task[None]] = set()
    running = await asyncio.start_server(
        lambda reader, writer: tasks.add(asyncio.create_task(serve(reader, writer), name="serve")), "127.0.0.1", 0
    )
    async with running:
        yield Target(1, BOB.ss58_address, "127.0.0.1", running.sockets[0].getsockname()[1])
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def response(status: int, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    lines = {"content-length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body


async def told(talk: Talk, config: DendriteConfig | None = None, deadline_s: float = 5) -> Outcome:
    async with server(talk) as target, Dendrite(ALICE, config) as dendrite:
        return await dendrite.call(target, PING, deadline_s)


def saying(status: int, body: bytes, *, signer: object = None, headers: dict[str, str] | None = None) -> Talk:
    """Answer with this, signed by `signer` if there is one."""

    async def talk(request: SignedRequest, writer: asyncio.StreamWriter) -> None:
        signed = sign_answer(signer, request, status, body) if signer else {}  # type: ignore[arg-type]
        writer.write(response(status, body, signed | (headers or {})))

    return talk


async def test_a_server_written_by_hand_can_answer() -> None:
    """The protocol is what its description says: another implementation is understood."""
    outcome = await told(saying(200, PONG, signer=BOB))
    assert outcome.expect(Pong).number == 7


@pytest.mark.parametrize(
    ("talk", "word"),
    [
        (saying(200, PONG), "not signed"),
        (saying(200, PONG, signer=EVE), "another hotkey"),
        (saying(200, PONG, headers={"x-answer-hotkey": BOB.ss58_address, "x-answer-signature": "0x00"}), "not hold"),
        (saying(403, b"{}", headers={"x-answer-hotkey": BOB.ss58_address}), "not signed"),
        (saying(200, b"{}", signer=BOB), "not a Pong"),
        (saying(200, PONG + b"!", signer=BOB), "not a Pong"),
        (saying(200, b"[" * 100_000, signer=BOB), "not a Pong"),
        (saying(302, b"", headers={"location": "http://127.0.0.1:1/"}), "302"),
        (saying(204, b"", signer=BOB), "204"),
    ],
)
async def test_what_is_no_signed_answer_is_a_bad_response(talk: Talk, word: str) -> None:
    """Unsigned, signed by another, of another shape, or a redirect: never a response."""
    outcome = await told(talk)
    assert isinstance(outcome.error, BadResponse)
    assert word in str(outcome.error)
    assert outcome.response is None


async def test_an_answer_to_another_question_is_a_bad_response() -> None:
    """A server cannot answer with what it signed before."""
    first: list[bytes] = []

    async def talk(request: SignedRequest, writer: asyncio.StreamWriter) -> None:
        first.append(response(200, PONG, sign_answer(BOB, request, 200, PONG)))
        writer.write(first[0])

    async with server(talk) as target, Dendrite(ALICE) as dendrite:
        reasons = [(await dendrite.call(target, PING, 5)).reason for _ in range(2)]
    assert reasons == ["ok", "bad_response"]


async def test_an_answer_of_the_right_neuron_but_wrong_shape_is_evidence() -> None:
    """A miner that signs nonsense can be shown to have done so."""
    outcome = await told(saying(200, b'{"nonsense": 1}', signer=BOB))
    assert outcome.evidence is not None
    outcome.evidence.verify()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"reason": "busy", "detail": "later"}', "busy"),
        (b'{"reason": "a word\\nand more", "detail": ""}', "unexplained"),
        (b"<html>", "unexplained"),
        (b"", "unexplained"),
    ],
)
async def test_an_unsigned_refusal_is_only_a_refusal(body: bytes, reason: str) -> None:
    """Its word is passed on if it is one; it proves nothing."""
    outcome = await told(saying(503, body))
    assert isinstance(outcome.error, Refused)
    assert (outcome.status, outcome.reason, outcome.evidence) == (503, reason, None)


async def test_a_refusals_text_cannot_write_to_a_terminal() -> None:
    """Control characters of a stranger do not get through, nor more than a little text."""
    detail = json.dumps({"reason": "no", "detail": "\x1b[2J\n" + "x" * 100_000})
    outcome = await told(saying(403, detail.encode(), signer=BOB))
    assert str(outcome.error).isprintable()
    assert len(str(outcome.error)) <= 500


async def test_a_declared_flood_and_an_undeclared_one_are_cut_off() -> None:
    """Neither a content-length nor endless chunks make the asker read on."""

    async def endless(request: SignedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(2000):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()

    for talk in (endless, saying(200, b"x" * 2**24, signer=BOB)):
        outcome = await told(talk, DendriteConfig(max_response_bytes=100_000))
        assert (outcome.reason, outcome.response) == ("bad_response", None)
        assert outcome.bytes < 2**20


async def test_a_compressed_flood_is_not_unpacked() -> None:
    """Bodies are taken as they come: what is small on the wire stays small."""
    bomb = zlib.compress(b"0" * 2**26)
    outcome = await told(saying(200, bomb, signer=BOB, headers={"content-encoding": "deflate"}))
    assert (outcome.reason, outcome.bytes) == ("bad_response", len(bomb))


@pytest.mark.parametrize("said", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"])
async def test_a_broken_connection_is_an_outcome(said: bytes) -> None:
    """Nothing, no HTTP, or half an answer."""

    async def talk(request: SignedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    assert isinstance((await told(talk)).error, BadResponse)


async def test_a_drip_does_not_outlast_the_deadline() -> None:
    """A byte now and then is no progress."""

    async def talk(request: SignedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    outcome = await told(talk, deadline_s=0.3)
    assert outcome.reason == "deadline"
    assert outcome.status == 200
    assert 0.25 < outcome.seconds < 1.5
    assert outcome.bytes > 0


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.text(max_size=20), st.sampled_from(["", "0.0.0.0/x", "a@b", "[::1", "::g", "x:1", "a" * 300])),
    st.integers(-5, 0),
)
def test_an_address_that_is_none_is_unreachable(host: str, port: int) -> None:
    """Whatever stands in the metagraph, asking it is an outcome. (Port 0 is what a neuron without an axon has.)"""

    async def scenario() -> Outcome:
        async with Dendrite(ALICE) as dendrite:
            return await dendrite.call(Target(1, BOB.ss58_address, host, port), PING, 5)

    assert isinstance(asyncio.run(scenario()).error, Unreachable)


@pytest.mark.parametrize("host", ["a b", "a/b", "a@b", "[::1", "::g", "x:1", "a" * 300, "\x00", "-", "xn--\xe9"])
async def test_a_host_that_is_none_is_unreachable(host: str) -> None:
    """A name that is no name fails like a machine that is off."""
    async with Dendrite(ALICE, DendriteConfig(connect_s=2)) as dendrite:
        outcome = await dendrite.call(Target(1, BOB.ss58_address, host, 9), PING, 5)
    assert isinstance(outcome.error, Unreachable)


async def test_an_ipv6_address_is_reached(handlers: Handlers) -> None:
    """Written as the metagraph writes it, without brackets."""
    async with axon_of(handlers, ip="::1") as axon, Dendrite(ALICE) as dendrite:
        outcome = await dendrite.call(Target(1, axon.hotkey, "::1", axon.port), PING, 5)
    assert outcome.reason == "ok"


async def test_the_environments_proxies_are_not_used(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment would see, and could stop, the subnet's traffic."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with axon_of(handlers) as axon, Dendrite(ALICE) as dendrite:
        outcome = await dendrite.call(Target(1, axon.hotkey, "127.0.0.1", axon.port), PING, 5)
    assert outcome.reason == "ok"


async def test_no_more_than_the_set_number_is_under_way() -> None:
    """Concurrency is bounded, and all get their answer."""
    under_way, most = 0, 0

    async def talk(request: SignedRequest, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way, most
        under_way, most = under_way + 1, max(most, under_way + 1)
        await asyncio.sleep(0.02)
        under_way -= 1
        writer.write(response(200, PONG, sign_answer(BOB, request, 200, PONG) | {"connection": "close"}))

    async with server(talk) as target, Dendrite(ALICE, DendriteConfig(concurrency=3)) as dendrite:
        targets = [Target(uid, target.hotkey, target.host, target.port) for uid in range(12)]
        outcomes = await dendrite.broadcast(targets, PING, 10)
    assert {outcome.reason for outcome in outcomes.values()} == {"ok"}
    assert most == 3


async def test_a_cancelled_fan_out_leaves_nothing_behind() -> None:
    """Cancelling the asker cancels what it asked."""

    async def talk(request: SignedRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    async with server(talk) as target, Dendrite(ALICE) as dendrite:
        before = asyncio.all_tasks()
        asking = asyncio.create_task(dendrite.call(target, PING, 30))
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.wait({asking})
        left = [task for task in asyncio.all_tasks() - before if "serve" not in repr(task)]
    assert asking.cancelled()
    assert left == []


async def test_the_wrong_uid_and_a_uid_twice_are_the_callers_bug() -> None:
    """They would give an outcome to the wrong neuron."""
    target = Target(1, BOB.ss58_address, "127.0.0.1", 1)
    async with Dendrite(ALICE) as dendrite:
        with pytest.raises(ValueError, match="twice"):
            await dendrite.broadcast([target, target], PING, 1)
        with pytest.raises(ValueError, match="uid 1"):
            await dendrite.fan_out({2: (target, PING)}, 1)


async def test_expecting_another_kind_is_the_callers_bug(handlers: Handlers) -> None:
    """`expect` raises the outcome's error, or TypeError for another class."""
    async with axon_of(handlers) as axon, Dendrite(ALICE) as dendrite:
        outcome = await dendrite.call(Target(1, axon.hotkey, "127.0.0.1", axon.port), Secret(run_id=RUN), 5)
        with pytest.raises(TypeError, match="Pong"):
            outcome.expect(Other)
        missing = await dendrite.call(Target(1, axon.hotkey, "127.0.0.1", 1), PING, 5)
        with pytest.raises(Unreachable):
            missing.expect(Pong)


class Other(Pong):
    """Not what was asked for."""


async def test_each_call_is_an_event() -> None:
    """With what a person needs to see why a neuron did not answer."""
    sink = MemorySink()
    async with Dendrite(ALICE, telemetry=Telemetry([sink])) as dendrite:
        await dendrite.call(Target(5, BOB.ss58_address, "127.0.0.1", 1), PING, 5)
    (record,) = sink.records
    assert (record["kind"], record["uid"], record["synapse"], record["reason"]) == (
        "CallEnded",
        5,
        "Ping",
        "unreachable",
    )
    assert "127.0.0.1:1" in record["detail"]
    json.dumps(record)


@pytest.mark.parametrize("setting", ["concurrency", "max_response_bytes", "connect_s", "idle_s"])
def test_impossible_settings_are_refused(setting: str) -> None:
    """Naming the flag."""
    with pytest.raises(ConfigurationError, match=setting):
        DendriteConfig(**{setting: 0})  # type: ignore[arg-type]
