"""Records of the DHT that only their owner can write: a subkey that is a peer id, and a proof by that peer's host key.

hivemind's nodes ask `OwnRecords` of every record that they store or are told; others are refused, those without a
subkey included, since one of them would hide all records with one. What is in a record is still only its owner's word,
and who holds many nodes near a key can keep records from being found.
"""

from __future__ import annotations

import struct

from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import PeerID
from hivemind.utils import MSGPackSerializer

from distributed_training.averaging.identity import HostKey, peer_id_of, signed_by
from template.errors import AveragingError

MAX_RECORD = 4096  # bytes, the proof included
_DOMAIN = b"dt-record/1"
_LENGTHS = struct.Struct(">HHH")  # of value, public key and signature


class OwnRecords(RecordValidatorBase):  # type: ignore[misc]  # hivemind ships no types
    """Signs this peer's records and checks everybody's."""

    def __init__(self, host_key: HostKey) -> None:
        self._host_key = host_key
        self._own = _subkey_of(host_key.peer_id)

    def sign_value(self, record: DHTRecord) -> bytes:
        """The value with its proof behind it; records of others are passed on as they are."""
        value: bytes = record.value
        if record.subkey != self._own:
            return value
        public_key, signature = self._host_key.public_key, self._host_key.sign(_signed(record, value))
        return value + public_key + signature + _LENGTHS.pack(len(value), len(public_key), len(signature))

    def validate(self, record: DHTRecord) -> bool:
        """Whether the record's owner wrote it."""
        parts = _parts(record.value)
        if parts is None:
            return False
        value, public_key, signature = parts
        try:
            return record.subkey == _subkey_of(peer_id_of(public_key)) and signed_by(
                public_key, signature, _signed(record, value)
            )
        except AveragingError:
            return False

    def strip_value(self, record: DHTRecord) -> bytes:
        """The value without its proof; nothing, in hivemind's coding, of a record that has none."""
        parts = _parts(record.value)
        return _NOTHING if parts is None else parts[0]

    def merge_with(self, other: RecordValidatorBase) -> bool:
        """hivemind asks whether two validators are one; there is one a node."""
        return False


_NOTHING: bytes = MSGPackSerializer.dumps(None)


def _subkey_of(peer_id: str) -> bytes:
    return bytes(MSGPackSerializer.dumps(PeerID.from_base58(peer_id).to_bytes()))


def _signed(record: DHTRecord, value: bytes) -> bytes:
    """What the proof covers. Each part's length is fixed or stands before it."""
    parts = (record.key, record.subkey, value)
    lengths = struct.pack(">3Id", *map(len, parts), record.expiration_time)
    return _DOMAIN + lengths + b"".join(parts)


def _parts(data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Value, public key and signature; None of what is not made of them."""
    if not _LENGTHS.size <= len(data) <= MAX_RECORD:
        return None
    value, key, signature = _LENGTHS.unpack(data[-_LENGTHS.size :])
    if value + key + signature + _LENGTHS.size != len(data):
        return None
    return data[:value], data[value : value + key], data[value + key : -_LENGTHS.size]
