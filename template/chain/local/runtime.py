"""The table of calls: composing (checking and encoding arguments) and executing them.

A call that is not in the table raises ChainError when it is composed, before anything is signed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bittensor import ChainError

from template.chain.local import codec
from template.chain.local.calls import admin, balances, commitments, registration, serving, staking, weights, wrappers
from template.chain.local.dispatch import Call, Execution
from template.chain.local.state import State

MODULES = (admin, balances, commitments, registration, serving, staking, weights, wrappers)

Entry = tuple[Callable[..., None], dict[str, Any]]  # handler, types of its arguments
CALLS: Mapping[tuple[str, str], Entry] = {
    name: (handler, codec.types_of(handler)) for module in MODULES for name, handler in module.HANDLERS.items()
} | admin.setters()


def compose(module: str, function: str, params: Mapping[str, Any]) -> Call:
    """A checked call.

    Raises:
        ChainError: the embedded chain does not implement it, or an argument does not encode.
    """
    _, kinds = _entry(module, function)
    return Call(module, function, codec.encode_arguments(f"{module}.{function}", kinds, params))


def execute(state: State, call: Call, origin: str | None, extrinsic: int) -> None:
    """Run a composed call with all its effects or none.

    Raises:
        DispatchError: the pallet refused.
        ChainError: it needs something the embedded chain does not implement.
    """
    with state.all_or_nothing():
        _dispatch(Execution(state, origin, extrinsic, _dispatch), call)


def _dispatch(run: Execution, call: Call) -> None:
    handler, _ = _entry(call.module, call.function)
    handler(run, **call.params)


def _entry(module: str, function: str) -> Entry:
    entry = CALLS.get((module, function))
    if entry is None:
        raise ChainError(f"the embedded chain does not implement the call {module}.{function}")
    return entry
