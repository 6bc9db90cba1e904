"""TLS 1.3 between peers that know each other's certificate, over a blocking socket.

OpenSSL trusts exactly the certificates that `Trust` was given, each verified to prove a peer id (identity.py), so an
unknown peer fails in the handshake, before a byte of payload. Records are read from the socket one by one, never beyond
their end: what follows the last record on the connection is not TLS's to take (direct.py).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

from distributed_training.averaging.identity import HostKey, certified_peer, make_certificate
from template.errors import AveragingError

MAX_STALE = 64  # replaced certificates that may stay loaded; they are refused after the handshake
_RECORD = struct.Struct(">BHH")
_MAX_RECORD = (1 << 14) + 256
TLS_HEADER = _RECORD.size

Now = Callable[[], datetime.datetime]


class Trust:
    """Our certificate, and the one certificate trusted for each other peer. May be used from any thread."""

    def __init__(self, host: HostKey, now: Now) -> None:
        self.certificate, self._key = make_certificate(host, now())
        self._now = now
        self._by_peer: dict[str, bytes] = {}
        self._peers: dict[bytes, str] = {}
        self._lock = threading.Lock()
        self._rebuild()

    def add(self, peer_id: str, certificate: bytes) -> bool:
        """Trust this certificate (DER) for the peer, instead of an earlier one; whether that is new.

        Raises:
            AveragingError: it does not prove that peer id.
        """
        if self._by_peer.get(peer_id) == certificate:
            return False
        proved = certified_peer(certificate, self._now())
        if proved != peer_id:
            raise AveragingError(f"a certificate of {proved} was given for {peer_id}")
        with self._lock:
            self._peers.pop(self._by_peer.pop(peer_id, b""), None)
            self._by_peer[peer_id] = certificate
            self._peers[certificate] = peer_id
            self._load(certificate)
            if self._loaded > 2 * len(self._by_peer) + MAX_STALE:  # peers were replaced; OpenSSL cannot forget one
                self._rebuild()
            return True

    def call(self, raw: socket.socket, peer_id: str) -> TlsChannel:
        """The handshake as the side that opened the connection; only that peer may answer.

        Raises:
            AveragingError: no certificate is known for it, it is not the peer that answers, or the connection is lost.
        """
        channel = TlsChannel(raw, self._client, server_side=False)
        if channel.peer_certificate() != self._by_peer.get(peer_id):
            raise AveragingError(f"the certificate that was shown is not that of {peer_id}")
        return channel

    def answer(self, raw: socket.socket) -> tuple[TlsChannel, str]:
        """The handshake as the side that was called, and who called.

        Raises:
            AveragingError: nobody whom we trust, or the connection is lost.
        """
        channel = TlsChannel(raw, self._server, server_side=True)
        peer_id = self._peers.get(channel.peer_certificate())
        if peer_id is None:  # it was replaced by a newer one
            raise AveragingError("a certificate that is not trusted any more")
        return channel, peer_id

    def _rebuild(self) -> None:
        """New contexts that trust the current certificates only."""
        with _private_file(self._key + ssl.DER_cert_to_PEM_cert(self.certificate).encode()) as path:
            self._client, self._server = (
                _context(side, path) for side in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)
            )
        self._loaded = 0
        for certificate in self._peers:
            self._load(certificate)

    def _load(self, certificate: bytes) -> None:
        for context in (self._client, self._server):
            context.load_verify_locations(cadata=certificate)
        self._loaded += 1


def _context(side: int, key_file: str) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a certificate is bound to a peer id, not to a name
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_TICKET
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    context.load_cert_chain(key_file)
    return context


@contextlib.contextmanager
def _private_file(content: bytes) -> Iterator[str]:
    """A file for the length of a block, because Python takes a key from files only; in memory where Linux has that."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("tls")
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile(prefix="dt-tls-") as file:  # readable by this user only
        file.write(content)
        file.flush()
        yield file.name


def record_size(header: bytes) -> int:
    """Bytes of the record that begins with these five, them included.

    Raises:
        AveragingError: no record begins so.
    """
    kind, _, length = _RECORD.unpack(header)
    if not 20 <= kind <= 23 or length > _MAX_RECORD:
        raise AveragingError("what arrived is not TLS")
    return TLS_HEADER + int(length)


class TlsChannel:
    """An established TLS connection; used by one thread at a time."""

    def __init__(self, raw: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._raw = raw
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._handshake()

    def peer_certificate(self) -> bytes:
        return self._tls.getpeercert(binary_form=True) or b""

    def send(self, data: bytes) -> None:
        """Send a few bytes.

        Raises:
            AveragingError: the connection is lost.
        """
        try:
            self._tls.write(data)
            self._flush()
        except OSError as error:
            raise AveragingError(f"the TLS connection is lost: {error}") from error

    def receive(self, count: int) -> bytes:
        """Exactly `count` bytes, which the caller has bounded.

        Raises:
            AveragingError: the connection is lost or ended.
        """
        data = b""
        try:
            while len(data) < count:
                try:
                    more = self._tls.read(count - len(data))
                except ssl.SSLWantReadError:
                    self._read_record()
                    continue
                if not more:
                    raise AveragingError("the TLS connection was closed")
                data += more
        except OSError as error:
            raise AveragingError(f"the TLS connection is lost: {error}") from error
        return data

    def _handshake(self) -> None:
        try:
            while True:
                try:
                    self._tls.do_handshake()
                except ssl.SSLWantReadError:
                    self._flush()
                    self._read_record()
                    continue
                self._flush()
                return
        except ssl.SSLError as error:
            self._flush_alert()
            raise AveragingError(f"the TLS handshake failed: {error.reason or error}") from error
        except OSError as error:
            raise AveragingError(f"the TLS handshake was cut off: {error}") from error

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._raw.sendall(self._outgoing.read())

    def _flush_alert(self) -> None:
        """Tell the other side why, if it still listens."""
        try:
            self._flush()
        except OSError:
            return  # it does not; the failure itself is what we report

    def _read_record(self) -> None:
        header = self._read_exactly(TLS_HEADER)
        self._incoming.write(header + self._read_exactly(record_size(header) - TLS_HEADER))

    def _read_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._raw.recv(count - len(data))
            if not more:
                raise AveragingError("the connection was closed")
            data += more
        return data
