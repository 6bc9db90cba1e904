"""Why a request is refused: one word for machines, one HTTP status, one sentence for people."""

from __future__ import annotations

from enum import StrEnum

from template.errors import Refused

MAX_DETAIL = 500


class Reason(StrEnum):
    """The words an axon itself answers with. A handler may refuse with words of its own."""

    TOO_MANY_CONNECTIONS = "too_many_connections"
    TOO_MANY_REQUESTS = "too_many_requests"
    TOO_LARGE = "too_large"
    BODY_TIMEOUT = "body_timeout"
    UNSIGNED = "unsigned"
    BAD_SIGNATURE = "bad_signature"
    OTHER_RECEIVER = "other_receiver"
    STALE = "stale"
    REPLAY = "replay"
    UNREGISTERED = "unregistered"
    NO_PERMIT = "no_permit"
    UNKNOWN_SYNAPSE = "unknown_synapse"
    NOT_POST = "not_post"
    BAD_REQUEST = "bad_request"
    WRONG_RUN = "wrong_run"
    INTERNAL = "internal"
    CLOSING = "closing"


STATUS: dict[Reason, int] = {
    Reason.TOO_MANY_CONNECTIONS: 503,
    Reason.TOO_MANY_REQUESTS: 429,
    Reason.TOO_LARGE: 413,
    Reason.BODY_TIMEOUT: 408,
    Reason.UNSIGNED: 401,
    Reason.BAD_SIGNATURE: 401,
    Reason.OTHER_RECEIVER: 401,
    Reason.STALE: 401,
    Reason.REPLAY: 401,
    Reason.UNREGISTERED: 403,
    Reason.NO_PERMIT: 403,
    Reason.UNKNOWN_SYNAPSE: 404,
    Reason.NOT_POST: 405,
    Reason.BAD_REQUEST: 422,
    Reason.WRONG_RUN: 409,
    Reason.INTERNAL: 500,
    Reason.CLOSING: 503,
}


def refuse(reason: Reason, detail: str) -> Refused:
    """The error to raise."""
    return Refused(detail, status=STATUS[reason], reason=reason.value)


def printable(text: str, limit: int = MAX_DETAIL) -> str:
    """A stranger's text, cut to `limit` characters and without control characters: safe for a log or a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:limit])
