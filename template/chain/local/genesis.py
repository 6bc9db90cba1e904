"""Making a chain file: empty, or with one subnet ready for use.

    create_chain(path, owner=Keys(...), neurons=[Registration(Keys(...), stake=1000.0)], block_seconds=1.0, tempo=20)

All of it happens in block 1, which is the head when the function returns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from template.chain.connect import ChainConfig
from template.chain.local import epoch, ledger, operator
from template.chain.local.calls.registration import NETWORK_COST
from template.chain.local.items import RAO
from template.chain.local.ledger import Ledger
from template.chain.local.operator import Keys
from template.chain.local.state import State
from template.clock import Clock, SystemClock
from template.errors import ConfigurationError

NETUID = 1  # the first subnet's
POCKET_MONEY = 1000.0  # TAO the owner keeps and every neuron gets beside its stake
QUICK: Mapping[str, Any] = {
    "max_allowed_uids": 64,
    "immunity_period": 100,
    "weights_rate_limit": 5,
    "serving_rate_limit": 5,
    "min_burn": 500_000,
}


@dataclass(frozen=True)
class Registration:
    """A neuron that is registered from the start, with `stake` TAO staked on it."""

    keys: Keys
    stake: float = 0.0


def create_file(
    path: Path,
    *,
    block_seconds: float,
    manual: bool,
    build: Callable[[State], None] | None = None,
    clock: Clock | None = None,
) -> None:
    """Make a chain file; `build` fills block 1. A file that others can see is complete.

    Raises:
        ConfigurationError: the file exists, or a block has no length.
    """
    if path.exists():
        raise ConfigurationError(f"{path} exists; remove it or choose another path")
    if block_seconds <= 0:
        raise ConfigurationError("block_seconds must be positive")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        _write(draft, block_seconds, manual, build, clock or SystemClock())
        os.link(draft, path)  # unlike a rename, fails if somebody else was faster
    except FileExistsError:
        raise ConfigurationError(f"{path} exists; remove it or choose another path") from None
    finally:
        for suffix in ("", "-wal", "-shm"):
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)


def _write(path: Path, block_seconds: float, manual: bool, build: Callable[[State], None] | None, clock: Clock) -> None:
    ledger.initialise(path, genesis=clock.time() - block_seconds, block_seconds=block_seconds, manual=manual)
    with Ledger(path, clock) as chain:
        with chain.transaction() as db:
            state = State(db, 1)
            state.put("NetworksAdded", 0, value=True)
            state.put("TokenSymbol", 0, value="0x" + "τ".encode().hex())
            if build is not None:
                build(state)
            epoch.reschedule(state)
            ledger.seal(db, 1)
        chain.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def create_chain(
    path: Path,
    *,
    owner: Keys,
    neurons: Sequence[Registration] = (),
    endow: Mapping[str, float] | None = None,
    block_seconds: float = 1.0,
    tempo: int = 20,
    mechanisms: int = 2,
    split: Sequence[int] | None = None,
    hyperparameters: Mapping[str, Any] = QUICK,
    manual: bool = False,
    clock: Clock | None = None,
) -> ChainConfig:
    """A chain with one running subnet; returns how to connect to it.

    The owner's hotkey has uid 0, the neurons the next ones in their order. `endow` gives TAO to further accounts
    (coldkey -> TAO). `split`: u16 shares of the mechanisms, summing to 65535; None: even. `hyperparameters` by the
    SDK's names, set before the neurons register.

    Raises:
        ConfigurationError: the file exists, or a hyperparameter is unknown.
        ChainRefused: a value is out of the chain's bounds.
    """

    def build(state: State) -> None:
        _open_subnet(state, owner)
        settings = {**hyperparameters, "tempo": tempo, "mechanism_count": mechanisms}
        if split is not None:
            settings["mechanism_emission_split"] = list(split)
        for name, value in settings.items():
            operator.set_hyperparameter(state, NETUID, name, value)
        for who, tao in (endow or {}).items():
            operator.fund(state, who, tao)
        for neuron in neurons:
            _add_neuron(state, neuron)

    create_file(path, block_seconds=block_seconds, manual=manual, build=build, clock=clock)
    return ChainConfig(network=f"local://{path.resolve()}", netuid=NETUID)


def _open_subnet(state: State, owner: Keys) -> None:
    operator.fund(state, owner.coldkey, NETWORK_COST / RAO + POCKET_MONEY)
    operator.execute(state, owner.coldkey, "SubtensorModule", "register_network", hotkey=owner.hotkey)
    operator.execute(state, owner.coldkey, "SubtensorModule", "start_call", netuid=NETUID)


def _add_neuron(state: State, neuron: Registration) -> None:
    operator.fund(state, neuron.keys.coldkey, neuron.stake + POCKET_MONEY)
    operator.register(state, NETUID, neuron.keys)
    if neuron.stake:
        operator.add_stake(state, NETUID, neuron.keys, neuron.stake)
