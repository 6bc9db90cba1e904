"""SubtensorModule: subnets and hotkeys come into being."""

from __future__ import annotations

from template.chain.local import accounts, neurons
from template.chain.local.codec import U16, Account
from template.chain.local.dispatch import Execution, Handlers, require
from template.chain.local.items import PRIVATE, RAO, SUBTENSOR

NETWORK_COST = 1000 * RAO  # fixed; the chain's doubles with every subnet and decays
FIRST_PRICE = RAO // 10
PRICE_FACTOR = (126, 100)  # BurnIncreaseMult 1.26


def register_network(run: Execution, *, hotkey: Account) -> None:
    state, owner = run.state, run.signer
    require(accounts.can_spend(state, owner, NETWORK_COST), "CannotAffordLockCost")
    neurons.associate(state, hotkey, owner)
    netuid = 1 + max(int(key[0]) for key, _ in state.entries("NetworksAdded"))
    accounts.add(state, owner, -NETWORK_COST)
    for item, value in _new_subnet(state.block, owner, hotkey, netuid).items():
        state.put(item, netuid, value=value)
    neurons.set_registration_price(state, netuid, FIRST_PRICE)
    neurons.add(state, netuid, hotkey)
    run.emit(SUBTENSOR, "NetworkAdded", [netuid, 1])


def _new_subnet(block: int, owner: str, hotkey: str, netuid: int) -> dict[str, object]:
    """What registration writes. Commit-reveal starts off: commits cannot be opened here (see calls/weights.py)."""
    return {
        "NetworksAdded": True,
        "Tempo": 360,
        "MaxAllowedUids": 256,
        "MaxAllowedValidators": 64,
        "Yuma3On": True,
        "CommitRevealWeightsEnabled": False,
        "LastEpochBlock": block,
        "NetworkRegisteredAt": block,
        "SubnetOwner": owner,
        "SubnetOwnerHotkey": hotkey,
        "SubnetTAO": NETWORK_COST,
        "SubnetAlphaIn": NETWORK_COST,
        "SubnetLocked": NETWORK_COST,
        "TokenSymbol": "0x" + f"sn{netuid}".encode().hex(),
    }


def start_call(run: Execution, *, netuid: U16) -> None:
    state = run.state
    require(state.get("NetworksAdded", netuid), "SubnetNotExists")
    require(state.get("SubnetOwner", netuid) == run.signer, "BadOrigin")
    require(state.get("FirstEmissionBlockNumber", netuid) is None, "FirstEmissionBlockNumberAlreadySet")
    state.put("SubtokenEnabled", netuid, value=True)
    state.put("FirstEmissionBlockNumber", netuid, value=state.block + 1)
    state.put("EmissionPaidTo", netuid, value=state.block, pallet=PRIVATE)
    run.emit(SUBTENSOR, "FirstEmissionBlockNumberSet", [netuid, state.block + 1])


def burned_register(run: Execution, *, netuid: U16, hotkey: Account) -> None:
    state, coldkey = run.state, run.signer
    require(netuid != 0, "RegistrationNotPermittedOnRootSubnet")
    require(state.get("NetworksAdded", netuid), "SubnetNotExists")
    require(state.get("NetworkRegistrationAllowed", netuid), "SubNetRegistrationDisabled")
    require(neurons.uid_of(state, netuid, hotkey) is None, "HotKeyAlreadyRegisteredInSubNet")
    price = neurons.registration_price(state, netuid)
    require(accounts.can_spend(state, coldkey, price), "NotEnoughBalanceToStake")
    neurons.associate(state, hotkey, coldkey)
    accounts.add(state, coldkey, -price)
    uid = neurons.add(state, netuid, hotkey)
    neurons.set_registration_price(state, netuid, price * PRICE_FACTOR[0] // PRICE_FACTOR[1])
    run.emit(SUBTENSOR, "NeuronRegistered", [netuid, uid, hotkey])


HANDLERS: Handlers = {
    (SUBTENSOR, "register_network"): register_network,
    (SUBTENSOR, "start_call"): start_call,
    (SUBTENSOR, "burned_register"): burned_register,
}
