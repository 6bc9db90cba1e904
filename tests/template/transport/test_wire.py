"""What an axon and a dendrite owe each other, over TCP and in process alike."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import pytest
from bittensor import http_auth
from bittensor.keyfiles import Keypair

from template.clock import ManualClock
from template.errors import BadResponse, DeadlineExceeded, Refused, Unreachable
from template.telemetry import MemorySink
from template.transport.dendrite import DendriteConfig, Outcome, Target
from template.transport.envelope import Evidence, sign_request
from tests.template.transport.wires import (
    ALICE,
    BOB,
    CHARLIE,
    EVE,
    RUN,
    Handlers,
    Ping,
    Pong,
    Register,
    Secret,
    Wire,
    axon_of,
)

PING = Ping(run_id=RUN, number=7)


async def ask(wire: Wire, target: Target, request: Ping | Secret = PING, key: Keypair = ALICE) -> Outcome:
    async with wire.dendrite(key) as dendrite:
        return await dendrite.call(target, request, 10)


def refusals(sink: MemorySink) -> list[tuple[str, str | None, str]]:
    return [(r["reason"], r["caller"], r["synapse"]) for r in sink.records if r["kind"] == "RequestRefused"]


async def test_a_question_is_answered(wire: Wire, handlers: Handlers) -> None:
    """The handler sees message and caller, the asker a typed response and where its time and bytes went."""
    async with wire.serving(axon_of(handlers)) as target:
        outcome = await ask(wire, target)
    assert outcome.expect(Pong) == Pong(number=7, caller=0)
    assert (outcome.status, outcome.reason, outcome.error, outcome.uid) == (200, "ok", None, 1)
    assert outcome.bytes == len(Pong(number=7, caller=0).model_dump_json())
    assert 0 < outcome.seconds < 10


async def test_an_answer_is_evidence(wire: Wire, handlers: Handlers) -> None:
    """A third party can verify from the JSON alone that Bob gave Alice this answer to this question."""
    async with wire.serving(axon_of(handlers)) as target:
        outcome = await ask(wire, target)
    assert outcome.evidence is not None
    evidence = Evidence.from_json(outcome.evidence.to_json())
    evidence.verify()
    assert (evidence.request.sender, evidence.request.receiver) == (ALICE.ss58_address, BOB.ss58_address)
    assert Ping.model_validate_json(evidence.request.body) == PING
    assert Pong.model_validate_json(evidence.body).number == 7


async def test_validators_only_means_permits_only(wire: Wire, handlers: Handlers) -> None:
    """A registered hotkey without a permit may ask what is open, and nothing else."""
    async with wire.serving(axon_of(handlers)) as target:
        assert (await ask(wire, target, key=CHARLIE)).reason == "ok"
        assert (await ask(wire, target, Secret(run_id=RUN))).reason == "ok"
        assert (await ask(wire, target, Secret(run_id=RUN), key=CHARLIE)).reason == "no_permit"
    assert handlers.calls == 2


async def test_a_stranger_is_refused_with_a_signed_reason(wire: Wire, handlers: Handlers, sink: MemorySink) -> None:
    """An unregistered hotkey learns why, can prove it, and reaches no handler."""
    async with wire.serving(axon_of(handlers, sink)) as target:
        outcome = await ask(wire, target, key=EVE)
    assert isinstance(outcome.error, Refused)
    assert (outcome.status, outcome.reason, handlers.calls) == (403, "unregistered", 0)
    assert outcome.evidence is not None
    outcome.evidence.verify()
    assert refusals(sink) == [("unregistered", EVE.ss58_address, "Ping")]


@pytest.mark.parametrize("key", [EVE, CHARLIE])
async def test_nobody_is_refused_by_an_old_view(wire: Wire, handlers: Handlers, key: Keypair) -> None:
    """Whoever registered, or got a permit, since the chain was read is let in; who is known costs no second look, and
    who is gone in the newer view is refused."""
    newer = Register(hotkeys=(key.ss58_address, BOB.ss58_address), validators=frozenset({0}))
    directory = Register(newer=newer)
    async with wire.serving(axon_of(handlers, directory=directory)) as target:
        assert (await ask(wire, target, Secret(run_id=RUN))).reason == "ok"
        assert directory.looks == 0
        assert (await ask(wire, target, Secret(run_id=RUN), key=key)).reason == "ok"
        assert directory.looks == 1
        assert (await ask(wire, target)).reason == "unregistered"
        assert (directory.looks, handlers.calls) == (2, 2)


async def test_only_what_the_view_decides_is_looked_at_again(wire: Wire, handlers: Handlers) -> None:
    """Somebody who is of another run, or signs nothing, does not make this neuron ask the chain."""
    directory = Register()
    async with wire.serving(axon_of(handlers, directory=directory)) as target:
        assert (await ask(wire, target, Ping(run_id="other-run", number=1))).reason == "wrong_run"
        async with wire.raw(target) as client:
            assert (await client.post("/Ping", content=b"{}")).status_code == 401
    assert directory.looks == 0


async def test_another_run_is_refused_naming_both(wire: Wire, handlers: Handlers) -> None:
    """Whoever trains something else is told what is trained here and what was asked for."""
    async with wire.serving(axon_of(handlers)) as target:
        outcome = await ask(wire, target, Ping(run_id="other-run", number=1))
    assert (outcome.status, outcome.reason, handlers.calls) == (409, "wrong_run", 0)
    assert RUN in str(outcome.error)
    assert "other-run" in str(outcome.error)


async def test_an_unknown_synapse_is_refused(wire: Wire, handlers: Handlers) -> None:
    """With the list of what there is."""

    class Unknown(Ping):
        pass

    async with wire.serving(axon_of(handlers)) as target:
        outcome = await ask(wire, target, Unknown(run_id=RUN, number=1))
    assert (outcome.status, outcome.reason) == (404, "unknown_synapse")
    assert "Ping" in str(outcome.error)


async def test_a_synapse_is_posted(wire: Wire, handlers: Handlers) -> None:
    """A signed PUT of a known synapse, with a good body, is refused."""
    body = PING.model_dump_json().encode()
    async with wire.serving(axon_of(handlers)) as target, wire.raw(target) as client:
        # The SDK's own signing: ours knows POST only.
        headers = http_auth.sign(ALICE, method="PUT", path="/Ping", body=body, receiver_ss58=BOB.ss58_address)
        answer = await client.put("/Ping", content=body, headers=headers)
    assert (answer.status_code, answer.json()["reason"], handlers.calls) == (405, "not_post", 0)


async def test_a_handler_may_refuse(wire: Wire, handlers: Handlers) -> None:
    """Its status and word reach the asker, signed."""
    handlers.raises = Refused("epoch 3 is over", status=410, reason="epoch_over")
    async with wire.serving(axon_of(handlers)) as target:
        outcome = await ask(wire, target)
    assert (outcome.status, outcome.reason, str(outcome.error)) == (410, "epoch_over", "epoch 3 is over")
    assert outcome.evidence is not None


async def test_a_bug_in_a_handler_is_logged_and_tells_nothing(
    wire: Wire, handlers: Handlers, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    """The asker gets a bare status 500, the operator the traceback, and the next one is served."""
    handlers.raises = KeyError("path of a secret")
    async with wire.serving(axon_of(handlers, sink)) as target:
        outcome = await ask(wire, target)
        handlers.raises = None
        assert (await ask(wire, target)).reason == "ok"
    assert (outcome.status, outcome.reason) == (500, "internal")
    assert "secret" not in str(outcome.error)
    assert "KeyError: 'path of a secret'" in caplog.text
    assert refusals(sink) == [("internal", ALICE.ss58_address, "Ping")]


@pytest.mark.parametrize("status", [200, 302, 99, 600])
async def test_a_refusal_with_a_status_that_is_none_is_a_bug(wire: Wire, handlers: Handlers, status: int) -> None:
    """A handler cannot make a refusal look like an answer."""
    handlers.raises = Refused("odd", status=status, reason="odd")
    async with wire.serving(axon_of(handlers)) as target:
        assert (await ask(wire, target)).reason == "internal"


async def test_a_handler_that_returns_the_wrong_kind_is_a_bug(wire: Wire) -> None:
    """What is not the synapse's answer never leaves the axon."""

    class Confused(Handlers):
        async def ping(self, message: Ping, caller: object) -> Ping:  # type: ignore[override]
            return message

    async with wire.serving(axon_of(Confused())) as target:
        assert (await ask(wire, target)).reason == "internal"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[" * 100_000, "body"),
        (b"\xff\xfe", "body"),
        (b'{"run_id": "r", "number": NaN}', "number"),
        (b'{"run_id": "r", "number": 1' + b"0" * 5000 + b"}", "number"),
        (b'{"run_id": "r", "number": 1001}', "number"),
        (b'{"run_id": "r", "number": 1, "more": 1}', "more"),
        (b'{"run_id": "../etc", "number": 1}', "run_id"),
    ],
)
async def test_a_malformed_body_is_a_422(wire: Wire, handlers: Handlers, body: bytes, word: str) -> None:
    """Naming the field, from an authenticated caller, before the handler."""
    async with wire.serving(axon_of(handlers)) as target, wire.raw(target) as client:
        signed = signed_now("/Ping", body)
        response = await client.post("/Ping", content=body, headers=signed)
    assert (response.status_code, response.json()["reason"], handlers.calls) == (422, "bad_request", 0)
    assert word in response.json()["detail"]


