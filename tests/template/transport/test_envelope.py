"""Signatures against the published btauth/1 vectors, and answers against tampering."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from bittensor.keyfiles import Keypair
from hypothesis import given
from hypothesis import strategies as st

from template.errors import BadResponse, ConfigurationError, Refused
from template.transport.envelope import (
    HEADER_ANSWER_HOTKEY,
    HEADER_ANSWER_SIGNATURE,
    Evidence,
    SignedRequest,
    require_sr25519,
    sign_answer,
    sign_request,
    verify_answer,
    verify_request,
)
from tests.template.transport.wires import ALICE, BOB, EVE

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "fixtures" / "btauth_vectors.json").read_text())
FIXTURE = VECTORS["fixture"]
NONCE = int(FIXTURE["nonce_ns"])
REASONS = {
    "StaleRequest": "stale",
    "WrongReceiver": "other_receiver",
    "BadSignature": "bad_signature",
    "MalformedAuth": "unsigned",
}


def check(headers: dict[str, str], **changes: Any) -> SignedRequest:
    """Verify with the fixture's request, some of it changed."""
    body = changes.pop("b", FIXTURE["body_utf8"]).encode()
    arguments = {
        "method": FIXTURE["method"],
        "path": FIXTURE["path"],
        "self_hotkey_ss58": FIXTURE["receiver"],
        "now_ns": NONCE,
    } | changes
    return verify_request(
        headers.items(),
        body,
        method=arguments["method"],
        target=arguments["path"],
        receiver=arguments["self_hotkey_ss58"],
        now_ns=arguments["now_ns"],
    )


def signed(body: bytes = b"question", nonce: int = NONCE) -> SignedRequest:
    return sign_request(ALICE, target="/Ping", body=body, receiver=BOB.ss58_address, nonce=nonce)


def answered(body: bytes = b"answer", status: int = 200) -> Evidence:
    request = signed()
    return verify_answer(request, status, sign_answer(BOB, request, status, body), body)


def test_the_published_request_is_accepted() -> None:
    """The sample of the protocol's own guide verifies, and names its sender."""
    request = check(VECTORS["sr25519"]["sample_valid_headers"])
    assert (request.sender, request.nonce) == (FIXTURE["sender_sr25519"], NONCE)


def test_the_digest_is_the_hash_of_the_published_payload() -> None:
    """An answer names its request by the sha256 of the golden payload."""
    golden = VECTORS["sr25519"]["payload"].encode()
    assert check(VECTORS["sr25519"]["sample_valid_headers"]).digest == hashlib.sha256(golden).hexdigest()


def test_a_request_signed_here_verifies_under_the_published_payload() -> None:
    """What we sign is byte for byte the golden payload."""
    request = sign_request(
        ALICE,
        target=FIXTURE["path"],
        body=FIXTURE["body_utf8"].encode(),
        receiver=FIXTURE["receiver"],
        nonce=NONCE,
    )
    golden = bytes.fromhex(VECTORS["sr25519"]["payload_hex"].removeprefix("0x"))
    assert Keypair(ss58_address=ALICE.ss58_address).verify(golden, bytes.fromhex(request.signature[2:]))


@pytest.mark.parametrize(
    "case", [case for case in VECTORS["cases"] if not case["expect"].startswith("ok")], ids=lambda case: case["name"]
)
def test_negative_vectors_are_refused(case: dict[str, Any]) -> None:
    """Each published negative case is refused, for its own reason."""
    with pytest.raises(Refused) as refusal:
        check(case["headers"], **case["overrides"])
    assert (refusal.value.status, refusal.value.reason) == (401, REASONS[case["expect"]])


@pytest.mark.parametrize("scheme", ["SR25519", "sr25519", "ed25519", ""])
def test_a_crypto_header_is_refused(scheme: str) -> None:
    """Naming a scheme is refused even where it is the right one."""
    with pytest.raises(Refused, match="sr25519"):
        check(VECTORS["sr25519"]["sample_valid_headers"] | {"X-Bittensor-Crypto": scheme})


def test_ed25519_is_refused() -> None:
    """A request that the SDK would accept under ed25519 is not accepted here."""
    with pytest.raises(Refused) as refusal:
        check(VECTORS["ed25519"]["headers"])
    assert refusal.value.reason == "unsigned"


@pytest.mark.parametrize(("offset_s", "fresh"), [(10, True), (10.001, False), (-2, True), (-2.001, False)])
def test_the_window_is_ten_seconds_back_and_two_ahead(offset_s: float, fresh: bool) -> None:
    """The limits are inclusive, as the protocol says."""
    headers = VECTORS["sr25519"]["sample_valid_headers"]
    now_ns = NONCE + int(offset_s * 1000) * 1_000_000
    if fresh:
        check(headers, now_ns=now_ns)
        return
    with pytest.raises(Refused) as refusal:
        check(headers, now_ns=now_ns)
    assert refusal.value.reason == "stale"


