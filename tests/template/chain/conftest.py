"""A manual chain with a running subnet: owner (uid 0), validator (1) with stake, miners m1 (2) and m2 (3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bittensor
import pytest
from bittensor.keyfiles import Keypair

from template.chain.connect import connect
from template.chain.local import operator
from template.chain.local.genesis import NETUID, Registration, create_chain
from template.chain.local.ledger import Ledger
from template.chain.local.operator import Keys


@dataclass(frozen=True)
class DevWallet:
    """Keys derived from a name, in the shape the SDK calls a wallet."""

    coldkey: Keypair
    coldkeypub: Keypair
    hotkey: Keypair

    @property
    def keys(self) -> Keys:
        return Keys(self.coldkey.ss58_address, self.hotkey.ss58_address)


def wallet_of(name: str) -> DevWallet:
    cold = Keypair.create_from_uri(f"//{name}")
    return DevWallet(cold, Keypair(ss58_address=cold.ss58_address), Keypair.create_from_uri(f"//{name}//hot"))


@dataclass
class Chain:
    """The file, its client and root's powers over it."""

    path: Path
    client: bittensor.Client
    netuid: int = NETUID

    def root(self, work: Callable[[Any], Any]) -> Any:
        with Ledger(self.path) as ledger:
            return operator.apply(ledger, work)

    def set(self, name: str, value: Any) -> None:
        self.root(lambda state: operator.set_hyperparameter(state, self.netuid, name, value))

    def fund(self, wallet: DevWallet, tao: float) -> None:
        self.root(lambda state: operator.fund(state, wallet.keys.coldkey, tao))

    def advance(self, blocks: int) -> int:
        with Ledger(self.path) as ledger:
            return operator.advance(ledger, blocks)


@pytest.fixture(scope="session")
def wallet() -> Callable[[str], DevWallet]:
    """The wallet of a name."""
    return wallet_of


@pytest.fixture
def chain_path(tmp_path: Path) -> Path:
    path = tmp_path / "chain.db"
    neurons = [Registration(wallet_of("v").keys, 1000.0), *(Registration(wallet_of(n).keys) for n in ("m1", "m2"))]
    create_chain(path, owner=wallet_of("owner").keys, neurons=neurons, block_seconds=12.0, tempo=20, manual=True)
    return path


@pytest.fixture
async def chain(chain_path: Path) -> AsyncIterator[Chain]:
    async with connect(f"local://{chain_path}") as client:
        yield Chain(chain_path, client)