def signed_now(target: str, body: bytes, receiver: Keypair = BOB, offset_s: float = 0.0) -> dict[str, str]:
    """Alice's headers for the system clock."""
    nonce = int((time.time() + offset_s) * 1e9)
    return sign_request(ALICE, target=target, body=body, receiver=receiver.ss58_address, nonce=nonce).headers


BODY = PING.model_dump_json().encode()


async def test_a_replay_is_refused(wire: Wire, handlers: Handlers, sink: MemorySink) -> None:
    """The same signed bytes work once."""
    async with wire.serving(axon_of(handlers, sink)) as target, wire.raw(target) as client:
        headers = signed_now("/Ping", BODY)
        answers = [await client.post("/Ping", content=BODY, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 401, 401]
    assert handlers.calls == 1
    assert refusals(sink) == [("replay", ALICE.ss58_address, "Ping")] * 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"receiver": CHARLIE}, "other_receiver"),
        ({"offset_s": -11.0}, "stale"),
        ({"offset_s": 4.0}, "stale"),
        ({"offset_s": -3.0}, "stale"),  # from before this axon started
        ({"body": b"{}"}, "bad_signature"),
        ({"target": "/Secret"}, "bad_signature"),
    ],
)
async def test_what_was_not_signed_for_here_and_now_is_refused(
    wire: Wire, handlers: Handlers, sink: MemorySink, changes: dict[str, object], reason: str
) -> None:
    """Other receiver, other time, other body, other path: each by its own word, none reaches the handler."""
    headers = signed_now(**{"target": "/Ping", "body": BODY, **changes})  # type: ignore[arg-type]
    async with wire.serving(axon_of(handlers, sink)) as target, wire.raw(target) as client:
        answer = await client.post("/Ping", content=BODY, headers=headers)
    assert (answer.status_code, answer.json()["reason"], handlers.calls) == (401, reason, 0)
    assert [refusal[0] for refusal in refusals(sink)] == [reason]


