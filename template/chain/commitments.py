"""What a hotkey publishes about itself: up to 128 bytes, of which the chain keeps the latest and its block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bittensor import Client, Wallet, calls

from template.chain.faults import check, translated
from template.errors import ChainUnavailable, ConfigurationError

LONGEST = 128  # bytes of one field


@dataclass(frozen=True)
class Commitment:
    """`data` as it was published in `block`."""

    block: int
    data: bytes


async def publish_commitment(client: Client, wallet: Wallet, netuid: int, data: bytes) -> None:
    """Put `data` in the place of what the wallet's hotkey published before.

    Raises:
        ConfigurationError: more than 128 bytes.
        ChainRefused: not registered on the subnet, or more than an epoch allows.
        ChainUnavailable: no answer.
    """
    if len(data) > LONGEST:
        raise ConfigurationError(f"a commitment has at most {LONGEST} bytes; found {len(data)}")
    doing = f"publishing a commitment on subnet {netuid}"
    call = calls.Commitments.set_commitment(netuid=netuid, info={"fields": [[{f"Raw{len(data)}": data}]]})
    with translated(doing):
        check(doing, await client.submit_call(call, wallet, signer="hotkey"))


async def read_commitments(client: Client, netuid: int, block: int) -> dict[str, Commitment]:
    """By hotkey what each had published when `block` was over; what is not plain bytes is left out.

    Raises:
        ChainUnavailable: no answer, or the node does not keep the state of that block any more.
    """
    with translated(f"reading the commitments of subnet {netuid} at block {block}"):
        rows = await client.query_map(("Commitments", "CommitmentOf"), [netuid], block=block)
    found = {str(hotkey): _decoded(record) for hotkey, record in rows}
    return {hotkey: commitment for hotkey, commitment in found.items() if commitment is not None}


async def read_block_hash(client: Client, block: int) -> str:
    """The hash of a block that is there, 0x and 64 hex digits.

    Raises:
        ChainUnavailable: no answer, or no such block yet.
    """
    with translated(f"reading the hash of block {block}"):
        info = await client.block_info(block)
    if info is None or not info.hash:
        raise ChainUnavailable(f"block {block} is not there yet")
    return str(info.hash)


def _decoded(record: Mapping[str, Any]) -> Commitment | None:
    """The one field of a record; None where there are more, or one that is no bytes (a hash, a timelock)."""
    fields = record["info"]["fields"]
    if len(fields) != 1 or not isinstance(fields[0], Mapping) or len(fields[0]) != 1:
        return None
    ((variant, value),) = fields[0].items()
    if not str(variant).startswith("Raw"):
        return None
    return Commitment(int(record["block"]), _bytes(value))


def _bytes(value: Any) -> bytes:
    """Hex text as SCALE decoders give it, or bytes that they made text of."""
    text = str(value)
    return bytes.fromhex(text[2:]) if text.startswith("0x") else text.encode()
