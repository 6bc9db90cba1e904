"""Who a peer is outside the libp2p daemon: its host key, and TLS certificates that prove its peer id.

A certificate is made as the libp2p TLS specification says: a fresh P-256 key, signed by itself, with an extension in
which the libp2p host key signs that key. Whoever shows the certificate and proves the P-256 key, as TLS makes it do, is
the peer. No authority, no host name. Host keys may be RSA (hivemind's) or Ed25519. No I/O but reading the key file.
"""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID
from google.protobuf.message import DecodeError
from hivemind.p2p import PeerID
from hivemind.proto import crypto_pb2

from template.errors import AveragingError

EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
PREFIX = b"libp2p-tls-handshake:"
MAX_CERTIFICATE = 4096  # bytes, DER; one with an RSA-2048 host key has about 1000
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 4096
_LIFETIME = datetime.timedelta(days=3650)  # of a certificate; its key lives in one process
_CLOCK_ERROR = datetime.timedelta(days=1)


@asn1.sequence
class SignedKey:
    """The extension's content: the host's public key as libp2p writes it, and its signature over the TLS key."""

    public_key: bytes
    signature: bytes


class _Signer(Protocol):
    def __call__(self, data: bytes) -> bytes: ...


class HostKey:
    """The private key behind a peer id."""

    def __init__(self, public_key: bytes, sign: _Signer) -> None:
        self.public_key = public_key  # libp2p's protobuf
        self.peer_id = peer_id_of(public_key)
        self.sign = sign

    @classmethod
    def load(cls, path: Path) -> HostKey:
        """Read an identity file of hivemind or p2pd.

        Raises:
            AveragingError: it cannot be read or holds no key that can be used; its content is never in the message.
        """
        try:
            message = crypto_pb2.PrivateKey.FromString(path.read_bytes())
            kind, data = message.key_type, message.data
            if kind == crypto_pb2.RSA:
                key = serialization.load_der_private_key(data, password=None)
                if isinstance(key, rsa.RSAPrivateKey):
                    return cls._of_rsa(key)
            elif kind == crypto_pb2.Ed25519:
                return cls._of_ed25519(ed25519.Ed25519PrivateKey.from_private_bytes(data[:32]))
        except OSError as error:
            raise AveragingError(f"the identity file {path} cannot be read: {error.strerror}") from error
        except (DecodeError, ValueError):
            raise AveragingError(f"the identity file {path} holds no libp2p key") from None
        raise AveragingError(f"the identity file {path} holds a key that is neither RSA nor Ed25519")

    @classmethod
    def _of_rsa(cls, key: rsa.RSAPrivateKey) -> HostKey:
        der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(_encode_key(crypto_pb2.RSA, der), lambda data: key.sign(data, padding.PKCS1v15(), hashes.SHA256()))

    @classmethod
    def _of_ed25519(cls, key: ed25519.Ed25519PrivateKey) -> HostKey:
        raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return cls(_encode_key(crypto_pb2.Ed25519, raw), key.sign)


def peer_id_of(public_key: bytes) -> str:
    """The peer id, base58, of a public key in libp2p's protobuf: its hash, or itself if it is short."""
    if len(public_key) <= 42:
        return str(PeerID(bytes([0x00, len(public_key)]) + public_key).to_base58())
    return str(PeerID(b"\x12\x20" + hashlib.sha256(public_key).digest()).to_base58())


def make_certificate(host: HostKey, now: datetime.datetime) -> tuple[bytes, bytes]:
    """A fresh certificate of the peer (DER) and its private key (PEM, unencrypted: keep it in memory)."""
    key = ec.generate_private_key(ec.SECP256R1())
    signed = SignedKey(public_key=host.public_key, signature=host.sign(PREFIX + _spki(key.public_key())))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host.peer_id)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_ERROR)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.UnrecognizedExtension(EXTENSION, asn1.encode_der(signed)), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.DER), private


def certified_peer(certificate: bytes, now: datetime.datetime) -> str:
    """The peer id that a certificate (DER) proves for whoever holds its private key.

    Raises:
        AveragingError: it proves none.
    """
    if len(certificate) > MAX_CERTIFICATE:
        raise AveragingError(f"a certificate of {len(certificate)} bytes; at most {MAX_CERTIFICATE} are taken")
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        key = parsed.public_key()
        extensions = list(parsed.extensions)
        content = asn1.decode_der(SignedKey, _extension(extensions))
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise AveragingError("a certificate whose key is not on P-256")
        parsed.verify_directly_issued_by(parsed)
        _verify(content, PREFIX + _spki(key))
    except (ValueError, TypeError, x509.DuplicateExtension, DecodeError) as error:
        raise AveragingError(f"not a certificate: {error}") from error
    except InvalidSignature:
        raise AveragingError("a certificate with a wrong signature") from None
    if not parsed.not_valid_before_utc <= now <= parsed.not_valid_after_utc:
        raise AveragingError("a certificate that is not valid now")
    return peer_id_of(content.public_key)


def signed_by(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the host key behind `public_key` (libp2p's protobuf) signed `data`.

    Raises:
        AveragingError: that is no public key that can be used.
    """
    try:
        _verify(SignedKey(public_key=public_key, signature=signature), data)
    except InvalidSignature:
        return False
    except (ValueError, TypeError, DecodeError) as error:
        raise AveragingError(f"not a public key: {error}") from error
    return True


def _extension(extensions: list[x509.Extension[x509.ExtensionType]]) -> bytes:
    """The libp2p extension's bytes; no other extension may be critical."""
    content: bytes | None = None
    for extension in extensions:
        if extension.oid == EXTENSION and isinstance(extension.value, x509.UnrecognizedExtension):
            content = extension.value.value
        elif extension.critical:
            raise AveragingError(f"a certificate with an unknown critical extension {extension.oid.dotted_string}")
    if content is None:
        raise AveragingError("a certificate without the libp2p extension")
    return content


def _verify(content: SignedKey, signed: bytes) -> None:
    message = crypto_pb2.PublicKey.FromString(content.public_key)
    if message.key_type == crypto_pb2.RSA:
        key = serialization.load_der_public_key(message.data)
        if not isinstance(key, rsa.RSAPublicKey) or not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise AveragingError(f"a host key that is not RSA of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
        key.verify(content.signature, signed, padding.PKCS1v15(), hashes.SHA256())
    elif message.key_type == crypto_pb2.Ed25519:
        ed25519.Ed25519PublicKey.from_public_bytes(message.data).verify(content.signature, signed)
    else:
        raise AveragingError("a host key that is neither RSA nor Ed25519")


def _encode_key(kind: int, data: bytes) -> bytes:
    return bytes(crypto_pb2.PublicKey(key_type=kind, data=data).SerializeToString())


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
