"""A libp2p identity bound to a hotkey by the hotkey's signature: who speaks for whom on the averaging streams. Pure."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from bittensor.keyfiles import Keypair

from distributed_training.protocol import PeerBinding

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNSIGNED = "0x" + "00" * 64


def sign_binding(keypair: Keypair, run_id: str, peer_id: str, addresses: Sequence[str]) -> PeerBinding:
    """The binding of `peer_id` at `addresses` to the hotkey `keypair` (sr25519, with its private key), for one run."""
    unsigned = PeerBinding(
        hotkey=keypair.ss58_address, peer_id=peer_id, addresses=tuple(addresses), signature=_UNSIGNED
    )
    signature = bytes(keypair.sign(unsigned.signed_bytes(run_id)))
    return unsigned.model_copy(update={"signature": "0x" + signature.hex()})


@functools.lru_cache(maxsize=4096)  # the same few hundred are asked about every second, and a check takes 0.2 ms
def binding_is_valid(binding: PeerBinding, run_id: str, hotkey: str) -> bool:
    """Whether `hotkey` (ss58) signed this binding for this run."""
    if binding.hotkey != hotkey:
        return False
    try:
        keypair = Keypair(ss58_address=binding.hotkey)
    except ValueError:  # not an ss58 address
        return False
    return bool(keypair.verify(binding.signed_bytes(run_id), bytes.fromhex(binding.signature[2:])))
