"""The storage items that the embedded chain has: their number of keys and the pallet's default when nothing is stored.

An item that is not listed does not exist here and reading it raises. `OptionQuery` items decode to None when absent,
`ValueQuery` items to the default the runtime declares.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from bittensor import ChainError

SUBTENSOR = "SubtensorModule"
PRIVATE = "Embedded"  # our own bookkeeping; not reachable through the SDK
U16 = 65535
RAO = 10**9
MECHANISM_STRIDE = 4096
MAX_MECHANISMS = 2
NOBODY = "5C4hrfjw9DjXZTzV3MwzrrAr9P1MJhSrvWGWqi1eSuyUpnhM"  # the account of 32 zero bytes

ACCOUNT = {
    "nonce": 0,
    "consumers": 0,
    "providers": 0,
    "sufficients": 0,
    "data": {"free": 0, "reserved": 0, "frozen": 0, "flags": 2**127},
}
NO_AXON = {
    "block": 0,
    "version": 0,
    "ip": 0,
    "port": 0,
    "ip_type": 0,
    "protocol": 0,
    "placeholder1": 0,
    "placeholder2": 0,
}


@dataclass(frozen=True)
class Item:
    """`keys` of the map (0: a plain value); `default` is None for an OptionQuery item."""

    keys: int
    default: Any = None


def mechanism_index(netuid: int, mechid: int) -> int:
    """The key under which a mechanism's vectors are stored; equals netuid for mechanism 0."""
    return mechid * MECHANISM_STRIDE + netuid


_SUBTENSOR: dict[str, Item] = {
    # the network
    "NetworksAdded": Item(1, False),
    "TokenSymbol": Item(1),
    "SubnetIdentitiesV3": Item(1),
    "SubnetOwner": Item(1, NOBODY),
    "SubnetOwnerHotkey": Item(1, NOBODY),
    "SubnetLocked": Item(1, 0),
    "NetworkRegisteredAt": Item(1, 0),
    "NetworkRegistrationAllowed": Item(1, True),
    "SubtokenEnabled": Item(1, False),
    "FirstEmissionBlockNumber": Item(1),
    "TaoWeight": Item(0, 3_320_413_933_267_719_290),
    "StakeThreshold": Item(0, 0),
    # hyperparameters
    "Tempo": Item(1, 360),
    "MinBurn": Item(1, 500_000),
    "MaxBurn": Item(1, 100 * RAO),
    "BurnHalfLife": Item(1, 360),
    "CollateralLockShare": Item(1, 0),
    "ImmunityPeriod": Item(1, 5000),
    "MaxAllowedUids": Item(1, 256),
    "MaxAllowedValidators": Item(1, 64),
    "MinAllowedWeights": Item(1, 1),
    "MaxWeightsLimit": Item(1, U16),
    "WeightsVersionKey": Item(1, 0),
    "WeightsSetRateLimit": Item(1, 100),
    "ServingRateLimit": Item(1, 50),
    "ActivityCutoffFactorMilli": Item(1, 13889),
    "Kappa": Item(1, 32767),
    "Rho": Item(1, 10),
    "BondsMovingAverage": Item(1, 900_000),
    "BondsPenalty": Item(1, U16),
    "Yuma3On": Item(1, False),
    "LiquidAlphaOn": Item(1, False),
    "AlphaValues": Item(1, [45875, 58982]),
    "AlphaSigmoidSteepness": Item(1, 1000),
    "CommitRevealWeightsEnabled": Item(1, True),
    "RevealPeriodEpochs": Item(1, 1),
    "CommitRevealWeightsVersion": Item(0, 4),
    "SubnetEpochConsensus": Item(1, "Yuma"),
    "MechanismCountCurrent": Item(1, 1),
    "MaxMechanismCount": Item(0, MAX_MECHANISMS),
    "MechanismEmissionSplit": Item(1),
    # the epoch
    "LastEpochBlock": Item(1, 0),
    "PendingEpochAt": Item(1, 0),
    "SubnetEpochIndex": Item(1, 0),
    "LastMechansimStepBlock": Item(1, 0),
    # neurons
    "SubnetworkN": Item(1, 0),
    "Keys": Item(2, NOBODY),
    "Uids": Item(2),
    "BlockAtRegistration": Item(2, 0),
    "IsNetworkMember": Item(2, False),
    "Owner": Item(1, NOBODY),
    "OwnedHotkeys": Item(1, []),
    "Axons": Item(2),
    "Weights": Item(2, []),
    "Bonds": Item(2, []),
    "LastUpdate": Item(1, []),
    "Incentive": Item(1, []),
    "Active": Item(1, []),
    "Emission": Item(1, []),
    "Consensus": Item(1, []),
    "Dividends": Item(1, []),
    "ValidatorTrust": Item(1, []),
    "ValidatorPermit": Item(1, []),
    "StakeWeight": Item(1, []),
    "TimelockedWeightCommits": Item(2, []),
    # stake and pool
    "TotalHotkeyAlpha": Item(2, 0),
    "SubnetTAO": Item(1, 0),
    "SubnetAlphaIn": Item(1, 0),
    "SubnetAlphaOut": Item(1, 0),
}

ITEMS: dict[tuple[str, str], Item] = {(SUBTENSOR, name): item for name, item in _SUBTENSOR.items()} | {
    ("System", "Account"): Item(1, ACCOUNT),
    ("Commitments", "CommitmentOf"): Item(2),
    ("Commitments", "LastCommitment"): Item(2),
    ("Commitments", "RevealedCommitments"): Item(2),
    ("Commitments", "UsedSpaceOf"): Item(2),
    ("Commitments", "MaxSpace"): Item(0, 3100),
    (PRIVATE, "Burn"): Item(1),  # {"rao", "block"}: the price right after the last registration
    (PRIVATE, "EmissionPaidTo"): Item(1, 0),  # block up to which alpha was handed out
    (PRIVATE, "Stake"): Item(3, 0),  # netuid, hotkey, coldkey -> alpha in rao
    (PRIVATE, "MechanismsChangedAt"): Item(1, 0),
}

EXISTENTIAL_DEPOSIT = 500  # rao
CONSTANTS: dict[tuple[str, str], int] = {
    ("Balances", "ExistentialDeposit"): EXISTENTIAL_DEPOSIT,
    (SUBTENSOR, "InitialStartCallDelay"): 0,
}


def find(pallet: str, name: str) -> Item:
    """The item.

    Raises:
        ChainError: the embedded chain has no such item.
    """
    item = ITEMS.get((pallet, name))
    if item is None:
        raise ChainError(f"the embedded chain does not implement the storage item {pallet}.{name}")
    return item


def default_of(item: Item) -> Any:
    """A fresh copy of the default."""
    return copy.deepcopy(item.default)
