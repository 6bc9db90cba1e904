"""SubtensorModule: TAO to alpha on a hotkey, and back."""

from __future__ import annotations

from bittensor import ChainError

from template.chain.local import accounts, stake
from template.chain.local.codec import U16, U64, Account, Flag
from template.chain.local.dispatch import Execution, Handlers, require
from template.chain.local.items import RAO, SUBTENSOR

MINIMUM = 2_000_000  # rao


def add_stake(run: Execution, *, hotkey: Account, netuid: U16, amount_staked: U64) -> None:
    _buy(run, hotkey, netuid, amount_staked, None)


def add_stake_limit(
    run: Execution, *, hotkey: Account, netuid: U16, amount_staked: U64, limit_price: U64, allow_partial: Flag
) -> None:
    _refuse_partial(allow_partial)
    _buy(run, hotkey, netuid, amount_staked, limit_price)


def remove_stake(run: Execution, *, hotkey: Account, netuid: U16, amount_unstaked: U64) -> None:
    _sell(run, hotkey, netuid, amount_unstaked, None)


def remove_stake_limit(
    run: Execution, *, hotkey: Account, netuid: U16, amount_unstaked: U64, limit_price: U64, allow_partial: Flag
) -> None:
    _refuse_partial(allow_partial)
    _sell(run, hotkey, netuid, amount_unstaked, limit_price)


def _refuse_partial(allow_partial: bool) -> None:
    if allow_partial:
        raise ChainError("the embedded chain does not implement partial fills; pass allow_partial=False")


def _check_market(run: Execution, netuid: int, hotkey: str) -> None:
    if netuid == 0:
        raise ChainError("the embedded chain does not implement root stake (netuid 0)")
    require(run.state.get("NetworksAdded", netuid), "SubnetNotExists")
    require(run.state.get("SubtokenEnabled", netuid), "SubtokenDisabled")
    require(stake.is_known(run.state, hotkey), "HotKeyAccountNotExists")


def _buy(run: Execution, hotkey: str, netuid: int, tao: int, limit: int | None) -> None:
    _check_market(run, netuid, hotkey)
    require(tao >= MINIMUM, "AmountTooLow")
    require(accounts.can_spend(run.state, run.signer, tao), "NotEnoughBalanceToStake")
    alpha = stake.alpha_for_tao(run.state, netuid, tao)
    stake.move_pool(run.state, netuid, tao=tao, alpha=alpha)
    require(limit is None or stake.price(run.state, netuid) <= limit, "SlippageTooHigh")
    accounts.add(run.state, run.signer, -tao)
    stake.add_alpha(run.state, netuid, hotkey, run.signer, alpha)
    run.emit(SUBTENSOR, "StakeAdded", [run.signer, hotkey, tao, alpha, netuid, 0])


def _sell(run: Execution, hotkey: str, netuid: int, amount: int, limit: int | None) -> None:
    _check_market(run, netuid, hotkey)
    held = stake.held(run.state, netuid, hotkey, run.signer)
    require(held > 0, "NotEnoughStakeToWithdraw")
    alpha = min(amount, held)  # the pallet caps the amount
    rest = (held - alpha) * stake.price(run.state, netuid) // RAO
    require(alpha == held or rest >= MINIMUM, "AmountTooLow")
    tao = stake.tao_for_alpha(run.state, netuid, alpha)
    stake.move_pool(run.state, netuid, tao=-tao, alpha=-alpha)
    require(limit is None or stake.price(run.state, netuid) >= limit, "SlippageTooHigh")
    accounts.add(run.state, run.signer, tao)
    stake.add_alpha(run.state, netuid, hotkey, run.signer, -alpha)
    run.emit(SUBTENSOR, "StakeRemoved", [run.signer, hotkey, tao, alpha, netuid, 0])


HANDLERS: Handlers = {
    (SUBTENSOR, "add_stake"): add_stake,
    (SUBTENSOR, "add_stake_limit"): add_stake_limit,
    (SUBTENSOR, "remove_stake"): remove_stake,
    (SUBTENSOR, "remove_stake_limit"): remove_stake_limit,
}
