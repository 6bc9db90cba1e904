"""What the owner of a chain file may do without anybody's signature: money, registrations, settings, time.

The functions that take a `State` write to its block inside the caller's transaction; `apply` provides both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from bittensor import ChainError

from template.chain.local import accounts, epoch, extrinsics, ledger, runtime
from template.chain.local.items import RAO
from template.chain.local.ledger import Ledger
from template.chain.local.names import message_of
from template.chain.local.state import State
from template.errors import ChainRefused, ConfigurationError

T = TypeVar("T")

# The names the SDK gives to hyperparameters -> setter and its argument.
SETTERS: Mapping[str, tuple[str, str]] = {
    "tempo": ("sudo_set_tempo", "tempo"),
    "immunity_period": ("sudo_set_immunity_period", "immunity_period"),
    "min_allowed_weights": ("sudo_set_min_allowed_weights", "min_allowed_weights"),
    "weights_version": ("sudo_set_weights_version_key", "weights_version_key"),
    "weights_rate_limit": ("sudo_set_weights_set_rate_limit", "weights_set_rate_limit"),
    "activity_cutoff_factor": ("sudo_set_activity_cutoff_factor", "factor_milli"),
    "min_burn": ("sudo_set_min_burn", "min_burn"),
    "max_burn": ("sudo_set_max_burn", "max_burn"),
    "burn_half_life": ("sudo_set_burn_half_life", "burn_half_life"),
    "bonds_moving_avg": ("sudo_set_bonds_moving_average", "bonds_moving_average"),
    "bonds_penalty": ("sudo_set_bonds_penalty", "bonds_penalty"),
    "serving_rate_limit": ("sudo_set_serving_rate_limit", "serving_rate_limit"),
    "max_allowed_uids": ("sudo_set_max_allowed_uids", "max_allowed_uids"),
    "max_validators": ("sudo_set_max_allowed_validators", "max_allowed_validators"),
    "kappa": ("sudo_set_kappa", "kappa"),
    "rho": ("sudo_set_rho", "rho"),
    "registration_allowed": ("sudo_set_network_registration_allowed", "registration_allowed"),
    "commit_reveal_weights_enabled": ("sudo_set_commit_reveal_weights_enabled", "enabled"),
    "commit_reveal_period": ("sudo_set_commit_reveal_weights_interval", "interval"),
    "yuma3_enabled": ("sudo_set_yuma3_enabled", "enabled"),
    "liquid_alpha_enabled": ("sudo_set_liquid_alpha_enabled", "enabled"),
    "mechanism_count": ("sudo_set_mechanism_count", "mechanism_count"),
    "mechanism_emission_split": ("sudo_set_mechanism_emission_split", "maybe_split"),
}
STORED = {"max_weights_limit": "MaxWeightsLimit"}  # the runtime has no setter for it any more


@dataclass(frozen=True)
class Keys:
    """The ss58 addresses of a neuron."""

    coldkey: str
    hotkey: str


def apply(chain: Ledger, work: Callable[[State], T]) -> T:
    """Run `work` on the state of the open block, written with all its effects or not at all."""
    return extrinsics.in_open_block(chain, lambda block: work(State(chain.db, block)))


def execute(state: State, origin: str | None, module: str, function: str, **params: Any) -> None:
    """One call as `origin`; None is root.

    Raises:
        ChainRefused: the pallet refused, or the embedded chain does not implement it.
    """
    try:
        receipt = extrinsics.execute_unsigned(state, runtime.compose(module, function, params), origin)
    except ChainError as error:
        raise ChainRefused(error.message, code=error.code.value, name=error.name) from error
    if receipt.error is not None:
        refused = ChainError(message_of(receipt.error), receipt.error)
        raise ChainRefused(f"{receipt.error}: {refused.message}", code=refused.code.value, name=receipt.error)


def fund(state: State, who: str, tao: float) -> None:
    """Give `tao` out of nothing to an account."""
    total = accounts.free(state, who) + round(tao * RAO)
    execute(state, None, "Balances", "force_set_balance", who=who, new_free=total)


def register(state: State, netuid: int, keys: Keys) -> None:
    """Register the hotkey at the coldkey's cost."""
    execute(state, keys.coldkey, "SubtensorModule", "burned_register", netuid=netuid, hotkey=keys.hotkey)


def add_stake(state: State, netuid: int, keys: Keys, tao: float) -> None:
    """Stake the coldkey's TAO on its hotkey."""
    params = {"hotkey": keys.hotkey, "netuid": netuid, "amount_staked": round(tao * RAO)}
    execute(state, keys.coldkey, "SubtensorModule", "add_stake", **params)


def set_hyperparameter(state: State, netuid: int, name: str, value: Any) -> None:
    """Set a hyperparameter by the SDK's name for it.

    Raises:
        ConfigurationError: no such name.
        ChainRefused: the value is out of bounds.
    """
    if name in STORED:
        state.put(STORED[name], netuid, value=value)
        return
    if name not in SETTERS:
        raise ConfigurationError(f"unknown hyperparameter '{name}'; known: {', '.join(sorted({*SETTERS, *STORED}))}")
    function, argument = SETTERS[name]
    execute(state, None, "AdminUtils", function, **{"netuid": netuid, argument: value})


def advance(chain: Ledger, blocks: int) -> int:
    """Move a manual clock forward; returns the new head.

    Raises:
        ConfigurationError: the chain runs on the wall clock, or `blocks` is not positive.
    """
    clock = chain.block_clock()
    if clock.manual_head is None:
        raise ConfigurationError(f"{chain.path} runs on the wall clock; only a chain made with --manual is advanced")
    if blocks < 1:
        raise ConfigurationError("advance by at least one block")
    target = clock.manual_head + blocks
    epoch.catch_up(chain, target)
    with chain.transaction() as db:
        ledger.seal(db, target)
    return chain.head()
