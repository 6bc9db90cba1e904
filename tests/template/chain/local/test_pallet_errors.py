"""Each refusal carries the pallet's own name, through the SDK."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest
from bittensor import calls

from template.chain.local import names, operator

SOURCES = Path(operator.__file__).parent


def subtensor(name: str, **arguments: Any) -> Any:
    return getattr(calls.SubtensorModule, name)(**arguments)


def weights(dests: list[int], values: list[int], **changes: Any) -> Any:
    arguments = {"netuid": 1, "mecid": 0, "dests": dests, "weights": values, "version_key": 0}
    return subtensor("set_mechanism_weights", **(arguments | changes))


def axon(**changes: Any) -> Any:
    plain = {"netuid": 1, "version": 1, "ip": 0x7F000002, "port": 80, "ip_type": 4, "protocol": 4}
    return subtensor("serve_axon", **(plain | {"placeholder1": 0, "placeholder2": 0} | changes))


def commitment(*fields: bytes, netuid: int = 1) -> Any:
    return calls.Commitments.set_commitment(netuid=netuid, info={"fields": [[{f"Raw{len(f)}": f} for f in fields]]})


async def refusal(chain: Any, call: Any, wallet: Any, signer: str = "hotkey") -> str | None:
    result = await chain.client.submit_call(call, wallet, signer=signer)
    return None if result.success else result.error.name


BY_HOTKEY: list[tuple[str, str | None, Callable[[], Any]]] = [
    ("v", None, lambda: weights([2, 3], [1, 2])),
    ("owner", None, lambda: weights([2], [1])),
    ("m1", None, lambda: weights([2], [1])),
    ("m1", "NeuronNoValidatorPermit", lambda: weights([3], [1])),
    ("nobody", "HotKeyNotRegisteredInSubNet", lambda: weights([3], [1])),
    ("v", "CanNotSetRootNetworkWeights", lambda: weights([2], [1], netuid=0)),
    ("v", "MechanismDoesNotExist", lambda: weights([2], [1], netuid=7)),
    ("v", "MechanismDoesNotExist", lambda: weights([2], [1], mecid=2)),
    ("v", "WeightVecNotEqualSize", lambda: weights([2, 3], [1])),
    ("v", "DuplicateUids", lambda: weights([2, 2], [1, 1])),
    ("v", "UidVecContainInvalidOne", lambda: weights([2, 4], [1, 1])),
    ("v", "UidsLengthExceedUidsInSubNet", lambda: weights([0, 1, 2, 3, 4], [1] * 5)),
    ("m1", None, axon),
    ("nobody", "HotKeyNotRegisteredInNetwork", axon),
    ("m1", "InvalidIpType", lambda: axon(ip_type=5)),
    ("m1", "InvalidIpAddress", lambda: axon(ip=0x7F000001)),
    ("m1", "InvalidIpAddress", lambda: axon(ip=2**32 - 1)),
    ("m1", "InvalidIpAddress", lambda: axon(ip=1, ip_type=6)),
    ("m1", "InvalidPort", lambda: axon(port=0)),
    ("m1", None, lambda: commitment(b"peer", b"")),
    ("m1", "TooManyFieldsInCommitmentInfo", lambda: commitment(b"a", b"b", b"c", b"d")),
    ("nobody", "AccountNotAllowedCommit", lambda: commitment(b"a")),
]
BY_COLDKEY: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("v", "HotKeyAlreadyRegisteredInSubNet", lambda w: subtensor("burned_register", netuid=1, hotkey=w.keys.hotkey)),
    ("v", "SubnetNotExists", lambda w: subtensor("burned_register", netuid=7, hotkey=w.keys.hotkey)),
    (
        "v",
        "RegistrationNotPermittedOnRootSubnet",
        lambda w: subtensor("burned_register", netuid=0, hotkey=w.keys.hotkey),
    ),
    ("poor", "NotEnoughBalanceToStake", lambda w: subtensor("burned_register", netuid=1, hotkey=w.keys.hotkey)),
    ("poor", "CannotAffordLockCost", lambda w: subtensor("register_network", hotkey=w.keys.hotkey)),
    ("owner", "FirstEmissionBlockNumberAlreadySet", lambda _: subtensor("start_call", netuid=1)),
    ("v", "BadOrigin", lambda _: subtensor("start_call", netuid=1)),
    ("v", "BadOrigin", lambda _: calls.AdminUtils.sudo_set_immunity_period(netuid=1, immunity_period=1)),
    ("owner", "BadOrigin", lambda _: calls.AdminUtils.sudo_set_kappa(netuid=1, kappa=1)),
    ("owner", "SubnetDoesNotExist", lambda _: calls.AdminUtils.sudo_set_immunity_period(netuid=7, immunity_period=1)),
    ("owner", "ValueNotInBounds", lambda _: calls.AdminUtils.sudo_set_tempo(netuid=1, tempo=359)),
    ("owner", "InvalidValue", lambda _: calls.AdminUtils.sudo_set_mechanism_count(netuid=1, mechanism_count=3)),
    (
        "owner",
        "InvalidValue",
        lambda _: calls.AdminUtils.sudo_set_mechanism_emission_split(netuid=1, maybe_split=[1, 2]),
    ),
    (
        "owner",
        "TooManyUIDsPerMechanism",
        lambda _: calls.AdminUtils.sudo_set_max_allowed_uids(netuid=1, max_allowed_uids=129),
    ),
    (
        "owner",
        "MaxAllowedUIdsLessThanCurrentUIds",
        lambda _: calls.AdminUtils.sudo_set_max_allowed_uids(netuid=1, max_allowed_uids=3),
    ),
    ("v", "BadOrigin", lambda w: calls.Balances.force_set_balance(who=w.keys.coldkey, new_free=10**18)),
    ("v", "FundsUnavailable", lambda w: calls.Balances.transfer_keep_alive(dest=w.keys.hotkey, value=10**15)),
    ("v", "BelowMinimum", lambda w: calls.Balances.transfer_keep_alive(dest=w.keys.hotkey, value=499)),
    ("v", "AmountTooLow", lambda w: subtensor("add_stake", hotkey=w.keys.hotkey, netuid=1, amount_staked=1)),
    (
        "v",
        "HotKeyAccountNotExists",
        lambda w: subtensor("add_stake", hotkey=w.keys.coldkey, netuid=1, amount_staked=10**9),
    ),
    (
        "m1",
        "NotEnoughStakeToWithdraw",
        lambda w: subtensor("remove_stake", hotkey=w.keys.hotkey, netuid=1, amount_unstaked=9),
    ),
]


@pytest.mark.parametrize(("name", "error", "call"), BY_HOTKEY)
async def test_hotkey_calls(chain: Any, wallet: Any, name: str, error: str | None, call: Callable[[], Any]) -> None:
    """After the first epoch: what is accepted, and each refusal's name."""
    chain.advance(25)
    assert await refusal(chain, call(), wallet(name)) == error


