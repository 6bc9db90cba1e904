"""Storage as the SDK queries it: stored items, and those that follow from the block number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bittensor import ChainError

from template.chain.local import epoch, items, neurons
from template.chain.local.items import PRIVATE, SUBTENSOR
from template.chain.local.state import State

COMPUTED: dict[str, Callable[[State, int], Any]] = {
    "Burn": neurons.registration_price,
    "BlocksSinceLastStep": lambda state, netuid: state.block - state.get("LastMechansimStepBlock", netuid),
    "PendingServerEmission": lambda state, netuid: epoch.pending(state, netuid).server,
    "PendingValidatorEmission": lambda state, netuid: epoch.pending(state, netuid).validator,
    "PendingOwnerCut": lambda state, netuid: epoch.pending(state, netuid).owner,
}


def read(state: State, pallet: str, item: str, params: Sequence[Any]) -> Any:
    """One value.

    Raises:
        ChainError: the embedded chain has no such item, or the number of params is wrong.
    """
    if pallet == SUBTENSOR and item in COMPUTED:
        if len(params) != 1:
            raise ChainError(f"the storage item {pallet}.{item} has 1 key; {len(params)} were given")
        return COMPUTED[item](state, params[0])
    _check_public(pallet, item)
    return state.get(item, *params, pallet=pallet)


def read_map(state: State, pallet: str, item: str, params: Sequence[Any]) -> list[tuple[Any, Any]]:
    """All entries under a prefix; a key of one part comes as that part, of several as a tuple.

    Raises:
        ChainError: the embedded chain has no such map.
    """
    if pallet == SUBTENSOR and item in COMPUTED:
        return [(netuid, COMPUTED[item](state, netuid)) for netuid in epoch.subnets(state)]
    _check_public(pallet, item)
    return [(key[0] if len(key) == 1 else key, value) for key, value in state.entries(item, *params, pallet=pallet)]


def _check_public(pallet: str, item: str) -> None:
    if pallet == PRIVATE:
        raise ChainError(f"the embedded chain does not implement the storage item {pallet}.{item}")


def constant(pallet: str, name: str, block_seconds: float) -> int:
    """A runtime constant.

    Raises:
        ChainError: the embedded chain has no such constant.
    """
    if (pallet, name) == ("Aura", "SlotDuration"):
        return int(block_seconds * 1000)
    if (pallet, name) not in items.CONSTANTS:
        raise ChainError(f"the embedded chain does not implement the constant {pallet}.{name}")
    return items.CONSTANTS[pallet, name]
