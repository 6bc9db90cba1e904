"""AdminUtils: hyperparameters. The subnet's owner may set most of them, root (the operator of the file) all.

The chain's limits on how often an owner may change them are kept only for the mechanisms (`MECHANISM_RATE_LIMIT`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from template.chain.local.codec import I16, U8, U16, U32, U64, Flag
from template.chain.local.dispatch import Execution, Handlers, require
from template.chain.local.items import MAX_MECHANISMS, PRIVATE, mechanism_index
from template.chain.local.items import U16 as U16_MAX
from template.chain.local.state import State

MECHANISM_RATE_LIMIT = 7200  # blocks between an owner's changes of count or split
UIDS_TIMES_MECHANISMS = 256
OWNER_TEMPO = range(360, 50_401)  # what an owner may choose; root may choose any


@dataclass(frozen=True)
class Setting:
    """One setter: it writes `argument` (of type `kind`) to `item` of the subnet."""

    item: str
    argument: str
    kind: Any
    owner: bool = True


SETTINGS: Mapping[str, Setting] = {
    "sudo_set_immunity_period": Setting("ImmunityPeriod", "immunity_period", U16),
    "sudo_set_min_allowed_weights": Setting("MinAllowedWeights", "min_allowed_weights", U16),
    "sudo_set_weights_version_key": Setting("WeightsVersionKey", "weights_version_key", U64),
    "sudo_set_activity_cutoff_factor": Setting("ActivityCutoffFactorMilli", "factor_milli", U32),
    "sudo_set_min_burn": Setting("MinBurn", "min_burn", U64),
    "sudo_set_max_burn": Setting("MaxBurn", "max_burn", U64),
    "sudo_set_burn_half_life": Setting("BurnHalfLife", "burn_half_life", U16),
    "sudo_set_bonds_moving_average": Setting("BondsMovingAverage", "bonds_moving_average", U64),
    "sudo_set_bonds_penalty": Setting("BondsPenalty", "bonds_penalty", U16),
    "sudo_set_serving_rate_limit": Setting("ServingRateLimit", "serving_rate_limit", U64),
    "sudo_set_commit_reveal_weights_interval": Setting("RevealPeriodEpochs", "interval", U64),
    "sudo_set_commit_reveal_weights_enabled": Setting("CommitRevealWeightsEnabled", "enabled", Flag),
    "sudo_set_liquid_alpha_enabled": Setting("LiquidAlphaOn", "enabled", Flag),
    "sudo_set_yuma3_enabled": Setting("Yuma3On", "enabled", Flag),
    "sudo_set_alpha_sigmoid_steepness": Setting("AlphaSigmoidSteepness", "steepness", I16),
    "sudo_set_network_registration_allowed": Setting("NetworkRegistrationAllowed", "registration_allowed", Flag),
    "sudo_set_rho": Setting("Rho", "rho", U16),
    "sudo_set_kappa": Setting("Kappa", "kappa", U16, owner=False),
    "sudo_set_max_allowed_validators": Setting("MaxAllowedValidators", "max_allowed_validators", U16, owner=False),
    "sudo_set_weights_set_rate_limit": Setting("WeightsSetRateLimit", "weights_set_rate_limit", U64, owner=False),
}


def setters() -> dict[tuple[str, str], tuple[Callable[..., None], dict[str, Any]]]:
    """The plain setters with the types of their arguments."""
    return {
        ("AdminUtils", name): (partial(_apply, setting), {"netuid": U16, setting.argument: setting.kind})
        for name, setting in SETTINGS.items()
    }


def _apply(setting: Setting, run: Execution, /, *, netuid: int, **value: Any) -> None:
    _authorise(run, netuid, owner=setting.owner)
    if setting.item == "BurnHalfLife":
        require(value[setting.argument] > 0, "InvalidValue")
    if setting.item == "BondsMovingAverage":
        require(value[setting.argument] <= 1_000_000, "BondsMovingAverageMaxReached")
    run.state.put(setting.item, netuid, value=value[setting.argument])


def _authorise(run: Execution, netuid: int, *, owner: bool = True) -> None:
    require(run.state.get("NetworksAdded", netuid), "SubnetDoesNotExist")
    is_owner = owner and run.state.get("SubnetOwner", netuid) == run.origin
    require(run.origin is None or is_owner, "BadOrigin")


def sudo_set_tempo(run: Execution, *, netuid: U16, tempo: U16) -> None:
    """Also starts the epoch's cycle anew."""
    _authorise(run, netuid)
    require(run.origin is None or tempo in OWNER_TEMPO, "ValueNotInBounds")
    run.state.put("Tempo", netuid, value=tempo)
    run.state.put("LastEpochBlock", netuid, value=run.state.block)


