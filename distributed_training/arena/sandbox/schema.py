"""What an answer may be: every field of it is checked, and the sizes of what follows are derived, before it is read.

A payload has the size that its codec gives for its number of values; so what the ledger counts is what was read, and
there is no room beside it. What a message says of itself (operation, codec, number of values, delay) must be the same
for all nodes (message.py) and can tell them nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distributed_training.arena.sandbox.wire import ANSWER, LARGEST_HEADER, MAGIC, Kind
from distributed_training.averaging.codecs.registry import codec_named, pair_named
from distributed_training.strategies.message import PLAIN, Combine, Message
from template.errors import AveragingError, SubmissionError

MOST_MESSAGES = 64  # of a node and step
LONGEST_NAME = 64
IN_FLIGHT = 8  # times P values: sent by a node and not yet received
_FLOAT = 4
_FIELDS = {"operation": str, "combine": str, "codec": str, "tensor": bool, "count": int, "delay": int}


class Malformed(SubmissionError):
    """An answer that the schema does not allow."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the submission's process answered what it must not: {what}", reason="answer")


@dataclass(frozen=True)
class Announced:
    """A message of which the header was read and the payload was not. `size`: bytes of the payload."""

    operation: str
    combine: Combine
    codec: str
    tensor: bool
    count: int
    delay: int
    size: int


def header_size(prefix: bytes, number: int, kinds: Sequence[Kind]) -> tuple[Kind, int]:
    """Kind and length of the header of an answer to request `number`, from its first `ANSWER.size` bytes.

    Raises:
        Malformed: it is no answer to it, or too long.
    """
    magic, kind, found, size = ANSWER.unpack(prefix)
    if magic != MAGIC:
        raise Malformed("bytes that are no answer")
    if kind not in kinds:
        raise Malformed(f"an answer of kind {kind}")
    if found != number:
        raise Malformed(f"an answer to request {found} where request {number} was asked")
    if size > LARGEST_HEADER:
        raise Malformed(f"a header of {size} bytes, more than {LARGEST_HEADER}")
    return Kind(kind), size


def announced(header: bytes, most_values: int) -> tuple[Announced, ...]:
    """The messages that the header of an answer announces, of at most `most_values` values together.

    Raises:
        Malformed: anything but exactly that.
    """
    fields = _object(header, {"messages": list})
    items: list[Any] = fields["messages"]
    if len(items) > MOST_MESSAGES:
        raise Malformed(f"{len(items)} messages in one step, more than {MOST_MESSAGES}")
    messages = tuple(_announced(_checked(item, _FIELDS)) for item in items)
    values = sum(message.count for message in messages)
    if values > most_values:
        raise Malformed(f"messages of {values} values where {most_values} may be on their way")
    return messages


def failure(header: bytes) -> str:
    """The text of a FAILED answer; raises Malformed."""
    return str(_object(header, {"error": str})["error"])


def nothing(header: bytes) -> None:
    """Raise Malformed unless the header is an empty object."""
    _object(header, {})


def message_of(what: Announced, payload: bytearray) -> Message:
    """The message, now that its payload was read; raises Malformed for values that are not finite."""
    body: torch.Tensor | memoryview = memoryview(payload).toreadonly()
    if what.tensor:
        body = finite_vector(payload, f"'{what.operation}'")
    return Message(what.operation, what.combine, what.codec, body, what.count, what.delay)


def finite_vector(body: bytearray, name: str) -> torch.Tensor:
    """The float32 [n] that `body` holds, in its memory; raises Malformed for values that are not finite."""
    values = np.frombuffer(body, np.float32)
    if not np.isfinite(values).all():
        raise Malformed(f"{name} with values that are not finite")
    return torch.from_numpy(values)


def _announced(fields: dict[str, Any]) -> Announced:
    operation, codec, count, delay = (fields[name] for name in ("operation", "codec", "count", "delay"))
    if not 0 < len(operation) <= LONGEST_NAME or not operation.isascii() or not operation.isprintable():
        raise Malformed("an operation whose name is not of 1 to 64 printable characters")
    if count < 1 or delay < 0:
        raise Malformed(f"a message of {count} values, wanted after {delay} steps")
    if fields["combine"] not in {combine.value for combine in Combine}:
        raise Malformed(f"a message to be combined by {fields['combine'][:LONGEST_NAME]!r}")
    if len(codec) > LONGEST_NAME:
        raise Malformed("a codec without end")
    combine = Combine(fields["combine"])
    size = _payload_size(combine, codec, count, tensor=fields["tensor"])
    return Announced(operation, combine, codec, fields["tensor"], count, delay, size)


def _payload_size(combine: Combine, codec: str, count: int, *, tensor: bool) -> int:
    try:
        parts = pair_named(codec).parts if combine is Combine.MEAN else codec_named(codec)
        size = parts.encoded_size(count)
    except AveragingError as error:
        raise Malformed(str(error)) from error
    if tensor and parts.name != PLAIN:
        raise Malformed(f"a tensor by codec '{codec}'")
    return size


def _object(text: bytes, kinds: dict[str, type]) -> dict[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed("a header that is not JSON") from error
    return _checked(found, kinds)


def _checked(found: object, kinds: dict[str, type]) -> dict[str, Any]:
    if not isinstance(found, dict) or found.keys() != kinds.keys():
        raise Malformed(f"a header whose fields are not {', '.join(kinds) or 'none'}")
    for name, kind in kinds.items():
        if type(found[name]) is not kind:
            raise Malformed(f"a {name} that is no {kind.__name__}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
