"""From a URL to a `bittensor.Client`: mainnet, test network, any node, or the embedded chain in a file.

    async with connect("local:///home/me/chain.db") as client: ...

Everything above this takes the client and does not know which chain it talks to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bittensor import Client

from template.chain.faults import translated
from template.chain.local.substrate import LocalSubstrate
from template.clock import Clock
from template.errors import ChainUnavailable, ConfigurationError

NETWORKS = ("finney", "test")
ACCEPTED = "finney, test, ws://host:port, wss://host:port or local:///absolute/path/to/chain.db"
LOCAL = "local://"


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """`network`: a URL that `connect` accepts; `netuid`: the subnet."""

    network: str = "finney"
    netuid: int = 1

    def __post_init__(self) -> None:
        check_url(self.network)
        if not 0 < self.netuid < 4096:
            raise ConfigurationError(f"netuid must lie in 1..4095; found {self.netuid}")


class RemoteClient(Client):
    """The SDK's client over RPC; a failing connect raises ChainUnavailable."""

    async def connect(self) -> Client:
        with translated(f"connecting to {self.endpoint}"):
            return await super().connect()


class LocalClient(Client):
    """The SDK's client over a chain file. Token symbols are read from it, past the SDK's cache in the home folder."""

    def __init__(self, substrate: LocalSubstrate) -> None:
        super().__init__("local", substrate=substrate)
        self._local = substrate

    async def connect(self) -> Client:
        await self._local.connect()
        self._local.token_symbols = await self.subnets.token_symbols()
        return self

    def __repr__(self) -> str:
        return f"LocalClient({self._local.endpoint!r})"


def check_url(url: str) -> None:
    """Refuse what `connect` would not understand.

    Raises:
        ConfigurationError: naming the accepted forms.
    """
    remote = url in NETWORKS or url.startswith(("ws://", "wss://"))
    if not remote and not (url.startswith(LOCAL) and Path(url.removeprefix(LOCAL)).is_absolute()):
        raise ConfigurationError(f"unknown network {url!r}; accepted: {ACCEPTED}")


def connect(url: str, *, clock: Clock | None = None) -> Client:
    """A client that opens its connection on `async with` or `await client.connect()`.

    `clock` is the wall clock of an embedded chain; nothing else uses it.

    Raises:
        ConfigurationError: the URL has none of the accepted forms.
        ChainUnavailable: the chain file does not exist.
    """
    check_url(url)
    if not url.startswith(LOCAL):
        return RemoteClient(url)
    path = Path(url.removeprefix(LOCAL))
    if not path.is_file():
        raise ChainUnavailable(f"no chain file at {path}; create it with: python -m template.chain.local create {path}")
    return LocalClient(LocalSubstrate(path, clock))