@pytest.mark.parametrize(("name", "error", "call"), BY_COLDKEY)
async def test_coldkey_calls(chain: Any, wallet: Any, name: str, error: str, call: Callable[[Any], Any]) -> None:
    """Each refusal's name."""
    assert await refusal(chain, call(wallet(name)), wallet(name), "coldkey") == error


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("weights_version", 7, "IncorrectWeightVersionKey"),
        ("min_allowed_weights", 3, "WeightVecLengthIsLow"),
        ("max_weights_limit", 30000, "MaxWeightExceeded"),
        ("commit_reveal_weights_enabled", True, "CommitRevealEnabled"),
    ],
)
async def test_settings_bind_weights(chain: Any, wallet: Any, name: str, value: Any, error: str) -> None:
    """A hyperparameter changes what the same call meets."""
    chain.advance(25)
    chain.set(name, value)
    assert await refusal(chain, weights([2, 3], [1, 2]), wallet("v")) == error


async def test_stake_threshold(chain: Any, wallet: Any) -> None:
    """Too little stake weight to set weights."""
    chain.advance(25)
    chain.root(lambda s: operator.execute(s, None, "AdminUtils", "sudo_set_stake_threshold", min_stake=10**12))
    assert await refusal(chain, weights([2], [1]), wallet("v")) == "NotEnoughStakeToSetWeights"


async def test_weights_too_fast(chain: Any, wallet: Any) -> None:
    """At dispatch too, not only in the SDK's preflight."""
    chain.advance(25)
    assert await refusal(chain, weights([2], [1]), wallet("v")) is None
    assert await refusal(chain, weights([2], [1]), wallet("v")) == "SettingWeightsTooFast"


async def test_commitment_space_is_bounded_per_epoch(chain: Any, wallet: Any) -> None:
    """3,100 bytes an epoch at 100 at least: 31 small ones, and again after the epoch."""
    chain.set("tempo", 1000)
    outcomes = [await refusal(chain, commitment(b"x"), wallet("m1")) for _ in range(32)]
    assert outcomes == [None] * 31 + ["SpaceLimitExceeded"]
    chain.advance(1000)
    assert await refusal(chain, commitment(b"x"), wallet("m1")) is None


async def test_owner_changes_mechanisms_once_a_day(chain: Any, wallet: Any) -> None:
    """7,200 blocks between changes of count or split."""
    assert (await chain.client.execute(bt.SetMechanismCount(netuid=1, mechanism_count=1), wallet("owner"))).success
    again = await chain.client.execute(bt.SetMechanismCount(netuid=1, mechanism_count=2), wallet("owner"))
    assert again.error.name == "TxRateLimitExceeded"
    chain.advance(7200)
    assert (await chain.client.execute(bt.SetMechanismCount(netuid=1, mechanism_count=2), wallet("owner"))).success


async def test_foreign_hotkey_cannot_be_registered(chain: Any, wallet: Any) -> None:
    """A hotkey belongs to the cold key that used it first."""
    theirs = wallet("m1").keys.hotkey
    netuid = (await chain.client.execute_tool("register_subnet", {}, wallet("rich"))).data.get("netuid")
    assert netuid is None  # no money
    chain.fund(wallet("rich"), 2000.0)
    netuid = (await chain.client.execute_tool("register_subnet", {}, wallet("rich"))).data["netuid"]
    call = subtensor("burned_register", netuid=netuid, hotkey=theirs)
    assert await refusal(chain, call, wallet("rich"), "coldkey") == "NonAssociatedColdKey"


def raised_names() -> set[str]:
    found = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                position = {"require": 1, "DispatchError": 0}.get(node.func.id)
                if position is not None and isinstance(node.args[position], ast.Constant):
                    found.add(node.args[position].value)
    return found


def test_every_name_is_a_real_one() -> None:
    """No handler invents an error: all are in the SDK's tables."""
    used = raised_names()
    assert len(used) > 40
    assert used <= set(names.MESSAGES)