@pytest.mark.parametrize("name", ["X-Bittensor-Hotkey", "x-bittensor-nonce", "X-BITTENSOR-SIGNATURE"])
def test_a_header_that_comes_twice_is_refused(name: str) -> None:
    """Two values would let two readers see two different senders."""
    headers = VECTORS["sr25519"]["sample_valid_headers"]
    twice = [*headers.items(), (name, {key.lower(): value for key, value in headers.items()}[name.lower()])]
    with pytest.raises(Refused, match="twice"):
        verify_request(twice, b"", method="POST", target="/", receiver=BOB.ss58_address, now_ns=NONCE)


@pytest.mark.parametrize("nonce", ["", "1_0", " 1", "+1", "-1", "1e3", "9" * 5000, "\u0661"])
def test_a_nonce_is_plain_digits(nonce: str) -> None:
    """Nothing else that Python would read as a number passes."""
    with pytest.raises(Refused) as refusal:
        check(VECTORS["sr25519"]["sample_valid_headers"] | {"X-Bittensor-Nonce": nonce})
    assert refusal.value.reason == "unsigned"


text = st.text(st.characters(codec="latin-1"), max_size=80)


@given(
    st.dictionaries(
        st.sampled_from([*VECTORS["sr25519"]["sample_valid_headers"], "X-Bittensor-Crypto", "Other"]),
        st.one_of(text, st.sampled_from(list(VECTORS["sr25519"]["sample_valid_headers"].values()))),
    ),
    st.binary(max_size=40),
    text,
    text,
)
def test_no_headers_do_more_than_be_refused(headers: dict[str, str], body: bytes, method: str, target: str) -> None:
    """Whatever comes is refused as a value of our own tree."""
    with pytest.raises(Refused):
        verify_request(headers.items(), body, method=method, target=target, receiver=BOB.ss58_address, now_ns=NONCE)


def test_an_answer_holds_for_its_request() -> None:
    """The signed payload is the documented one, checked with the SDK's own verification."""
    evidence = answered()
    request = evidence.request
    lines = ["dt-answer/1", "sr25519", str(NONCE), ALICE.ss58_address, BOB.ss58_address, request.digest, "200"]
    payload = "\n".join([*lines, hashlib.sha256(b"answer").hexdigest()]).encode()
    assert Keypair(ss58_address=BOB.ss58_address).verify(payload, bytes.fromhex(evidence.signature[2:]))
    evidence.verify()


@pytest.mark.parametrize(
    "changes",
    [
        {"body": b"another answer"},
        {"status": 201},
        {"signature": "0x" + "00" * 64},
        {"request": signed(body=b"another question")},
        {"request": signed(nonce=NONCE + 1)},
        {"request": dataclasses.replace(signed(), body=b"not what was signed")},
        {"request": dataclasses.replace(signed(), sender=EVE.ss58_address)},
        {"request": dataclasses.replace(signed(), receiver=EVE.ss58_address)},
        {"request": dataclasses.replace(signed(), target="/Other")},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_changed_evidence_does_not_verify(changes: dict[str, Any]) -> None:
    """Neither side can alter a word of question or answer afterwards."""
    with pytest.raises(BadResponse):
        dataclasses.replace(answered(), **changes).verify()


def test_another_hotkey_cannot_answer() -> None:
    """An answer signed by anybody but the receiver is refused, whatever name it bears."""
    request = signed()
    headers = sign_answer(EVE, request, 200, b"answer")
    for name in (EVE.ss58_address, BOB.ss58_address):
        with pytest.raises(BadResponse):
            verify_answer(request, 200, headers | {HEADER_ANSWER_HOTKEY: name}, b"answer")


@pytest.mark.parametrize("signature", ["", "0x", "zz", "0x" + "0" * 127, "0x" + "g" * 128, "0" * 130])
def test_a_malformed_answer_signature_is_a_bad_response(signature: str) -> None:
    """No shape of the header escapes the tree of errors."""
    headers = {HEADER_ANSWER_HOTKEY: BOB.ss58_address, HEADER_ANSWER_SIGNATURE: signature}
    with pytest.raises(BadResponse):
        verify_answer(signed(), 200, headers, b"answer")


@given(st.binary(max_size=200))
def test_evidence_survives_json(body: bytes) -> None:
    """What is written is read back equal, and still verifies."""
    evidence = answered(body)
    again = Evidence.from_json(evidence.to_json())
    assert again == evidence
    again.verify()


@given(st.one_of(st.text(max_size=60), st.recursive(st.none() | st.text(), st.lists).map(json.dumps)))
def test_what_is_not_evidence_is_a_bad_response(document: str) -> None:
    """Evidence from strangers cannot raise anything else."""
    with pytest.raises(BadResponse):
        Evidence.from_json(document)


def test_a_key_of_another_scheme_is_refused_at_once() -> None:
    """An operator learns at the start that an ed25519 hotkey will not do."""
    with pytest.raises(ConfigurationError, match="sr25519"):
        require_sr25519(Keypair.create_from_uri("//Alice", crypto_type=0))
