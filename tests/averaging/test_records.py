"""Records of the DHT: only the peer whose id is the subkey can write one, and nothing of one can be changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import P2P, PeerID
from hivemind.utils import MSGPackSerializer

from distributed_training.averaging.identity import HostKey
from distributed_training.averaging.records import MAX_RECORD, OwnRecords


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[HostKey]:
    folder: Path = tmp_path_factory.mktemp("keys")
    for name in ("one", "two"):
        P2P.generate_identity(str(folder / name))
    return [HostKey.load(folder / name) for name in ("one", "two")]


def unsigned(key: HostKey) -> DHTRecord:
    subkey = MSGPackSerializer.dumps(PeerID.from_base58(key.peer_id).to_bytes())
    return DHTRecord(b"k" * 20, subkey, MSGPackSerializer.dumps(True), 1000.5)


def signed(key: HostKey) -> DHTRecord:
    record = unsigned(key)
    return dataclasses.replace(record, value=OwnRecords(key).sign_value(record))


def test_its_owner_s_record_is_believed_by_all(keys: list[HostKey]) -> None:
    """And its value is what was written."""
    record = signed(keys[0])
    for reader in map(OwnRecords, keys):
        assert reader.validate(record)
        assert reader.strip_value(record) == MSGPackSerializer.dumps(True)


def test_nobody_signs_for_another(keys: list[HostKey]) -> None:
    """The other's record is passed on unsigned; a proof by one's own key does not fit its subkey."""
    reader = OwnRecords(keys[1])
    assert reader.sign_value(unsigned(keys[0])) == unsigned(keys[0]).value
    assert not reader.validate(unsigned(keys[0]))
    assert not reader.validate(dataclasses.replace(signed(keys[1]), subkey=unsigned(keys[0]).subkey))


@pytest.mark.parametrize(
    "change", [{"key": b"l" * 20}, {"expiration_time": 1001.0}, {"subkey": b""}, {"value": b""}, {"value": b"\x00" * 6}]
)
def test_nothing_of_a_record_can_be_changed(keys: list[HostKey], change: dict[str, object]) -> None:
    """Key, time, owner; nor can its proof be left out."""
    assert not OwnRecords(keys[1]).validate(dataclasses.replace(signed(keys[0]), **change))


def test_every_flipped_byte_is_noticed(keys: list[HostKey]) -> None:
    """Value, public key, signature and lengths alike, and never by an exception."""
    record, reader = signed(keys[0]), OwnRecords(keys[1])
    for index in range(0, len(record.value), 7):
        value = bytearray(record.value)
        value[index] ^= 1
        assert not reader.validate(dataclasses.replace(record, value=bytes(value)))


def test_a_large_record_is_refused(keys: list[HostKey]) -> None:
    """Even its owner's."""
    writer, record = OwnRecords(keys[0]), dataclasses.replace(unsigned(keys[0]), value=bytes(MAX_RECORD))
    assert not writer.validate(dataclasses.replace(record, value=writer.sign_value(record)))
    assert writer.strip_value(record) == MSGPackSerializer.dumps(None)
