"""Uids: giving one to a hotkey, and taking it from another when the subnet is full."""

from __future__ import annotations

from template.chain.local.dispatch import require
from template.chain.local.items import NOBODY, PRIVATE, mechanism_index
from template.chain.local.state import State

PER_SUBNET = {
    "Active": True,
    "Emission": 0,
    "Consensus": 0,
    "Dividends": 0,
    "ValidatorTrust": 0,
    "ValidatorPermit": False,
    "StakeWeight": 0,
}


def uid_of(state: State, netuid: int, hotkey: str) -> int | None:
    uid: int | None = state.get("Uids", netuid, hotkey)
    return uid


def hotkeys(state: State, netuid: int) -> list[str]:
    """Hotkeys by uid."""
    return [str(state.get("Keys", netuid, uid)) for uid in range(state.get("SubnetworkN", netuid))]


def mechanisms(state: State, netuid: int) -> list[int]:
    """The storage indexes of the subnet's mechanisms."""
    return [mechanism_index(netuid, mechid) for mechid in range(state.get("MechanismCountCurrent", netuid))]


def registration_price(state: State, netuid: int) -> int:
    """`Burn`: falls by half every `BurnHalfLife` blocks since the last registration, not below `MinBurn`."""
    last = state.get("Burn", netuid, pallet=PRIVATE)
    if last is None:
        return int(state.get("MinBurn", netuid))
    halvings = (state.block - last["block"]) / state.get("BurnHalfLife", netuid)
    return max(int(state.get("MinBurn", netuid)), int(last["rao"] * 0.5**halvings))


def set_registration_price(state: State, netuid: int, rao: int) -> None:
    value = {"rao": min(rao, state.get("MaxBurn", netuid)), "block": state.block}
    state.put("Burn", netuid, value=value, pallet=PRIVATE)


def associate(state: State, hotkey: str, coldkey: str) -> None:
    """Make the coldkey the hotkey's owner; a hotkey belongs to one coldkey for good."""
    owner = state.get("Owner", hotkey)
    require(owner in (NOBODY, coldkey), "NonAssociatedColdKey")
    if owner == NOBODY:
        state.put("Owner", hotkey, value=coldkey)
        state.put("OwnedHotkeys", coldkey, value=[*state.get("OwnedHotkeys", coldkey), hotkey])


def add(state: State, netuid: int, hotkey: str) -> int:
    """Give the hotkey a free uid, or that of the neuron to prune; returns it."""
    count = state.get("SubnetworkN", netuid)
    if count < state.get("MaxAllowedUids", netuid):
        uid = count
        state.put("SubnetworkN", netuid, value=count + 1)
    else:
        uid = _uid_to_prune(state, netuid)
        _remove(state, netuid, uid)
    _fill(state, netuid, uid, hotkey)
    return int(uid)


def _uid_to_prune(state: State, netuid: int) -> int:
    immunity, owner = state.get("ImmunityPeriod", netuid), state.get("SubnetOwnerHotkey", netuid)
    keys = hotkeys(state, netuid)
    emission = state.vector("Emission", netuid, len(keys))
    candidates = []
    for uid, hotkey in enumerate(keys):
        registered = state.get("BlockAtRegistration", netuid, uid)
        if hotkey != owner and state.block - registered >= immunity:
            candidates.append((emission[uid], registered, uid))
    require(candidates, "NoNeuronIdAvailable")
    return int(min(candidates)[2])


def _remove(state: State, netuid: int, uid: int) -> None:
    """Forget the old hotkey. Others' weights to this uid stay: the epoch ignores those older than the new owner."""
    old = state.get("Keys", netuid, uid)
    state.put("Uids", netuid, old, value=None)
    state.put("Axons", netuid, old, value=None)
    state.put("IsNetworkMember", old, netuid, value=None)
    for index in mechanisms(state, netuid):
        state.put("Weights", index, uid, value=None)
        state.put("Bonds", index, uid, value=None)


def _fill(state: State, netuid: int, uid: int, hotkey: str) -> None:
    for item, value in PER_SUBNET.items():
        state.put_at(item, netuid, uid, value)
    for index in mechanisms(state, netuid):
        state.put_at("Incentive", index, uid, 0)
        state.put_at("LastUpdate", index, uid, state.block)
    state.put("Keys", netuid, uid, value=hotkey)
    state.put("Uids", netuid, hotkey, value=uid)
    state.put("BlockAtRegistration", netuid, uid, value=state.block)
    state.put("IsNetworkMember", hotkey, netuid, value=True)
