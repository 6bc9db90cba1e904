"""The runtime APIs the SDK reads with. Shapes as a runtime of spec 469 decodes; an API not listed raises."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bittensor import ChainError

from template.chain.local import epoch, neurons, stake
from template.chain.local.calls.registration import NETWORK_COST
from template.chain.local.items import NO_AXON, RAO, mechanism_index
from template.chain.local.state import State

NO_PROMETHEUS = {"block": 0, "version": 0, "ip": 0, "port": 0, "ip_type": 0}
HYPERPARAMETERS = {
    "rho": "Rho",
    "kappa": "Kappa",
    "immunity_period": "ImmunityPeriod",
    "min_allowed_weights": "MinAllowedWeights",
    "max_weights_limit": "MaxWeightsLimit",
    "tempo": "Tempo",
    "weights_version": "WeightsVersionKey",
    "weights_rate_limit": "WeightsSetRateLimit",
    "activity_cutoff_factor": "ActivityCutoffFactorMilli",
    "registration_allowed": "NetworkRegistrationAllowed",
    "min_burn": "MinBurn",
    "max_burn": "MaxBurn",
    "burn_half_life": "BurnHalfLife",
    "bonds_moving_avg": "BondsMovingAverage",
    "bonds_penalty": "BondsPenalty",
    "serving_rate_limit": "ServingRateLimit",
    "max_validators": "MaxAllowedValidators",
    "max_allowed_uids": "MaxAllowedUids",
    "commit_reveal_weights_enabled": "CommitRevealWeightsEnabled",
    "commit_reveal_period": "RevealPeriodEpochs",
    "liquid_alpha_enabled": "LiquidAlphaOn",
    "yuma3_enabled": "Yuma3On",
}


def call(state: State, api: str, method: str, params: Sequence[Any] | Mapping[str, Any]) -> Any:
    """The decoded answer.

    Raises:
        ChainError: the embedded chain has no such API, or it takes other params.
    """
    function = APIS.get((api, method))
    if function is None:
        raise ChainError(f"the embedded chain does not implement the runtime API {api}.{method}")
    positional, named = ((), dict(params)) if isinstance(params, Mapping) else (tuple(params), {})
    try:
        inspect.signature(function).bind(state, *positional, **named)
    except TypeError as error:
        raise ChainError(f"{api}.{method}: {error}") from error
    return function(state, *positional, **named)


def get_metagraph(state: State, netuid: int) -> dict[str, Any] | None:
    return get_mechagraph(state, netuid, 0)


def get_mechagraph(state: State, netuid: int, mecid: int) -> dict[str, Any] | None:
    """The subnet with one mechanism's incentives and updates; None if there is no such subnet or mechanism."""
    if not state.get("NetworksAdded", netuid) or mecid >= state.get("MechanismCountCurrent", netuid):
        return None
    index = mechanism_index(netuid, mecid)
    subnet = _subnet(state, netuid) | _economy(state, netuid) | _parameters(state, netuid)
    return subnet | _neurons(state, netuid, index) | {"netuid": index}


def _subnet(state: State, netuid: int) -> dict[str, Any]:
    symbol = state.get("TokenSymbol", netuid)
    last_step = state.get("LastMechansimStepBlock", netuid)
    return {
        "name": list(b"local"),
        "symbol": list(bytes.fromhex(symbol[2:])),
        "identity": None,
        "network_registered_at": state.get("NetworkRegisteredAt", netuid),
        "owner_hotkey": state.get("SubnetOwnerHotkey", netuid),
        "owner_coldkey": state.get("SubnetOwner", netuid),
        "block": state.block,
        "tempo": state.get("Tempo", netuid),
        "last_step": last_step,
        "blocks_since_last_step": state.block - last_step,
        "num_uids": state.get("SubnetworkN", netuid),
    }


