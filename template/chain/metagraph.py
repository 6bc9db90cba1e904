"""A frozen picture of one subnet (and one mechanism) at one block."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bittensor import Client
from bittensor.snapshot import Snapshot

from template.chain.faults import translated
from template.errors import ChainUnavailable, ConfigurationError

RAO = 1e9
U16 = 65535
MECHANISM_STRIDE = 4096  # mechanism m of subnet n is stored under m * 4096 + n


@dataclass(frozen=True)
class AxonInfo:
    """Where a neuron serves."""

    ip: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Metagraph:
    """Tuples are indexed by uid. Amounts in TAO or alpha (1e9 rao), scores as fractions of 1, blocks as numbers.

    `last_update` and `incentive` are the mechanism's, the rest the subnet's. `max_weights_limit` is u16 (65535: none).
    """

    netuid: int
    mechid: int
    block: int
    tempo: int
    hotkeys: tuple[str, ...]
    coldkeys: tuple[str, ...]
    stake: tuple[float, ...]
    validator_permit: tuple[bool, ...]
    axons: tuple[AxonInfo | None, ...]
    last_update: tuple[int, ...]
    registered_at: tuple[int, ...]
    incentive: tuple[float, ...]
    dividends: tuple[float, ...]
    emission: tuple[float, ...]
    weights_version: int
    weights_rate_limit: int
    min_allowed_weights: int
    max_weights_limit: int
    max_uids: int
    owner_hotkey: str

    def __len__(self) -> int:
        return len(self.hotkeys)

    def uid_of(self, hotkey: str) -> int | None:
        """The hotkey's uid; None if it is not registered."""
        return self.hotkeys.index(hotkey) if hotkey in self.hotkeys else None

    def is_validator(self, uid: int, stake_floor: float) -> bool:
        """Whether the uid has a permit and at least `stake_floor` of stake.

        A permit alone says little: the chain gives one to any of the largest holders, and a miner that keeps a little
        of what it earned is soon among them.
        """
        return self.validator_permit[uid] and self.stake[uid] >= stake_floor

    @property
    def owner_uid(self) -> int | None:
        """The uid whose incentive is burned; None if the owner's hotkey is not registered."""
        return self.uid_of(self.owner_hotkey)


async def read_metagraph(client: Client, netuid: int, mechid: int = 0, block: int | None = None) -> Metagraph:
    """The subnet at `block`, or at the head.

    Raises:
        ConfigurationError: the chain has no such subnet or mechanism at that block.
        ChainUnavailable: no answer, or the block is still to come.
    """
    with translated(f"reading the metagraph of subnet {netuid}"):
        view = await client.at(block)
        raw = await _read(view, netuid, mechid)
    if raw is None:
        raise ConfigurationError(f"{client.network} has no mechanism {mechid} of subnet {netuid}; check netuid")
    if block is not None and raw["block"] != block:
        raise ChainUnavailable(f"block {block} is not there yet; the chain is at {raw['block']}")
    return _decode(raw, netuid, mechid)


async def _read(view: Snapshot, netuid: int, mechid: int) -> dict[str, Any] | None:
    if mechid == 0:
        raw = await view.runtime(("SubnetInfoRuntimeApi", "get_metagraph"), [netuid])
    else:
        raw = await view.runtime(("SubnetInfoRuntimeApi", "get_mechagraph"), [netuid, mechid])
    return raw if isinstance(raw, dict) else None


async def read_weights(client: Client, netuid: int, mechid: int = 0) -> dict[int, dict[int, float]]:
    """Every validator's weights at the head, {validator: {miner: share}}; each row sums to 1.

    Weights to a uid stay listed after the uid changed hands, until the validator sets new ones.
    """
    with translated(f"reading the weights of subnet {netuid}"):
        rows: dict[int, dict[int, float]] = await client.read("weights", netuid=netuid, mechid=mechid)
    return {uid: dict(row) for uid, row in rows.items() if row}


def axon_of(record: Mapping[str, Any]) -> AxonInfo | None:
    """The address in a decoded `AxonInfo`; None if nothing is served."""
    ip, port = int(record["ip"]), int(record["port"])
    if not ip or not port:
        return None
    address = ipaddress.IPv6Address(ip) if int(record["ip_type"]) == 6 else ipaddress.IPv4Address(ip)
    return AxonInfo(str(address), port)


def _decode(raw: Mapping[str, Any], netuid: int, mechid: int) -> Metagraph:
    return Metagraph(
        netuid=netuid,
        mechid=mechid,
        block=int(raw["block"]),
        tempo=int(raw["tempo"]),
        hotkeys=tuple(str(hotkey) for hotkey in raw["hotkeys"]),
        coldkeys=tuple(str(coldkey) for coldkey in raw["coldkeys"]),
        stake=_floats(raw, "total_stake", RAO),
        validator_permit=tuple(bool(permit) for permit in raw["validator_permit"]),
        axons=tuple(axon_of(record) for record in raw["axons"]),
        last_update=_ints(raw, "last_update"),
        registered_at=_ints(raw, "block_at_registration"),
        incentive=_floats(raw, "incentives", U16),
        dividends=_floats(raw, "dividends", U16),
        emission=_floats(raw, "emission", RAO),
        weights_version=int(raw["weights_version"]),
        weights_rate_limit=int(raw["weights_rate_limit"]),
        min_allowed_weights=int(raw["min_allowed_weights"]),
        max_weights_limit=int(raw["max_weights_limit"]),
        max_uids=int(raw["max_uids"]),
        owner_hotkey=str(raw["owner_hotkey"]),
    )


def _ints(raw: Mapping[str, Any], column: str) -> tuple[int, ...]:
    return tuple(int(value) for value in raw[column])


def _floats(raw: Mapping[str, Any], column: str, scale: float) -> tuple[float, ...]:
    return tuple(int(value) / scale for value in raw[column])
