"""TAO balances, in rao."""

from __future__ import annotations

from typing import Any

from template.chain.local.items import EXISTENTIAL_DEPOSIT
from template.chain.local.state import State


def account(state: State, who: str) -> dict[str, Any]:
    """`System.Account` of an address; all zero if it never held anything."""
    found: dict[str, Any] = state.get("Account", who, pallet="System")
    return found


def free(state: State, who: str) -> int:
    return int(account(state, who)["data"]["free"])


def set_free(state: State, who: str, rao: int) -> None:
    found = account(state, who)
    found["data"]["free"] = rao
    found["providers"] = int(rao > 0)
    state.put("Account", who, value=found, pallet="System")


def add(state: State, who: str, rao: int) -> None:
    """Credit `rao`, or debit it if negative."""
    set_free(state, who, free(state, who) + rao)


def can_spend(state: State, who: str, rao: int) -> bool:
    """Whether `rao` can leave the account and it still exists afterwards."""
    return free(state, who) - EXISTENTIAL_DEPOSIT >= rao


def use_nonce(state: State, who: str) -> None:
    found = account(state, who)
    found["nonce"] += 1
    state.put("Account", who, value=found, pallet="System")