def sudo_set_max_allowed_uids(run: Execution, *, netuid: U16, max_allowed_uids: U16) -> None:
    _authorise(run, netuid)
    state = run.state
    require(max_allowed_uids >= state.get("SubnetworkN", netuid), "MaxAllowedUIdsLessThanCurrentUIds")
    fits = max_allowed_uids * state.get("MechanismCountCurrent", netuid) <= UIDS_TIMES_MECHANISMS
    require(fits, "TooManyUIDsPerMechanism")
    state.put("MaxAllowedUids", netuid, value=max_allowed_uids)


def sudo_set_alpha_values(run: Execution, *, netuid: U16, alpha_low: U16, alpha_high: U16) -> None:
    _authorise(run, netuid)
    require(run.state.get("LiquidAlphaOn", netuid), "LiquidAlphaDisabled")
    require(alpha_high >= U16_MAX // 40, "AlphaHighTooLow")
    require(U16_MAX // 40 <= alpha_low <= alpha_high, "AlphaLowOutOfRange")
    run.state.put("AlphaValues", netuid, value=[alpha_low, alpha_high])


def sudo_set_stake_threshold(run: Execution, *, min_stake: U64) -> None:
    require(run.origin is None, "BadOrigin")
    run.state.put("StakeThreshold", value=min_stake)


def sudo_set_mechanism_count(run: Execution, *, netuid: U16, mechanism_count: U8) -> None:
    _authorise(run, netuid)
    state = run.state
    require(1 <= mechanism_count <= MAX_MECHANISMS, "InvalidValue")
    require(state.get("MaxAllowedUids", netuid) * mechanism_count <= UIDS_TIMES_MECHANISMS, "TooManyUIDsPerMechanism")
    _check_mechanism_rate(run, netuid)
    for mechid in range(mechanism_count, state.get("MechanismCountCurrent", netuid)):
        _drop_mechanism(state, mechanism_index(netuid, mechid))
    for mechid in range(mechanism_count):
        _fill_mechanism(state, netuid, mechanism_index(netuid, mechid))
    state.put("MechanismCountCurrent", netuid, value=mechanism_count)
    state.put("MechanismEmissionSplit", netuid, value=None)


def sudo_set_mechanism_emission_split(run: Execution, *, netuid: U16, maybe_split: list[U16] | None) -> None:
    _authorise(run, netuid)
    if maybe_split is not None:
        fits = 0 < len(maybe_split) <= run.state.get("MechanismCountCurrent", netuid)
        require(fits and sum(maybe_split) == U16_MAX, "InvalidValue")
    _check_mechanism_rate(run, netuid)
    run.state.put("MechanismEmissionSplit", netuid, value=maybe_split)


def _check_mechanism_rate(run: Execution, netuid: int) -> None:
    if run.origin is None:
        return
    last = run.state.get("MechanismsChangedAt", netuid, pallet=PRIVATE)
    require(last == 0 or run.state.block - last >= MECHANISM_RATE_LIMIT, "TxRateLimitExceeded")
    run.state.put("MechanismsChangedAt", netuid, value=run.state.block, pallet=PRIVATE)


def _drop_mechanism(state: State, index: int) -> None:
    for item in ("Weights", "Bonds", "TimelockedWeightCommits"):
        for key, _ in state.entries(item, index):
            state.put(item, index, *key, value=None)
    for item in ("Incentive", "LastUpdate"):
        state.put(item, index, value=None)


def _fill_mechanism(state: State, netuid: int, index: int) -> None:
    for item in ("Incentive", "LastUpdate"):
        state.put(item, index, value=state.vector(item, index, state.get("SubnetworkN", netuid)))


HANDLERS: Handlers = {
    ("AdminUtils", "sudo_set_tempo"): sudo_set_tempo,
    ("AdminUtils", "sudo_set_max_allowed_uids"): sudo_set_max_allowed_uids,
    ("AdminUtils", "sudo_set_alpha_values"): sudo_set_alpha_values,
    ("AdminUtils", "sudo_set_stake_threshold"): sudo_set_stake_threshold,
    ("AdminUtils", "sudo_set_mechanism_count"): sudo_set_mechanism_count,
    ("AdminUtils", "sudo_set_mechanism_emission_split"): sudo_set_mechanism_emission_split,
}
