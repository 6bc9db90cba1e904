"""A submission: one Python file, sealed by a hash on chain while a round is open, and revealed afterwards.

What is committed is a hash over contest, subnet, round, hotkey, a random salt and the source. Who copies another's hash
has committed to something that it cannot reveal, since the hotkey is in it; and the salt keeps a source that others
could guess from being recognised by its hash.
"""

from __future__ import annotations

import ast
import hashlib
import json
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from template.errors import SubmissionRefused

VERSION = 1
_MAGIC = b"arena\x01"
_SALT = 32  # bytes
_ROUND = struct.Struct("<I")
COMMITMENT = len(_MAGIC) + _ROUND.size + 32  # bytes


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Who submits what to which round. `salt`: 32 bytes that nobody else knows before the reveal."""

    contest_id: str
    netuid: int
    round: int
    hotkey: str
    salt: bytes
    source: bytes

    @property
    def digest(self) -> bytes:
        """What is sealed, 32 bytes. Each part is preceded by its length, so that no two submissions run together."""
        parts = (
            b"arena/submission",
            self.contest_id.encode(),
            str(self.netuid).encode(),
            str(self.round).encode(),
            self.hotkey.encode(),
            self.salt,
            self.source,
        )
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()

    @property
    def commitment(self) -> bytes:
        """What goes on chain: 42 bytes."""
        return _MAGIC + _ROUND.pack(self.round) + self.digest


def new_salt() -> bytes:
    """From the system's source of randomness."""
    return secrets.token_bytes(_SALT)


def committed_round(data: bytes) -> int | None:
    """The round that a hotkey's commitment is for; None if it is something else."""
    if len(data) != COMMITMENT or not data.startswith(_MAGIC):
        return None
    return int(_ROUND.unpack_from(data, len(_MAGIC))[0])


def source_id(source: bytes) -> str:
    """sha256 of a source, 64 hex digits."""
    return hashlib.sha256(source).hexdigest()


def check_source(source: bytes, largest: int) -> None:
    """Refuse what no sandbox needs to see.

    Raises:
        SubmissionRefused: `too_large`, `not_text` or `not_python`.
    """
    if len(source) > largest:
        raise SubmissionRefused(f"the source has {len(source)} bytes; at most {largest} are taken", reason="too_large")
    try:
        ast.parse(source.decode())
    except UnicodeDecodeError as error:
        raise SubmissionRefused(f"the source is not UTF-8: {error}", reason="not_text") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SubmissionRefused(f"the source is not Python: {error}", reason="not_python") from error


def revealed(submission: Submission) -> str:
    """The reveal as JSON text."""
    return json.dumps(
        {
            "version": VERSION,
            "contest": submission.contest_id,
            "netuid": submission.netuid,
            "round": submission.round,
            "hotkey": submission.hotkey,
            "salt": submission.salt.hex(),
            "source": submission.source.decode(),
        }
    )


def largest_reveal(largest: int) -> int:
    """Bytes that the reveal of a source of `largest` bytes may have: JSON writes one as six at most (\\u001f)."""
    return 6 * largest + 1024


def opened(text: bytes, commitment: bytes, largest: int) -> Submission:
    """The submission in a reveal, if it is what was committed.

    Raises:
        SubmissionRefused: `malformed`, `not_committed`, or as `check_source`.
    """
    submission = read_reveal(text)
    check_source(submission.source, largest)
    if submission.commitment != commitment:
        raise SubmissionRefused("what is revealed is not what was committed on chain", reason="not_committed")
    return submission


def read_reveal(text: bytes) -> Submission:
    """The submission in a reveal, checked for its form alone; SubmissionRefused, `malformed`, for anything else."""
    try:
        found: Mapping[str, Any] = json.loads(text)
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']!r}")
        salt = bytes.fromhex(found["salt"])
        if len(salt) != _SALT:
            raise ValueError(f"a salt of {len(salt)} bytes")
        return Submission(
            contest_id=str(found["contest"]),
            netuid=int(found["netuid"]),
            round=int(found["round"]),
            hotkey=str(found["hotkey"]),
            salt=salt,
            source=str(found["source"]).encode(),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SubmissionRefused(f"not a reveal: {error!r}", reason="malformed") from error
