"""Who said what to whom: signatures on requests and on answers. Pure: no clock, no socket, no memory.

Requests carry the SDK's `btauth/1` headers, narrowed: sr25519 only, always bound to a receiver, each header once.
Whether a nonce was seen before is not decided here but by `policy.NonceStore`.

Answers are signed by the responder's hotkey over eight lines, joined by a newline:

    dt-answer/1, sr25519, nonce, sender, responder, sha256 of the request's btauth payload, HTTP status,
    sha256 of the body

The payload hash covers method, target and body of the request, so an answer cannot be shown beside another question.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Protocol

from bittensor import http_auth
from bittensor.sp_core import CRYPTO_SR25519, verify
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from template.errors import BadResponse, ConfigurationError, Refused
from template.transport.refusal import Reason, refuse

MAX_AGE_S = http_auth.DEFAULT_MAX_AGE
ALLOWED_SKEW_S = http_auth.DEFAULT_ALLOWED_SKEW
MAX_TARGET = 1024
ANSWER_VERSION = "dt-answer/1"
HEADER_ANSWER_HOTKEY = "X-Answer-Hotkey"
HEADER_ANSWER_SIGNATURE = "X-Answer-Signature"

_SCHEME = "sr25519"
_NONCE = re.compile(r"[0-9]{1,20}", re.ASCII)
_SIGNATURE = re.compile(r"0x[0-9a-f]{128}", re.ASCII)
_REQUEST_HEADERS = (
    http_auth.HEADER_VERSION,
    http_auth.HEADER_HOTKEY,
    http_auth.HEADER_RECEIVER,
    http_auth.HEADER_NONCE,
    http_auth.HEADER_SIGNATURE,
)
_REASONS: dict[type[http_auth.AuthError], Reason] = {
    http_auth.MalformedAuth: Reason.UNSIGNED,
    http_auth.WrongReceiver: Reason.OTHER_RECEIVER,
    http_auth.StaleRequest: Reason.STALE,
    http_auth.BadSignature: Reason.BAD_SIGNATURE,
}
_JSON = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class Signer(Protocol):
    """A hotkey that can sign: the SDK's `Keypair`, for instance a wallet's `hotkey`."""

    @property
    def ss58_address(self) -> str: ...

    @property
    def public_key(self) -> bytes: ...

    @property
    def crypto_type(self) -> int: ...

    def sign(self, payload: bytes) -> bytes: ...


Ss58 = Annotated[str, StringConstraints(min_length=46, max_length=64)]
Signature = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{128}$")]


@dataclass(frozen=True, kw_only=True)
class SignedRequest:
    """A request as it was signed. `target` is the path with its query; `nonce` is in nanoseconds since the epoch."""

    __pydantic_config__: ClassVar[ConfigDict] = _JSON

    method: Annotated[str, StringConstraints(max_length=16)]
    target: Annotated[str, StringConstraints(max_length=MAX_TARGET)]
    body: bytes = field(repr=False)
    nonce: Annotated[int, Field(ge=0, lt=10**20)]
    sender: Ss58
    receiver: Ss58
    signature: Signature

    @property
    def headers(self) -> dict[str, str]:
        """The `btauth/1` headers that carry this signature."""
        values = (http_auth.VERSION, self.sender, self.receiver, str(self.nonce), self.signature)
        return dict(zip(_REQUEST_HEADERS, values, strict=True))

    @property
    def digest(self) -> str:
        """sha256 (hex) of the signed payload: the name of this request under the signature of its answer."""
        payload = http_auth.build_payload(
            scheme=_SCHEME,
            method=self.method,
            path=self.target,
            body=self.body,
            nonce_ns=self.nonce,
            sender_ss58=self.sender,
            receiver_ss58=self.receiver,
        )
        return hashlib.sha256(payload).hexdigest()


class _AnyNonce:
    """Lets the SDK's verification end without a verdict on replays."""

    def check_and_store(self, hotkey_ss58: str, nonce_ns: int) -> bool:
        return True


def require_sr25519(signer: Signer) -> Signer:
    """The signer itself; `ConfigurationError` if its key is of another scheme, which no neuron would accept."""
    if signer.crypto_type != CRYPTO_SR25519:
        raise ConfigurationError(
            f"hotkey {signer.ss58_address} is not an sr25519 key; create one with `btcli wallet new-hotkey`"
        )
    return signer


def sign_request(signer: Signer, *, target: str, body: bytes, receiver: str, nonce: int) -> SignedRequest:
    """Sign `POST target` for `receiver`. A nonce (ns since the epoch) may be used once only."""
    headers = http_auth.sign(signer, method="POST", path=target, body=body, receiver_ss58=receiver, nonce_ns=nonce)
    return SignedRequest(
        method="POST",
        target=target,
        body=body,
        nonce=nonce,
        sender=signer.ss58_address,
        receiver=receiver,
        signature=headers[http_auth.HEADER_SIGNATURE],
    )


