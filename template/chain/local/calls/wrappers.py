"""Calls that carry other calls: Utility.batch_all and the MEV shield's envelope."""

from __future__ import annotations

from typing import Annotated, Any

from template.chain.local.codec import Bytes
from template.chain.local.dispatch import Call, Execution, Handlers

MAX_CALLS = 128


def encode_calls(calls: Any) -> list[Any]:
    """Composed calls, as [module, function, params]."""
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Call) for call in calls):
        raise ValueError("a batch takes composed calls")
    if len(calls) > MAX_CALLS:
        raise ValueError(f"a batch takes at most {MAX_CALLS} calls")
    return [[call.module, call.function, call.params] for call in calls]


def batch_all(run: Execution, *, calls: Annotated[list[Any], encode_calls]) -> None:
    for module, function, params in calls:
        run.dispatch(run, Call(module, function, params))
    run.emit("Utility", "BatchCompleted", {})


def submit_encrypted(run: Execution, *, ciphertext: Bytes) -> None:
    """The carrier only; the signed call inside is executed right after it (see extrinsics.py)."""
    run.emit("MevShield", "EncryptedSubmitted", {"who": run.signer, "length": len(ciphertext) // 2 - 1})


HANDLERS: Handlers = {
    ("Utility", "batch_all"): batch_all,
    ("MevShield", "submit_encrypted"): submit_encrypted,
}
