"""Alpha: who holds how much on which hotkey, and the pool that swaps it against TAO. Amounts in rao.

The pool is a constant product without fees, as the chain's before concentrated liquidity. Root stake (netuid 0) and
delegate takes other than the default are not implemented.
"""

from __future__ import annotations

from template.chain.local.items import NOBODY, PRIVATE, RAO, U16
from template.chain.local.state import State

DELEGATE_TAKE = 11796  # of 65535: 18 %, the chain's default


def held(state: State, netuid: int, hotkey: str, coldkey: str) -> int:
    """Alpha of one coldkey on one hotkey."""
    return int(state.get("Stake", netuid, hotkey, coldkey, pallet=PRIVATE))


def add_alpha(state: State, netuid: int, hotkey: str, coldkey: str, rao: int) -> None:
    """Credit alpha, or debit it if negative."""
    value = held(state, netuid, hotkey, coldkey) + rao
    state.put("Stake", netuid, hotkey, coldkey, value=value or None, pallet=PRIVATE)
    state.put("TotalHotkeyAlpha", hotkey, netuid, value=state.get("TotalHotkeyAlpha", hotkey, netuid) + rao)


def alpha_of(state: State, netuid: int, hotkeys: list[str]) -> list[int]:
    """Alpha on each hotkey, whoever holds it. It is also the stake weight: there is no root stake."""
    return [int(state.get("TotalHotkeyAlpha", hotkey, netuid)) for hotkey in hotkeys]


def owner_of(state: State, hotkey: str) -> str:
    owner: str = state.get("Owner", hotkey)
    return owner


def is_known(state: State, hotkey: str) -> bool:
    return owner_of(state, hotkey) != NOBODY


def price(state: State, netuid: int) -> int:
    """Rao of TAO for one alpha."""
    tao, alpha = state.get("SubnetTAO", netuid), state.get("SubnetAlphaIn", netuid)
    return int(tao * RAO // alpha) if alpha else RAO


def alpha_for_tao(state: State, netuid: int, tao: int) -> int:
    """What the pool gives for `tao`."""
    reserve, alpha = state.get("SubnetTAO", netuid), state.get("SubnetAlphaIn", netuid)
    return int(alpha * tao // (reserve + tao))  # rounded in the pool's favour: nobody gains by going to and fro


def tao_for_alpha(state: State, netuid: int, alpha: int) -> int:
    """What the pool gives for `alpha`."""
    reserve, held_alpha = state.get("SubnetTAO", netuid), state.get("SubnetAlphaIn", netuid)
    return int(reserve * alpha // (held_alpha + alpha))


def move_pool(state: State, netuid: int, *, tao: int, alpha: int) -> None:
    """Change the reserves: `tao` into the pool and `alpha` out of it, or the reverse if negative."""
    state.put("SubnetTAO", netuid, value=state.get("SubnetTAO", netuid) + tao)
    state.put("SubnetAlphaIn", netuid, value=state.get("SubnetAlphaIn", netuid) - alpha)
    state.put("SubnetAlphaOut", netuid, value=state.get("SubnetAlphaOut", netuid) + alpha)


def pay_dividend(state: State, netuid: int, hotkey: str, rao: int) -> None:
    """Share alpha among the hotkey's owner (his take) and those who stake on it."""
    entries = state.entries("Stake", netuid, hotkey, pallet=PRIVATE)
    total = sum(value for _, value in entries)
    owner = owner_of(state, hotkey)
    take = rao * DELEGATE_TAKE // U16 if total else rao
    shares = [(str(key[0]), (rao - take) * value // total) for key, value in entries]
    add_alpha(state, netuid, hotkey, owner, take)
    for coldkey, share in shares:
        add_alpha(state, netuid, hotkey, coldkey, share)
