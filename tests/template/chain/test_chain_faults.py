"""Every exception the SDK lets out, and what it becomes."""

from __future__ import annotations

import pytest
from bittensor import ChainError, ErrorCode, ExtrinsicResult, PolicyError
from bittensor._transport.errors import StorageFunctionNotFound
from bittensor.result import BittensorError, ConnectionNotReady, RpcConnectionError, RpcPolicyError

from template.chain.faults import check, translated
from template.errors import ChainFault, ChainRefused, ChainUnavailable, NotRegistered

FOREIGN: list[tuple[Exception, type[ChainFault]]] = [
    (ChainError("no", "SettingWeightsTooFast"), ChainRefused),
    (ChainError("no", "HotKeyNotRegisteredInSubNet"), NotRegistered),
    (ChainError("no", code=ErrorCode.NOT_REGISTERED), NotRegistered),
    (PolicyError(["too dear"]), ChainRefused),
    (BittensorError("two lists of different length"), ChainRefused),
    (RpcConnectionError("gone"), ChainUnavailable),
    (RpcPolicyError("429"), ChainUnavailable),
    (ConnectionNotReady("closed"), ChainUnavailable),
    (TimeoutError(), ChainUnavailable),
    (ConnectionRefusedError(), ChainUnavailable),
    (StorageFunctionNotFound("Uids"), ChainUnavailable),
]


@pytest.mark.parametrize(("foreign", "ours"), FOREIGN, ids=lambda value: getattr(value, "__name__", repr(value)))
def test_translated(foreign: Exception, ours: type[ChainFault]) -> None:
    """The message says what was being done, and the cause is kept."""
    with pytest.raises(ours, match=r"^counting sheep: ") as caught, translated("counting sheep"):
        raise foreign
    assert caught.value.__cause__ is foreign


def test_bugs_are_not_translated() -> None:
    """A TypeError stays what it is."""
    with pytest.raises(TypeError), translated("counting sheep"):
        raise TypeError


def test_code_and_name_are_kept() -> None:
    """Callers branch on the code."""
    with pytest.raises(ChainRefused) as caught, translated("x"):
        raise ChainError("too fast", "SettingWeightsTooFast")
    assert (caught.value.code, caught.value.name) == ("rate_limited", "SettingWeightsTooFast")


def test_failed_result() -> None:
    """A failed write that carries no error still raises; a good one passes."""
    check("x", ExtrinsicResult(success=True, message="Success"))
    with pytest.raises(ChainRefused, match="x: not enough money") as caught:
        check("x", ExtrinsicResult(success=False, message="not enough money"))
    assert caught.value.code == "insufficient_balance"