async def test_no_signature_no_entry(wire: Wire, handlers: Handlers) -> None:
    """Unsigned, or with a scheme named, whatever the method."""
    async with wire.serving(axon_of(handlers)) as target, wire.raw(target) as client:
        answers = [
            await client.post("/Ping", content=BODY),
            await client.get("/"),
            await client.request("BREW", "/pot"),
            await client.post(
                "/Ping", content=BODY, headers=signed_now("/Ping", BODY) | {"x-bittensor-crypto": "sr25519"}
            ),
        ]
    assert {(answer.status_code, answer.json()["reason"]) for answer in answers} == {(401, "unsigned")}
    assert handlers.calls == 0


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
async def test_a_body_over_the_cap_is_refused_unread(wire: Wire, handlers: Handlers, chunked: bool) -> None:
    """With its length declared or in chunks, and before anything is verified."""
    body = b"x" * 5000

    async def chunks():  # type: ignore[no-untyped-def]
        for start in range(0, len(body), 500):
            yield body[start : start + 500]

    async with wire.serving(axon_of(handlers, max_body_bytes=1000)) as target, wire.raw(target) as client:
        headers = signed_now("/Ping", body)
        answer = await client.post("/Ping", content=chunks() if chunked else body, headers=headers)
    assert (answer.status_code, answer.json()["reason"], handlers.calls) == (413, "too_large", 0)


