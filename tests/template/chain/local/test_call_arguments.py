"""Arguments are checked as SCALE would, when a call is composed."""

from __future__ import annotations

from typing import Any

import pytest
from bittensor import ChainError, calls

from template.chain.local import runtime

ALICE = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
AXON = {"netuid": 1, "version": 1, "ip": 1, "port": 80, "ip_type": 4, "protocol": 4, "placeholder1": 0}


def compose(call: Any) -> Any:
    return runtime.compose(*call)


def test_bytes_become_hex() -> None:
    """As the runtime decodes them."""
    assert compose(calls.MevShield.submit_encrypted(ciphertext=b"\x01\xff")).params == {"ciphertext": "0x01ff"}


def test_calls_are_equal_by_content() -> None:
    """The hash depends on the content only."""
    first = compose(calls.Balances.transfer_keep_alive(dest=ALICE, value=5))
    again = runtime.compose("Balances", "transfer_keep_alive", {"value": 5, "dest": ALICE})
    other = runtime.compose("Balances", "transfer_keep_alive", {"value": 6, "dest": ALICE})
    assert first.call_hash == again.call_hash != other.call_hash


@pytest.mark.parametrize(
    "arguments",
    [
        AXON,
        AXON | {"placeholder2": 0, "more": 1},
        AXON | {"placeholder2": 256},
        AXON | {"placeholder2": -1},
        AXON | {"placeholder2": True},
        AXON | {"placeholder2": 0, "port": 65536},
        AXON | {"placeholder2": 0, "ip": "127.0.0.2"},
    ],
)
def test_wrong_arguments_do_not_encode(arguments: dict[str, Any]) -> None:
    """Missing, unknown, too large, negative, or of another type."""
    with pytest.raises(ChainError, match=r"cannot encode SubtensorModule\.serve_axon"):
        runtime.compose("SubtensorModule", "serve_axon", arguments)


@pytest.mark.parametrize("dest", ["5Grw", 7, ALICE[:-1] + "Z"])
def test_wrong_address(dest: Any) -> None:
    """The checksum of an address is checked."""
    with pytest.raises(ChainError, match="dest"):
        compose(calls.Balances.transfer_keep_alive(dest=dest, value=5))


@pytest.mark.parametrize(
    "field",
    [
        {"Raw3": b"four"},
        {"Raw129": b"x" * 129},
        {"Sha256": b"x" * 32},
        "None",
        {"Raw1": b"a", "Raw2": b"ab"},
        {"Raw1": 7},
    ],
)
def test_wrong_commitment_fields(field: Any) -> None:
    """The variant carries the length; other kinds are not implemented and say so."""
    with pytest.raises(ChainError, match=r"cannot encode Commitments\.set_commitment"):
        compose(calls.Commitments.set_commitment(netuid=1, info={"fields": [[field]]}))


@pytest.mark.parametrize(
    "call",
    [
        calls.SubtensorModule.dissolve_network(coldkey=ALICE, netuid=1),
        calls.AdminUtils.sudo_set_epoch_consensus(netuid=1, mode="Null"),
        calls.AdminUtils.sudo_set_collateral_lock_share(netuid=1, lock_share=5),
        calls.Balances.transfer_all(dest=ALICE, keep_alive=True),
    ],
)
def test_unimplemented_calls_raise(call: Any) -> None:
    """By name, before anything is signed."""
    with pytest.raises(ChainError, match=r"the embedded chain does not implement the call \w+\.\w+"):
        compose(call)


def test_every_call_has_the_arguments_of_the_real_one() -> None:
    """Our table agrees with the SDK's generated calls."""
    for (module, function), (_, kinds) in runtime.CALLS.items():
        builder = getattr(getattr(calls, module), function)
        names = builder.__code__.co_varnames[: builder.__code__.co_argcount]
        assert list(names) == list(kinds), function
