"""The binding of a libp2p identity to a hotkey."""

from __future__ import annotations

import pytest
from bittensor.keyfiles import Keypair

from distributed_training.averaging.binding import binding_is_valid, sign_binding
from distributed_training.protocol import PeerBinding

ALICE, BOB = Keypair.create_from_uri("//Alice"), Keypair.create_from_uri("//Bob")
ADDRESSES = ("/ip4/127.0.0.1/tcp/4001/p2p/Qm1",)


@pytest.fixture
def binding() -> PeerBinding:
    return sign_binding(ALICE, "nano-1", "Qm1", ADDRESSES)


def test_a_signed_binding_is_valid(binding: PeerBinding) -> None:
    """For its run and its hotkey, by the public address alone."""
    assert binding_is_valid(binding, "nano-1", ALICE.ss58_address)


def test_it_is_valid_for_nothing_else(binding: PeerBinding) -> None:
    """Another run, another hotkey, another peer id or another address."""
    assert not binding_is_valid(binding, "nano-2", ALICE.ss58_address)
    assert not binding_is_valid(binding, "nano-1", BOB.ss58_address)
    for change in ({"peer_id": "Qm2"}, {"addresses": ("/ip4/127.0.0.1/tcp/4002",)}, {"hotkey": BOB.ss58_address}):
        changed = binding.model_copy(update=change)
        assert not binding_is_valid(changed, "nano-1", changed.hotkey)


def test_a_hotkey_that_is_no_address_is_not_valid(binding: PeerBinding) -> None:
    """Refused as invalid, not as an error of ours."""
    changed = binding.model_copy(update={"hotkey": "5" * 48})
    assert not binding_is_valid(changed, "nano-1", "5" * 48)