def verify_request(
    headers: Iterable[tuple[str, str]], body: bytes, *, method: str, target: str, receiver: str, now_ns: int
) -> SignedRequest:
    """The request, once its signature holds and it is fresh at `now_ns`; `Refused` (401) otherwise."""
    signed = _once(headers)
    nonce = signed.get(http_auth.HEADER_NONCE.lower(), "")
    if not _NONCE.fullmatch(nonce) or len(target) > MAX_TARGET:
        raise refuse(Reason.UNSIGNED, f"{http_auth.HEADER_NONCE} is missing or not a number, or the target is too long")
    try:
        caller = http_auth.verify(
            signed,
            body,
            method=method,
            path=target,
            self_hotkey_ss58=receiver,
            max_age=MAX_AGE_S,
            allowed_skew=ALLOWED_SKEW_S,
            nonce_store=_AnyNonce(),
            now_ns=now_ns,
        )
    except http_auth.AuthError as error:
        raise _translated(error) from error
    return SignedRequest(
        method=method,
        target=target,
        body=body,
        nonce=caller.nonce_ns,
        sender=caller.hotkey_ss58,
        receiver=receiver,
        signature=signed[http_auth.HEADER_SIGNATURE.lower()],
    )


def _once(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The `btauth` headers by lower-case name; one that came twice, or names a scheme, is refused."""
    wanted = {name.lower() for name in _REQUEST_HEADERS}
    found: dict[str, str] = {}
    for name, value in headers:
        lowered = name.lower()
        if lowered == http_auth.HEADER_CRYPTO.lower():
            raise refuse(
                Reason.UNSIGNED, f"{http_auth.HEADER_CRYPTO} is not accepted: requests are signed with sr25519"
            )
        if lowered in found:
            raise refuse(Reason.UNSIGNED, f"header {lowered} came twice")
        if lowered in wanted:
            found[lowered] = value
    signature = found.get(http_auth.HEADER_SIGNATURE.lower())
    if signature is not None and not _SIGNATURE.fullmatch(signature):
        raise refuse(Reason.UNSIGNED, f"{http_auth.HEADER_SIGNATURE} is not 0x and 128 lower-case hex digits")
    return found


def _translated(error: http_auth.AuthError) -> Refused:
    """The SDK's refusal in this project's words."""
    return refuse(_REASONS[type(error)], str(error))


def _answer_payload(request: SignedRequest, status: int, body: bytes) -> bytes:
    lines = (
        ANSWER_VERSION,
        _SCHEME,
        str(request.nonce),
        request.sender,
        request.receiver,
        request.digest,
        str(status),
        hashlib.sha256(body).hexdigest(),
    )
    return "\n".join(lines).encode()


def sign_answer(signer: Signer, request: SignedRequest, status: int, body: bytes) -> dict[str, str]:
    """The headers that bind an answer to its request and to the signer, who must be the request's receiver."""
    signature = signer.sign(_answer_payload(request, status, body))
    return {HEADER_ANSWER_HOTKEY: signer.ss58_address, HEADER_ANSWER_SIGNATURE: "0x" + signature.hex()}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One question and its signed answer, which anyone can check without having been there.

    It proves that the hotkey `request.receiver` gave this answer to this question of `request.sender`; the request's
    signature proves in turn that the sender asked it, at the time of its nonce by the sender's clock.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _JSON

    request: SignedRequest
    status: Annotated[int, Field(ge=100, le=599)]
    body: bytes = field(repr=False)
    signature: Signature

    def verify(self) -> None:
        """`BadResponse` if either signature does not hold."""
        request = self.request
        try:
            verify_request(
                request.headers.items(),
                request.body,
                method=request.method,
                target=request.target,
                receiver=request.receiver,
                now_ns=request.nonce,
            )
        except Refused as error:
            raise BadResponse(f"the request in the evidence is not signed by {request.sender}: {error}") from error
        if not _holds(_answer_payload(request, self.status, self.body), self.signature, request.receiver):
            raise BadResponse(f"the answer in the evidence is not signed by {request.receiver}")

    def to_json(self) -> str:
        """One line of JSON; bodies are base64 (URL alphabet)."""
        return _EVIDENCE.dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> Evidence:
        """Read what `to_json` wrote; `BadResponse` if it is anything else. Nothing is verified yet."""
        try:
            return _EVIDENCE.validate_json(text)
        except ValidationError as error:
            raise BadResponse(f"not a piece of evidence: {error.error_count()} fields are wrong or missing") from error


_EVIDENCE = TypeAdapter(Evidence)


def verify_answer(request: SignedRequest, status: int, headers: Mapping[str, str], body: bytes) -> Evidence:
    """The answer as evidence, once the signature of the request's receiver holds; `BadResponse` otherwise.

    `headers` must look names up without regard to case, as `httpx.Headers` does.
    """
    hotkey, signature = headers.get(HEADER_ANSWER_HOTKEY), headers.get(HEADER_ANSWER_SIGNATURE)
    if hotkey is None or signature is None:
        raise BadResponse("the answer is not signed")
    if hotkey != request.receiver:
        raise BadResponse(f"the answer is signed by another hotkey than {request.receiver}")
    if not _holds(_answer_payload(request, status, body), signature, request.receiver):
        raise BadResponse(f"the signature of the answer does not hold for {request.receiver}")
    return Evidence(request=request, status=status, body=body, signature=signature)


def is_signed(headers: Mapping[str, str]) -> bool:
    """Whether an answer claims a signature. Refusals that come before authentication do not."""
    return HEADER_ANSWER_HOTKEY in headers or HEADER_ANSWER_SIGNATURE in headers


def _holds(payload: bytes, signature: str, hotkey: str) -> bool:
    if not _SIGNATURE.fullmatch(signature):
        return False
    try:
        return bool(verify(payload, bytes.fromhex(signature[2:]), hotkey, CRYPTO_SR25519))
    except ValueError:  # not an ss58 address
        return False
