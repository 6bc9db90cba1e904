"""Commitments: up to three short plain fields a hotkey publishes about itself."""

from __future__ import annotations

from typing import Annotated, Any

from template.chain.local import neurons
from template.chain.local.codec import U16, blob
from template.chain.local.dispatch import Execution, Handlers, require

MAX_FIELDS = 3
MAX_RAW = 128  # bytes a field
MINIMUM_CHARGE = 100  # bytes


def encode_info(info: Any) -> list[dict[str, str]]:
    """CommitmentInfo as {"fields": [[{"Raw<len>": bytes}]]} to [{"Raw<len>": "0x..."}], the shape it is read in.

    Other variants (hashes, timelocks, BigRaw) are not implemented and are refused.
    """
    if not isinstance(info, dict) or set(info) != {"fields"}:
        raise ValueError("commitment info is {'fields': [[...]]}")
    flat = [field for group in info["fields"] for field in (group if isinstance(group, list | tuple) else [group])]
    return [_encode_field(field) for field in flat]


def _encode_field(field: Any) -> dict[str, str]:
    if not isinstance(field, dict) or len(field) != 1:
        raise ValueError(f"commitment field {field!r} is not implemented; use one {{'Raw<len>': bytes}}")
    ((variant, value),) = field.items()
    data = blob(value.encode() if isinstance(value, str) and not value.startswith("0x") else value)
    size = len(data) // 2 - 1
    if size > MAX_RAW or variant != f"Raw{size}":
        raise ValueError(f"{size} bytes do not encode as commitment field {variant!r}; it must be Raw<len>, len <= 128")
    return {variant: data}


def set_commitment(run: Execution, *, netuid: U16, info: Annotated[list[dict[str, str]], encode_info]) -> None:
    state, hotkey = run.state, run.signer
    require(neurons.uid_of(state, netuid, hotkey) is not None, "AccountNotAllowedCommit")
    require(len(info) <= MAX_FIELDS, "TooManyFieldsInCommitmentInfo")
    _charge_space(run, netuid, hotkey, sum(len(data) // 2 - 1 for field in info for data in field.values()))
    record = {"deposit": 0, "block": state.block, "info": {"fields": info}}
    state.put("CommitmentOf", netuid, hotkey, value=record, pallet="Commitments")
    state.put("LastCommitment", netuid, hotkey, value=state.block, pallet="Commitments")
    run.emit("Commitments", "Commitment", {"netuid": netuid, "who": hotkey})


def _charge_space(run: Execution, netuid: int, hotkey: str, size: int) -> None:
    """A hotkey may publish `MaxSpace` bytes an epoch; each commitment counts for 100 at least."""
    state, epoch = run.state, run.state.get("SubnetEpochIndex", netuid)
    usage = state.get("UsedSpaceOf", netuid, hotkey, pallet="Commitments")
    before = usage["used_space"] if usage is not None and usage["last_epoch"] == epoch else 0
    used = before + max(MINIMUM_CHARGE, size)
    require(used <= state.get("MaxSpace", pallet="Commitments"), "SpaceLimitExceeded")
    value = {"last_epoch": epoch, "used_space": used}
    state.put("UsedSpaceOf", netuid, hotkey, value=value, pallet="Commitments")


HANDLERS: Handlers = {("Commitments", "set_commitment"): set_commitment}
