"""Requests and answers, there and back."""

from __future__ import annotations

import io

import numpy as np

from distributed_training.arena.sandbox.schema import header_size
from distributed_training.arena.sandbox.wire import ANSWER, Kind, read_request, request_parts, write_answer


def test_a_request_arrives_as_it_was_sent() -> None:
    """Header and bodies; then the stream ends."""
    values = np.arange(5, dtype=np.float32)
    parts = request_parts({"do": "load", "node": {"rank": 1}}, [b"source", values.data.cast("B"), b""])
    stream = io.BufferedReader(io.BytesIO(b"".join(parts)))
    request = read_request(stream)
    assert request is not None
    assert request.header == {"do": "load", "node": {"rank": 1}}
    assert request.bodies == (b"source", values.tobytes(), b"")
    assert read_request(stream) is None


def test_a_request_that_was_cut_off_is_none() -> None:
    """Whoever sent it is gone."""
    whole = b"".join(request_parts({"do": "step"}, [bytes(100)]))
    assert read_request(io.BufferedReader(io.BytesIO(whole[:-1]))) is None


def test_an_answer_says_what_it_is() -> None:
    """Kind, number and size of the header; the bodies follow."""
    stream = io.BytesIO()
    write_answer(stream, Kind.ANSWER, 7, {"messages": []}, [b"abc"])
    kind, size = header_size(stream.getvalue()[: ANSWER.size], 7, (Kind.ANSWER,))
    assert kind is Kind.ANSWER
    assert stream.getvalue()[ANSWER.size :] == b'{"messages": []}abc'
    assert size == 16
