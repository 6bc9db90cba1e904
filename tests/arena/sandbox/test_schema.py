"""What may be answered, and one refusal for each thing that may not."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.arena.sandbox import schema
from distributed_training.arena.sandbox.schema import Malformed, announced, header_size, message_of
from distributed_training.arena.sandbox.wire import ANSWER, MAGIC, Kind
from distributed_training.averaging.codecs.codec import HEADER
from distributed_training.strategies.message import Combine, encoded
from template.errors import SubmissionError

ROOM = 1000
PLAIN: dict[str, Any] = {
    "operation": "all",
    "combine": "mean",
    "codec": "none",
    "tensor": True,
    "count": 10,
    "delay": 0,
}


def header(*messages: dict[str, Any]) -> bytes:
    return json.dumps({"messages": messages}).encode()


@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({}, 40),
        ({"combine": "gather"}, 40),
        ({"codec": "bf16", "tensor": False}, HEADER + 20),
        ({"codec": "fp16+bf16", "tensor": False}, HEADER + 20),
        ({"codec": "int8-block64", "combine": "gather", "tensor": False, "count": 64}, HEADER + 64 + 2),
        ({"delay": 3, "count": ROOM}, 4 * ROOM),
    ],
)
def test_the_size_of_a_payload_follows_from_its_codec(change: dict[str, Any], size: int) -> None:
    """By closed forms: 4, 2 and 1 bytes a value, a header, and a scale a block."""
    (message,) = announced(header({**PLAIN, **change}), ROOM)
    assert message.size == size
    assert message.combine is Combine({**PLAIN, **change}["combine"])


@pytest.mark.parametrize("codec", ["int2-block512", "topk32-int2-block512", "bf16", "int4-block64"])
def test_what_a_codec_makes_has_the_expected_size(codec: str) -> None:
    """And comes back as a message that decodes to the same values."""
    made, _ = encoded("x", codec, torch.randn(777), delay=2)
    fields = {**PLAIN, "operation": "x", "combine": "gather", "codec": codec, "tensor": False, "count": 777, "delay": 2}
    (expected,) = announced(header(fields), ROOM)
    assert isinstance(made.payload, memoryview)
    message = message_of(expected, bytearray(made.payload))
    assert (message.size, message.count, message.delay) == (made.size, 777, 2)
    assert message.payload == made.payload


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"operation": ""}, "name"),
        ({"operation": "x" * 65}, "name"),
        ({"operation": "a\x1b[2J"}, "name"),
        ({"operation": 3}, "operation that is no str"),
        ({"combine": "sum"}, "combined by 'sum'"),
        ({"codec": "zip"}, "zip"),
        ({"codec": "x" * 10_000}, "codec without end"),
        ({"codec": "bf16"}, "a tensor by codec"),
        ({"combine": "gather", "codec": "fp16+bf16", "tensor": False}, r"fp16\+bf16"),
        ({"tensor": 1}, "tensor that is no bool"),
        ({"count": 0}, "0 values"),
        ({"count": -1}, "-1 values"),
        ({"count": True}, "count that is no int"),
        ({"count": 1.5}, "count that is no int"),
        ({"count": ROOM + 1}, "1001 values where 1000"),
        ({"count": 2**70}, "values where 1000"),
        ({"delay": -1}, "after -1 steps"),
        ({"extra": 1}, "fields"),
    ],
)
def test_other_messages_are_refused(change: dict[str, Any], what: str) -> None:
    """With what is wrong, by a SubmissionError of reason `answer`."""
    with pytest.raises(Malformed, match=what) as caught:
        announced(header({**PLAIN, **change}), ROOM)
    assert caught.value.reason == "answer"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"messages": [[]]}',
        b'{"messages": {}}',
        b'{"messages": [], "messages": []}',
        b'{"messages": [], "loss": 0.0}',
        b'{"messages": NaN}',
        b'{"messages": ' + b"[" * 60_000 + b"]" * 4,
        b'{"messages": [' + b"9" * 50_000 + b"]}",
    ],
)
def test_other_headers_are_refused(text: bytes) -> None:
    """Not JSON, other fields, a field twice, depths and numbers without end."""
    with pytest.raises(Malformed):
        announced(text, ROOM)


def test_many_messages_are_refused() -> None:
    """By their number, and by their values together."""
    with pytest.raises(Malformed, match="65 messages"):
        announced(header(*[{**PLAIN, "count": 1}] * (schema.MOST_MESSAGES + 1)), ROOM)
    with pytest.raises(Malformed, match="1010 values"):
        announced(header({**PLAIN, "count": 505}, {**PLAIN, "count": 505}), ROOM)


@pytest.mark.parametrize(
    ("prefix", "what"),
    [
        (ANSWER.pack(b"HTTP", Kind.ANSWER, 4, 10), "no answer"),
        (ANSWER.pack(MAGIC, 9, 4, 10), "kind 9"),
        (ANSWER.pack(MAGIC, Kind.READY, 4, 10), "kind 1"),
        (ANSWER.pack(MAGIC, Kind.ANSWER, 3, 10), "request 3 where request 4"),
        (ANSWER.pack(MAGIC, Kind.ANSWER, 5, 10), "request 5 where request 4"),
        (ANSWER.pack(MAGIC, Kind.ANSWER, 4, 0xFFFFFFFF), "4294967295 bytes"),  # -1, had it a sign
    ],
)
def test_other_answers_are_refused(prefix: bytes, what: str) -> None:
    """Before anything is read or allocated for them."""
    with pytest.raises(Malformed, match=what):
        header_size(prefix, 4, (Kind.ANSWER, Kind.FAILED))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    """In parameters and in messages."""
    body = bytearray(np.array([1.0, bad], np.float32).tobytes())
    with pytest.raises(SubmissionError, match="not finite"):
        schema.finite_vector(body, "parameters")
    (what,) = announced(header({**PLAIN, "count": 2}), ROOM)
    with pytest.raises(SubmissionError, match="'all' with values that are not finite"):
        message_of(what, body)


@given(st.binary(max_size=200))
def test_no_bytes_are_anything_but_refused(text: bytes) -> None:
    """Never another error: it would be taken for a bug of ours."""
    with pytest.raises(Malformed):
        announced(text, ROOM)
    with pytest.raises(Malformed):
        schema.failure(text)
