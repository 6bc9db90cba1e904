"""Certificates that prove peer ids: hivemind's own reading of the identity is the reference; each fault is refused."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hivemind.p2p import PeerID
from hivemind.proto import crypto_pb2

from distributed_training.averaging.identity import (
    EXTENSION,
    MAX_CERTIFICATE,
    PREFIX,
    HostKey,
    SignedKey,
    certified_peer,
    make_certificate,
)
from template.errors import AveragingError
from tests.averaging.direct_pairs import host_key

NOW = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)
YEAR = datetime.timedelta(days=365)


@pytest.fixture
def host(tmp_path: Path) -> HostKey:
    return host_key(0, tmp_path)


def test_the_peer_id_is_hiveminds(tmp_path: Path) -> None:
    """For the same identity file."""
    path = tmp_path / "identity"
    key = rsa.generate_private_key(65537, 2048)
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    path.write_bytes(crypto_pb2.PrivateKey(key_type=crypto_pb2.RSA, data=der).SerializeToString())
    assert HostKey.load(path).peer_id == PeerID.from_identity(path.read_bytes()).to_base58()


def test_an_ed25519_identity_proves_itself_too(tmp_path: Path) -> None:
    """Its peer id holds the key itself, as libp2p writes it: 12D3Koo..."""
    path = tmp_path / "identity"
    key = ed25519.Ed25519PrivateKey.generate()
    data = key.private_bytes_raw() + key.public_key().public_bytes_raw()
    path.write_bytes(crypto_pb2.PrivateKey(key_type=crypto_pb2.Ed25519, data=data).SerializeToString())
    host = HostKey.load(path)
    assert host.peer_id.startswith("12D3Koo")
    assert certified_peer(make_certificate(host, NOW)[0], NOW) == host.peer_id


@pytest.mark.parametrize("content", [None, b"", b"not a key", b"\x08\x00\x12\x03abc", b"\x08\x02\x12\x03abc"])
def test_a_file_that_holds_no_key_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    """It says which file, never what is in it."""
    path = tmp_path / "identity"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AveragingError, match="identity file") as error:
        HostKey.load(path)
    assert "abc" not in str(error.value).replace(str(path), "")


def test_a_certificate_proves_its_peer(host: HostKey) -> None:
    """And is small enough for a message."""
    certificate, _ = make_certificate(host, NOW)
    assert certified_peer(certificate, NOW) == host.peer_id
    assert len(certificate) < MAX_CERTIFICATE / 2


Change = Callable[[x509.CertificateBuilder, HostKey, ec.EllipticCurvePrivateKey], x509.CertificateBuilder]


def extension(host: HostKey, key: ec.EllipticCurvePrivateKey, prefix: bytes = PREFIX) -> x509.UnrecognizedExtension:
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    signed = SignedKey(public_key=host.public_key, signature=host.sign(prefix + spki))
    return x509.UnrecognizedExtension(EXTENSION, asn1.encode_der(signed))


def forge(host: HostKey, change: Change, signer: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """A certificate as `change` completes it, signed by itself unless there is another signer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW - YEAR).not_valid_after(NOW + YEAR)
    certificate = change(builder, host, key).sign(signer or key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.DER)


def good(builder: x509.CertificateBuilder, host: HostKey, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    return builder.add_extension(extension(host, key), critical=False)


def nothing(builder: x509.CertificateBuilder, _: HostKey, __: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    return builder


def of_another_key(builder: x509.CertificateBuilder, host: HostKey, _: object) -> x509.CertificateBuilder:
    """The host signed some other TLS key: its certificate was copied."""
    return builder.add_extension(extension(host, ec.generate_private_key(ec.SECP256R1())), critical=False)


def with_another_prefix(
    builder: x509.CertificateBuilder, host: HostKey, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    return builder.add_extension(extension(host, key, b"something-else:"), critical=False)


def with_nonsense(builder: x509.CertificateBuilder, _: HostKey, __: object) -> x509.CertificateBuilder:
    return builder.add_extension(x509.UnrecognizedExtension(EXTENSION, b"nonsense"), critical=False)


def with_a_critical_stranger(
    builder: x509.CertificateBuilder, host: HostKey, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.53594.9"), b"?")
    return good(builder, host, key).add_extension(unknown, critical=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nothing, "without the libp2p extension"),
        (of_another_key, "wrong signature"),
        (with_another_prefix, "wrong signature"),
        (with_nonsense, "not a certificate"),
        (with_a_critical_stranger, "unknown critical"),
    ],
)
def test_a_false_certificate_is_refused(host: HostKey, change: Change, reason: str) -> None:
    """Whatever is missing or wrong in it."""
    assert certified_peer(forge(host, good), NOW) == host.peer_id
    with pytest.raises(AveragingError, match=reason):
        certified_peer(forge(host, change), NOW)


def test_a_certificate_signed_by_another_key_is_refused(host: HostKey) -> None:
    """It must be signed by its own."""
    with pytest.raises(AveragingError, match="wrong signature"):
        certified_peer(forge(host, good, ec.generate_private_key(ec.SECP256R1())), NOW)


def test_a_certificate_out_of_its_time_is_refused(host: HostKey) -> None:
    """Before and after."""
    certificate = forge(host, good)
    for now in (NOW - 2 * YEAR, NOW + 2 * YEAR):
        with pytest.raises(AveragingError, match="valid now"):
            certified_peer(certificate, now)


@pytest.mark.parametrize("data", [b"", b"0" * 100, b"\x30\x82\xff\xff", bytes(MAX_CERTIFICATE + 1)])
def test_nonsense_is_refused(data: bytes) -> None:
    """Before it is parsed if it is too large."""
    with pytest.raises(AveragingError):
        certified_peer(data, NOW)