def _economy(state: State, netuid: int) -> dict[str, Any]:
    """Pool and emission. TAO flows into the pool are not implemented and are zero here, as nothing ever moves."""
    waiting = epoch.pending(state, netuid)
    return {
        "subnet_emission": 0,
        "alpha_in": state.get("SubnetAlphaIn", netuid),
        "alpha_out": state.get("SubnetAlphaOut", netuid),
        "tao_in": state.get("SubnetTAO", netuid),
        "alpha_out_emission": RAO if state.get("SubtokenEnabled", netuid) else 0,
        "alpha_in_emission": 0,
        "tao_in_emission": 0,
        "pending_alpha_emission": waiting.server + waiting.validator,
        "pending_root_emission": 0,
        "subnet_volume": 0,
        "moving_price": {"bits": stake.price(state, netuid) * 2**32 // RAO},
        "burn": neurons.registration_price(state, netuid),
        "min_burn": state.get("MinBurn", netuid),
        "max_burn": state.get("MaxBurn", netuid),
    }


def _parameters(state: State, netuid: int) -> dict[str, Any]:
    low, high = state.get("AlphaValues", netuid)
    plain = {
        "rho": "Rho",
        "kappa": "Kappa",
        "min_allowed_weights": "MinAllowedWeights",
        "max_weights_limit": "MaxWeightsLimit",
        "weights_version": "WeightsVersionKey",
        "weights_rate_limit": "WeightsSetRateLimit",
        "max_validators": "MaxAllowedValidators",
        "max_uids": "MaxAllowedUids",
        "registration_allowed": "NetworkRegistrationAllowed",
        "immunity_period": "ImmunityPeriod",
        "serving_rate_limit": "ServingRateLimit",
        "commit_reveal_weights_enabled": "CommitRevealWeightsEnabled",
        "commit_reveal_period": "RevealPeriodEpochs",
        "liquid_alpha_enabled": "LiquidAlphaOn",
        "bonds_moving_avg": "BondsMovingAverage",
    }
    return {name: state.get(item, netuid) for name, item in plain.items()} | {
        "activity_cutoff": epoch.activity_cutoff(state, netuid),
        "alpha_low": low,
        "alpha_high": high,
        # proof-of-work registration and its adjustment do not exist here: switched off, with the chain's constants
        "pow_registration_allowed": False,
        "difficulty": 0,
        "min_difficulty": 0,
        "max_difficulty": 0,
        "adjustment_alpha": 0,
        "adjustment_interval": 100,
        "target_regs_per_interval": 2,
        "max_regs_per_block": 1,
    }


def _neurons(state: State, netuid: int, index: int) -> dict[str, Any]:
    """Columns by uid. Rank, trust and pruning score are empty, as the runtime sends them."""
    keys = neurons.hotkeys(state, netuid)
    count = len(keys)
    alpha = stake.alpha_of(state, netuid, keys)
    zeros = [0] * count
    return {
        "hotkeys": keys,
        "coldkeys": [stake.owner_of(state, hotkey) for hotkey in keys],
        "identities": [None] * count,
        "axons": [state.get("Axons", netuid, hotkey) or NO_AXON for hotkey in keys],
        "active": state.vector("Active", netuid, count, False),
        "validator_permit": state.vector("ValidatorPermit", netuid, count, False),
        "last_update": state.vector("LastUpdate", index, count),
        "emission": state.vector("Emission", netuid, count),
        "dividends": state.vector("Dividends", netuid, count),
        "incentives": state.vector("Incentive", index, count),
        "consensus": state.vector("Consensus", netuid, count),
        "trust": [],
        "rank": [],
        "pruning_score": [],
        "block_at_registration": [state.get("BlockAtRegistration", netuid, uid) for uid in range(count)],
        "alpha_stake": alpha,
        "tao_stake": zeros,
        "total_stake": alpha,
        "tao_dividends_per_hotkey": [(hotkey, 0) for hotkey in keys],
        "alpha_dividends_per_hotkey": [(hotkey, 0) for hotkey in keys],
        "collateral_locked": zeros,
        "collateral_min": zeros,
        "collateral_earned": zeros,
    }


def get_neurons_lite(state: State, netuid: int) -> list[dict[str, Any]]:
    graph = get_metagraph(state, netuid)
    if graph is None:
        return []
    trust = state.vector("ValidatorTrust", netuid, len(graph["hotkeys"]))
    return [_neuron(graph, uid, trust[uid]) for uid in range(len(graph["hotkeys"]))]


def get_neurons(state: State, netuid: int) -> list[dict[str, Any]]:
    """As `get_neurons_lite`, with weights and bonds of mechanism 0."""
    found = get_neurons_lite(state, netuid)
    for neuron in found:
        uid = neuron["uid"]
        neuron |= {"weights": state.get("Weights", netuid, uid), "bonds": state.get("Bonds", netuid, uid)}
    return found


def _neuron(graph: dict[str, Any], uid: int, validator_trust: int) -> dict[str, Any]:
    columns = ("active", "emission", "consensus", "dividends", "last_update", "validator_permit")
    return {name: graph[name][uid] for name in columns} | {
        "hotkey": graph["hotkeys"][uid],
        "coldkey": graph["coldkeys"][uid],
        "uid": uid,
        "netuid": graph["netuid"],
        "axon_info": graph["axons"][uid],
        "prometheus_info": NO_PROMETHEUS,
        "stake": [(graph["coldkeys"][uid], graph["total_stake"][uid])],
        "incentive": graph["incentives"][uid],
        "validator_trust": validator_trust,
        "rank": 0,
        "trust": 0,
        "pruning_score": 0,
    }


def get_next_epoch_start_block(state: State, netuid: int) -> int | None:
    return epoch.next_epoch_of(state, netuid)


def get_subnet_hyperparams_v3(state: State, netuid: int) -> list[dict[str, Any]] | None:
    if not state.get("NetworksAdded", netuid):
        return None
    values = {name: state.get(item, netuid) for name, item in HYPERPARAMETERS.items()}
    return [
        {"name": name, "value": {"Bool" if isinstance(value, bool) else "U64": value}} for name, value in values.items()
    ]


def current_alpha_price(state: State, netuid: int) -> int:
    return stake.price(state, netuid)


def sim_swap_tao_for_alpha(state: State, netuid: int, tao: int) -> dict[str, int]:
    return _swap(tao=tao, alpha=stake.alpha_for_tao(state, netuid, tao))


def sim_swap_alpha_for_tao(state: State, netuid: int, alpha: int) -> dict[str, int]:
    return _swap(tao=stake.tao_for_alpha(state, netuid, alpha), alpha=alpha)


def _swap(*, tao: int, alpha: int) -> dict[str, int]:
    no_fees = {"tao_fee": 0, "alpha_fee": 0, "tao_slippage": 0, "alpha_slippage": 0}
    return {"tao_amount": tao, "alpha_amount": alpha} | no_fees


def get_stake_info(state: State, hotkey: str, coldkey: str, netuid: int) -> dict[str, Any]:
    return {
        "hotkey": hotkey,
        "coldkey": coldkey,
        "netuid": netuid,
        "stake": stake.held(state, netuid, hotkey, coldkey),
        "locked": 0,
        "emission": 0,
        "tao_emission": 0,
        "drain": 0,
        "is_registered": neurons.uid_of(state, netuid, hotkey) is not None,
    }


def get_network_registration_cost(state: State) -> int:
    return NETWORK_COST


APIS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("SubnetInfoRuntimeApi", "get_metagraph"): get_metagraph,
    ("SubnetInfoRuntimeApi", "get_mechagraph"): get_mechagraph,
    ("SubnetInfoRuntimeApi", "get_next_epoch_start_block"): get_next_epoch_start_block,
    ("SubnetInfoRuntimeApi", "get_subnet_hyperparams_v3"): get_subnet_hyperparams_v3,
    ("NeuronInfoRuntimeApi", "get_neurons_lite"): get_neurons_lite,
    ("NeuronInfoRuntimeApi", "get_neurons"): get_neurons,
    ("SwapRuntimeApi", "current_alpha_price"): current_alpha_price,
    ("SwapRuntimeApi", "sim_swap_tao_for_alpha"): sim_swap_tao_for_alpha,
    ("SwapRuntimeApi", "sim_swap_alpha_for_tao"): sim_swap_alpha_for_tao,
    ("StakeInfoRuntimeApi", "get_stake_info_for_hotkey_coldkey_netuid"): get_stake_info,
    ("SubnetRegistrationRuntimeApi", "get_network_registration_cost"): get_network_registration_cost,
}
