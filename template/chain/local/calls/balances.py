"""Balances: transfers of TAO."""

from __future__ import annotations

from template.chain.local import accounts
from template.chain.local.codec import U64, Account
from template.chain.local.dispatch import Execution, Handlers, require
from template.chain.local.items import EXISTENTIAL_DEPOSIT


def transfer_keep_alive(run: Execution, *, dest: Account, value: U64) -> None:
    require(accounts.free(run.state, run.signer) >= value, "FundsUnavailable")
    require(accounts.can_spend(run.state, run.signer, value), "NotExpendable")
    _move(run, dest, value)


def transfer_allow_death(run: Execution, *, dest: Account, value: U64) -> None:
    require(accounts.free(run.state, run.signer) >= value, "FundsUnavailable")
    _move(run, dest, value)
    if accounts.free(run.state, run.signer) < EXISTENTIAL_DEPOSIT:
        accounts.set_free(run.state, run.signer, 0)  # the account is reaped with its dust


def force_set_balance(run: Execution, *, who: Account, new_free: U64) -> None:
    require(run.origin is None, "BadOrigin")
    accounts.set_free(run.state, who, new_free)
    run.emit("Balances", "BalanceSet", {"who": who, "free": new_free})


def _move(run: Execution, dest: str, value: int) -> None:
    require(accounts.free(run.state, dest) + value >= EXISTENTIAL_DEPOSIT, "BelowMinimum")
    accounts.add(run.state, run.signer, -value)
    accounts.add(run.state, dest, value)
    run.emit("Balances", "Transfer", {"from": run.signer, "to": dest, "amount": value})


HANDLERS: Handlers = {
    ("Balances", "transfer_keep_alive"): transfer_keep_alive,
    ("Balances", "transfer_allow_death"): transfer_allow_death,
    ("Balances", "force_set_balance"): force_set_balance,
}