async def test_a_body_at_the_cap_is_read(wire: Wire, handlers: Handlers) -> None:
    """The cap is inclusive."""
    async with wire.serving(axon_of(handlers, max_body_bytes=len(BODY))) as target:
        assert (await ask(wire, target)).reason == "ok"


async def test_a_hotkey_over_its_rate_waits(wire: Wire, handlers: Handlers) -> None:
    """By the axon's clock; another hotkey is not held back."""
    clock = ManualClock()
    async with (
        wire.serving(axon_of(handlers, clock=clock, hotkey_rate=1, hotkey_burst=2)) as target,
        wire.dendrite(ALICE, clock=clock) as alice,
        wire.dendrite(CHARLIE, clock=clock) as charlie,
    ):
        reasons = [(await alice.call(target, PING, 60)).reason for _ in range(3)]
        assert reasons == ["ok", "ok", "too_many_requests"]
        assert (await charlie.call(target, PING, 60)).reason == "ok"
        await clock.advance(1.0)
        assert (await alice.call(target, PING, 60)).reason == "ok"


async def test_an_address_over_its_rate_is_refused_first(wire: Wire, handlers: Handlers, sink: MemorySink) -> None:
    """Before its body is read or its signature looked at."""
    async with (
        wire.serving(axon_of(handlers, sink, clock=ManualClock(), address_rate=1, address_burst=2)) as target,
        wire.raw(target) as client,
    ):
        reasons = [(await client.post("/Ping", content=BODY)).json()["reason"] for _ in range(3)]
    assert reasons == ["unsigned", "unsigned", "too_many_requests"]


async def test_each_target_has_its_own_outcome(wire: Wire, handlers: Handlers) -> None:
    """One answers, one refuses, one is not there: three outcomes, in the order asked."""
    refusing = Handlers()
    refusing.raises = Refused("no", status=503, reason="busy")
    async with (
        wire.serving(axon_of(handlers), 1) as good,
        wire.serving(axon_of(refusing, key=CHARLIE), 2) as bad,
        wire.dendrite() as dendrite,
    ):
        gone = Target(3, EVE.ss58_address, "127.0.0.1", 1)
        outcomes = await dendrite.broadcast([bad, gone, good], PING, 10)
    assert [(uid, outcome.reason) for uid, outcome in outcomes.items()] == [(2, "busy"), (3, "unreachable"), (1, "ok")]
    assert isinstance(outcomes[3].error, Unreachable)
    assert outcomes[3].status is None


async def test_different_questions_go_out_together(wire: Wire, handlers: Handlers) -> None:
    """A fan-out may ask each uid something else."""
    async with wire.serving(axon_of(handlers)) as bob, wire.dendrite() as dendrite:
        alias = replace(bob, uid=9)
        calls = {1: (bob, PING), 9: (alias, Secret(run_id=RUN))}
        outcomes = await dendrite.fan_out(calls, 10)
    assert [outcomes[uid].expect(Pong).number for uid in (1, 9)] == [7, 0]


async def test_an_impostor_is_a_bad_response(wire: Wire, handlers: Handlers) -> None:
    """Whoever sits at the address but has not the hotkey cannot answer for it: here it refuses as another receiver."""
    async with wire.serving(axon_of(handlers)) as target:
        outcome = await ask(wire, replace(target, hotkey=CHARLIE.ss58_address))
    assert outcome.reason == "other_receiver"
    assert outcome.evidence is None


async def test_an_answer_over_the_cap_is_cut_off(wire: Wire, handlers: Handlers) -> None:
    """The asker reads no further than it said."""
    handlers.padding = 100_000
    async with (
        wire.serving(axon_of(handlers)) as target,
        wire.dendrite(config=DendriteConfig(max_response_bytes=1000)) as dendrite,
    ):
        outcome = await dendrite.call(target, PING, 10)
    assert isinstance(outcome.error, BadResponse)
    assert (outcome.reason, outcome.response) == ("bad_response", None)


