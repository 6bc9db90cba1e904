"""The synapses: shapes, bounds, and what is refused before anything is done with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from distributed_training.protocol import (
    MAX_COORDINATES,
    MAX_GROUP,
    MAX_PAGES_PER_MICRO_BATCH,
    MAX_RECORDS_PER_PAGE,
    AllReduce,
    AllReduceResponse,
    IsAlive,
    IsAliveResponse,
    PeerBinding,
    Record,
    Train,
    TrainResponse,
)
from template.transport.synapse import Message, Request, Response

HOTKEY = "5" + "G" * 47
HASH = "ab" * 32
PEER = {"hotkey": HOTKEY, "peer_id": "Qm1", "addresses": ["/ip4/127.0.0.1/tcp/1"], "signature": "0x" + "0" * 128}
MARK = {"after": 8, "steps": 40, "state": HASH, "params": HASH, "inner": HASH, "moved": [0.5, -0.25]}
RECORD = {"number": 0, "pages": [1, 2], "samples": 8, "loss": 5.5, "gradient": [0.5, -0.25]}
MEMBER = {"uid": 1, "peer": PEER, "share": 0.5, "contributes": True}
TRANSFER = {"uid": 1, "bytes_sent": 1, "bytes_received": 2, "seconds_sending": 0.1, "seconds_receiving": 0.2}
FAILURE = {"uid": 2, "state": "EXCHANGE", "role": "sender", "reason": "timeout"}

MESSAGES: dict[type[Message], dict[str, Any]] = {
    IsAlive: {"run_id": "nano-0123456789ab"},
    IsAliveResponse: {
        "epoch": 3, "state_hash": HASH, "samples": 16, "corpus": HASH, "settled": True, "peer": PEER,
        "version": "0.1.0",
    },
    Train: {"run_id": "nano-0123456789ab", "epoch": 3, "offset": 0, "limit": 10},
    TrainResponse: {
        "epoch": 3, "state_hash": HASH, "base_hash": HASH, "records_hash": HASH, "total_records": 1,
        "records": [RECORD], "mean_loss": None, "samples": 8, "seconds": 1.5, "batch_size": 8,
        "marks": [MARK],
    },
    AllReduce: {
        "run_id": "nano-0123456789ab", "epoch": 3, "state_hash": HASH, "attempt": 0, "round_id": "0" * 32,
        "group": [MEMBER], "codec": "none", "deadlines": {"connect": 5.0, "exchange": 15.0, "commit": 5.0},
    },
    AllReduceResponse: {
        "completed": True, "epoch": 3, "state_hash": HASH, "samples": 8, "records_hash": HASH, "seconds": 1.0,
        "failures": [FAILURE], "transfers": [TRANSFER],
        "states": {"connect": 0.5, "exchange": 1.5, "commit": None},
    },
}  # fmt: skip


def parsed(kind: type[Message], **changes: Any) -> Message:
    return kind.model_validate_json(json.dumps({**MESSAGES[kind], **changes}))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_messages_survive_the_wire(kind: type[Message]) -> None:
    """JSON and back is the same message, to the bit, and it cannot be changed."""
    message = parsed(kind)
    assert kind.model_validate_json(message.model_dump_json()) == message
    assert json.loads(message.model_dump_json()) == MESSAGES[kind]
    with pytest.raises(ValidationError, match="frozen"):
        setattr(message, next(iter(MESSAGES[kind])), 0)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_unknown_and_missing_fields_are_refused(kind: type[Message]) -> None:
    """Neither a field too many nor one too few passes."""
    with pytest.raises(ValidationError, match="Extra inputs"):
        parsed(kind, surprise=1)
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    for name in required:
        body = {key: value for key, value in MESSAGES[kind].items() if key != name}
        with pytest.raises(ValidationError, match="Field required"):
            kind.model_validate(body)


@pytest.mark.parametrize(("kind", "answer"), [(IsAlive, IsAliveResponse), (Train, TrainResponse)])
def test_a_request_names_its_answer(kind: type[Request], answer: type[Response]) -> None:
    """Client and server take the shape of the answer from the request's class."""
    assert kind.Answer is answer
    assert AllReduce.Answer is AllReduceResponse


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Train, {"limit": MAX_RECORDS_PER_PAGE + 1}),
        (Train, {"offset": -1}),
        (Train, {"epoch": -1}),
        (Train, {"run_id": ""}),
        (Train, {"run_id": "../etc"}),
        (Train, {"run_id": "n" * 97}),
        (TrainResponse, {"records": [RECORD] * (MAX_RECORDS_PER_PAGE + 1)}),
        (TrainResponse, {"records": [{**RECORD, "gradient": [0.0] * (MAX_COORDINATES + 1)}]}),
        (TrainResponse, {"records": [{**RECORD, "pages": [0] * (MAX_PAGES_PER_MICRO_BATCH + 1)}]}),
        (TrainResponse, {"records": [{**RECORD, "pages": [-1]}]}),
        (TrainResponse, {"records": [{**RECORD, "samples": 2**53 + 1}]}),
        (TrainResponse, {"records": [{**RECORD, "loss": "high"}]}),
        (TrainResponse, {"seconds": -1.0}),
        (TrainResponse, {"batch_size": 0}),
        (TrainResponse, {"state_hash": "AB" * 32}),
        (TrainResponse, {"state_hash": HASH[:-1]}),
        (IsAliveResponse, {"peer": {**PEER, "signature": "0x" + "0" * 127}}),
        (IsAliveResponse, {"peer": {**PEER, "addresses": []}}),
        (IsAliveResponse, {"peer": {**PEER, "addresses": ["x"] * 17}}),
        (IsAliveResponse, {"peer": {**PEER, "peer_id": "Q" * 129}}),
        (IsAliveResponse, {"peer": {**PEER, "peer_id": "Qm1\n/ip4/1"}}),
        (IsAliveResponse, {"peer": {**PEER, "addresses": ["/ip4/1\n/ip4/2"]}}),
        (IsAliveResponse, {"peer": {**PEER, "hotkey": HOTKEY + "\nQm1"}}),
        (IsAliveResponse, {"version": "v" * 33}),
        (AllReduce, {"group": []}),
        (AllReduce, {"group": [MEMBER] * (MAX_GROUP + 1)}),
        (AllReduce, {"group": [{**MEMBER, "uid": 65536}]}),
        (AllReduce, {"group": [{**MEMBER, "share": 1.5}]}),
        (AllReduce, {"attempt": 10_001}),
        (AllReduce, {"round_id": "0" * 31}),
        (AllReduce, {"deadlines": {"connect": 0, "exchange": 15.0, "commit": 5.0}}),
        (AllReduce, {"deadlines": {"connect": 5.0, "exchange": 1e9, "commit": 5.0}}),
        (AllReduceResponse, {"failures": [{**FAILURE, "reason": "x" * 201}]}),
        (AllReduceResponse, {"failures": [{**FAILURE, "state": "LATER"}]}),
        (AllReduceResponse, {"transfers": [{**TRANSFER, "bytes_sent": -1}]}),
        (AllReduceResponse, {"transfers": [{**TRANSFER, "bytes_sent": 2**53 + 1}]}),
        (AllReduceResponse, {"states": {"connect": -1.0, "exchange": None, "commit": None}}),
        (AllReduceResponse, {"states": {"connect": 1.0, "exchange": 1e9, "commit": None}}),
    ],
)
def test_what_is_out_of_bounds_is_refused(kind: type[Message], changes: dict[str, Any]) -> None:
    """Sizes, signs and alphabets are bounded where the bytes come in."""
    parsed(kind)
    with pytest.raises(ValidationError):
        parsed(kind, **changes)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    """A NaN in a loss or gradient does not get as far as the scores."""
    for field in ("loss", "gradient"):
        value = f"[{number}]" if field == "gradient" else number
        body = json.dumps({**RECORD, field: "HERE"}).replace('"HERE"', value)
        with pytest.raises(ValidationError):
            Record.model_validate_json(body)


