"""The small messages of rounds and state transfers: JSON behind four bytes of length, checked before reading."""

from __future__ import annotations

import struct
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from distributed_training.averaging.streams import Stream
from distributed_training.protocol import MAX_GROUP, Failure, Hash, Uid
from template.errors import AveragingError
from template.transport.synapse import Message, RunId

MAX_FRAME = 256 * 1024  # a vote of MAX_GROUP members fits
HASH_BYTES = 80  # of one more hash in a message
_LENGTH = struct.Struct(">I")

Weight = Annotated[float, Field(ge=0)]
Failures = Annotated[tuple[Failure, ...], Field(max_length=MAX_GROUP)]
Uids = Annotated[tuple[Uid, ...], Field(max_length=MAX_GROUP)]
M = TypeVar("M", bound=Message)


class DirectOffer(Message):
    """Where a member takes direct connections (direct.py): a port at any of its signed addresses.

    `certificate` (DER in base64) is what it proves itself by.
    """

    port: Annotated[int, Field(ge=1, le=65535)]
    certificate: Annotated[str, StringConstraints(max_length=5464, pattern=r"^[0-9A-Za-z+/]+=*$")]


class Hello(Message):
    """The first frame of a stream: which round, for what, from whom. The weight of an auxiliary member is 0.

    With a control stream comes the digest of the plan that its opener has and, from a contributor, the hash of the
    records of what it puts in (`engine.records.records_hash`) and that of all its parts (packing.py): it stands by
    them from then on.
    """

    run_id: RunId
    round_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    kind: Literal["control", "data"]
    uid: Uid
    weight: Weight
    plan: Hash | None = None
    records: Hash | None = None
    parts: Hash | None = None
    direct: DirectOffer | None = None


class Reasons(Message):
    """Why a member gave a round up.

    `failures` were seen with certainty, `suspicions` are not; `followed` are those that gave the round up before, and
    that a member which saw nothing itself gives it up for.
    """

    failures: Failures = ()
    suspicions: Failures = ()
    followed: Uids = ()


class Answer(Reasons):
    """Reply to a Hello or a Vote. The reasons come with `ended`."""

    code: Literal["ready", "busy", "ended", "unknown", "stranger", "other plan"]
    direct: DirectOffer | None = None


class Weights(Message):
    """What a reducer sends before its average: each contributor's weight and hash of its parts, ascending by uid."""

    weights: Annotated[tuple[tuple[Uid, Weight], ...], Field(max_length=MAX_GROUP)]
    parts: Annotated[tuple[tuple[Uid, Hash], ...], Field(max_length=MAX_GROUP)]


class Parts(Message):
    """What a contributor sends before a part (packing.py): the hash of each share, and those of this part's chunks."""

    shares: Annotated[tuple[tuple[Uid, Hash], ...], Field(max_length=MAX_GROUP)]
    chunks: tuple[Hash, ...]


class Vote(Reasons):
    """One member's word: the hash of the average it holds and the digest of each share received; or None, and why."""

    average_hash: Hash | None
    digests: Annotated[tuple[tuple[Uid, Hash], ...], Field(max_length=MAX_GROUP)] = ()

    @classmethod
    def giving_up(cls, why: Reasons) -> Self:
        """The word of a member that gave the round up."""
        reasons = {name: getattr(why, name) for name in Reasons.model_fields}
        return cls(average_hash=None, **reasons)


async def write_message(stream: Stream, message: Message) -> None:
    """Send one message.

    Raises:
        AveragingError: the stream is lost.
    """
    data = message.model_dump_json().encode()
    await stream.write(_LENGTH.pack(len(data)) + data)


async def read_message(stream: Stream, kind: type[M], limit: int = MAX_FRAME) -> M:
    """Receive one message of that kind.

    Raises:
        AveragingError: the stream ended, the frame is larger than `limit` bytes or is not such a message.
    """
    length = await read_length(stream)
    if length > limit:
        raise AveragingError(f"a frame of {length} bytes where at most {limit} are taken")
    try:
        return kind.model_validate_json(await stream.readexactly(length))
    except ValidationError as error:
        raise AveragingError(f"not a {kind.__name__}: {error.error_count()} faults") from error


async def read_length(stream: Stream) -> int:
    """Read a length. The caller checks it before anything of that size is read.

    Raises:
        AveragingError: the stream ended.
    """
    return unpack_length(await stream.readexactly(_LENGTH.size))


def unpack_length(prefix: bytes | bytearray) -> int:
    """What `length_prefix` wrote."""
    length: int = _LENGTH.unpack(prefix)[0]
    return length


def length_prefix(length: int) -> bytes:
    """The four bytes that stand before `length` bytes."""
    return _LENGTH.pack(length)