async def test_a_slow_answer_meets_the_deadline_of_the_clock(wire: Wire) -> None:
    """One deadline for all: the quick one is in, the slow one is named, and no real time passes."""

    class Slow(Handlers):
        async def ping(self, message: Ping, caller: object) -> Pong:
            await asyncio.Event().wait()
            raise AssertionError

    clock = ManualClock()
    async with (
        wire.serving(axon_of(Slow(), clock=clock, close_s=0.1), 1) as slow,
        wire.serving(axon_of(Handlers(), clock=clock, key=CHARLIE), 2) as quick,
        wire.dendrite(clock=clock) as dendrite,
    ):
        asking = asyncio.create_task(dendrite.broadcast([slow, quick], PING, 30))
        await asyncio.sleep(0.3)
        assert not asking.done()
        await clock.advance(30)
        outcomes = await asking
    assert [outcomes[uid].reason for uid in (1, 2)] == ["deadline", "ok"]
    assert isinstance(outcomes[1].error, DeadlineExceeded)
    assert outcomes[1].seconds == pytest.approx(30)


async def test_a_request_that_never_had_its_turn_is_not_the_targets_fault(wire: Wire) -> None:
    """With one slot, the second request was not sent when the deadline came, and says so."""

    class Slow(Handlers):
        async def ping(self, message: Ping, caller: object) -> Pong:
            await asyncio.Event().wait()
            raise AssertionError

    async with (
        wire.serving(axon_of(Slow(), close_s=0.1), 1) as one,
        wire.dendrite(config=DendriteConfig(concurrency=1)) as dendrite,
    ):
        outcomes = await dendrite.broadcast([one, replace(one, uid=2)], PING, 0.3)
    assert [outcome.reason for outcome in outcomes.values()] == ["deadline", "not_sent"]
    assert outcomes[2].seconds == 0


@pytest.mark.parametrize("deadline_s", [0, -1])
async def test_a_deadline_that_has_passed_is_an_outcome(wire: Wire, handlers: Handlers, deadline_s: float) -> None:
    """With no time at all nothing is sent."""
    async with wire.serving(axon_of(handlers)) as target, wire.dendrite() as dendrite:
        outcome = await dendrite.call(target, PING, deadline_s)
    assert isinstance(outcome.error, DeadlineExceeded)
    assert (outcome.reason, handlers.calls) == ("not_sent", 0)


async def test_nobody_to_ask_is_no_outcome(wire: Wire) -> None:
    """An empty fan-out returns at once."""
    async with wire.dendrite() as dendrite:
        assert await dendrite.broadcast([], PING, 10) == {}


async def test_after_close_nothing_is_sent(wire: Wire, handlers: Handlers) -> None:
    """A closed dendrite raises; a closed axon is unreachable."""
    async with wire.serving(axon_of(handlers)) as target:
        pass
    dendrite = wire.dendrite()
    assert (await dendrite.call(target, PING, 5)).reason == "unreachable"
    await dendrite.close()
    await dendrite.close()
    with pytest.raises(RuntimeError, match="closed"):
        await dendrite.call(target, PING, 5)


async def test_many_at_once_are_all_answered(wire: Wire, handlers: Handlers) -> None:
    """Nonces of requests signed in the same instant differ."""
    clock = ManualClock()
    async with (
        wire.serving(axon_of(handlers, clock=clock, hotkey_burst=1000, address_burst=1000)) as target,
        wire.dendrite(clock=clock) as dendrite,
    ):
        outcomes = await asyncio.gather(*(dendrite.call(target, PING, 60) for _ in range(100)))
    assert [outcome.reason for outcome in outcomes] == ["ok"] * 100


async def test_what_was_answered_and_asked_is_told(wire: Wire, handlers: Handlers, sink: MemorySink) -> None:
    """Each served request is one event, as plain JSON."""
    async with wire.serving(axon_of(handlers, sink)) as target:
        await ask(wire, target)
    (record,) = sink.records
    assert (record["kind"], record["synapse"], record["uid"]) == ("RequestServed", "Ping", 0)
    assert record["request_bytes"] == len(BODY)
    json.dumps(record)