def test_floats_cross_the_wire_to_the_bit() -> None:
    """An audit compares what was computed, not what was printed."""
    values = (0.1, 1 / 3, 5e-324, -1.7976931348623157e308, 2**-24)
    record = Record(number=0, pages=(1,), samples=1, loss=1 / 7, gradient=values)
    again = Record.model_validate_json(record.model_dump_json())
    assert (again.loss, again.gradient) == (1 / 7, values)


def test_a_peer_binding_signs_every_part_of_it() -> None:
    """The run, the hotkey, the peer id and each address are under the signature, and none can slide into another."""
    peer = PeerBinding.model_validate(PEER)
    assert peer.signed_bytes("nano-1") == f"dt-peer/1\nnano-1\n{HOTKEY}\nQm1\n/ip4/127.0.0.1/tcp/1".encode()
    others = [
        peer.signed_bytes("nano-2"),
        peer.model_copy(update={"hotkey": "5" + "F" * 47}).signed_bytes("nano-1"),
        peer.model_copy(update={"peer_id": "Qm2"}).signed_bytes("nano-1"),
        peer.model_copy(update={"addresses": ("/ip4/127.0.0.1/tcp/2",)}).signed_bytes("nano-1"),
        peer.model_copy(update={"addresses": (*peer.addresses, "/ip4/1")}).signed_bytes("nano-1"),
    ]
    assert len({peer.signed_bytes("nano-1"), *others}) == 6


@pytest.mark.parametrize("name", ["number", "samples"])
def test_numbers_fit_a_float_exactly(name: str) -> None:
    """A number of a thousand digits would be written to every log and break what draws it as a curve."""
    Record.model_validate_json(json.dumps({**RECORD, name: 2**53}))
    with pytest.raises(ValidationError):
        Record.model_validate_json(json.dumps({**RECORD, name: 10**999}))
    with pytest.raises(ValidationError):
        Record.model_validate_json(json.dumps({**RECORD, "pages": [2**53 + 1]}))
