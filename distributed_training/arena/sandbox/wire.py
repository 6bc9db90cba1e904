"""The bytes between the simulator and a sandboxed node: requests go in, one answer comes out for each.

    request: length of the header, header (JSON), bodies (raw bytes; the header has their lengths)
    answer:  magic, kind, number of the request, length of the header; header (JSON); bodies

The node's side reads requests as they come, for it trusts who sends them. Nothing that an answer says of itself is
believed: schema.py derives from the model and from each codec how many bytes may follow. Numbers are little-endian,
tensors float32. No pickle, no code.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, BinaryIO

REQUEST = struct.Struct("<I")
ANSWER = struct.Struct("<4sIII")
MAGIC = b"dtS1"
LARGEST_HEADER = 64 * 1024  # bytes, of an answer

Body = bytes | bytearray | memoryview

if sys.byteorder != "little":
    raise ImportError("the sandbox's wire is little-endian, and so must be the machine")


class Kind(IntEnum):
    """READY: the process is confined, and no code of the submission has run. ANSWER: parameters, and what is sent.
    FAILED: the submission's code raised an error; the header is its text."""

    READY = 1
    ANSWER = 2
    FAILED = 3


@dataclass(frozen=True, eq=False)
class Request:
    """As the node reads it."""

    header: dict[str, Any]
    bodies: tuple[bytearray, ...]


def request_parts(header: dict[str, Any], bodies: Sequence[Body]) -> list[Body]:
    """The parts of a request, to be written one after another."""
    sizes = [memoryview(body).nbytes for body in bodies]
    text = json.dumps({**header, "sizes": sizes}).encode()
    return [REQUEST.pack(len(text)) + text, *bodies]


def read_request(stream: BinaryIO) -> Request | None:
    """The next request, or None at the end of the stream; only for who trusts the sender."""
    start = stream.read(REQUEST.size)
    if len(start) < REQUEST.size:
        return None
    header = json.loads(stream.read(REQUEST.unpack(start)[0]))
    bodies = tuple(bytearray(size) for size in header.pop("sizes"))
    for body in bodies:
        view = memoryview(body)
        while view:
            count = stream.readinto(view)  # type: ignore[attr-defined]  # every buffered stream has it
            if not count:
                return None
            view = view[count:]
    return Request(header, bodies)


def write_answer(stream: BinaryIO, kind: Kind, number: int, header: dict[str, Any], bodies: Sequence[Body]) -> None:
    """Write one answer."""
    text = json.dumps(header).encode()
    stream.write(ANSWER.pack(MAGIC, kind, number, len(text)) + text)
    for body in bodies:
        stream.write(body)
    stream.flush()
