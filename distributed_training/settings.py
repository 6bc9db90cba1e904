"""What an operator can set for a miner or validator; each section becomes flags, see `template/config.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from distributed_training.averaging.peer import PeerConfig
from distributed_training.averaging.state_transfer import StateServerConfig
from distributed_training.data.remote import CorpusConfig
from distributed_training.hub.build import HubConfig
from template.chain.wallet import WalletConfig
from template.chain.watch import ChainWatchConfig
from template.config import Secret, option, parse
from template.console import LoggingConfig
from template.errors import ConfigurationError
from template.neuron import NeuronConfig
from template.telemetry import TelemetryConfig
from template.transport.axon import AxonConfig


@dataclass(frozen=True, kw_only=True)
class GeneralConfig:
    """What to train, where, and on which subnet."""

    run: Path = option("run file that says what is trained, e.g. runs/nano.toml")
    netuid: int = option("the subnet's number on the chain")
    folder: Path = option("where this neuron keeps its state, checkpoints and identity")
    device: str = option("torch device to train on: cpu, cuda, cuda:1", default="cpu")
    threads: int | None = option("CPU threads for tensor work; default: torch's own choice", default=None)

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigurationError("--threads must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SubtensorConfig:
    """The chain."""

    network: str = option("finney, test, ws://host:port, or local:///path/chain.db", default="finney")


@dataclass(frozen=True, kw_only=True)
class DhtConfig:
    """The libp2p peer. Its identity is kept in the neuron's folder."""

    ip: str = option("address to listen on", default="0.0.0.0")
    port: int = option("TCP port to listen on; 0 takes a free one", default=0)
    initial_peers: tuple[str, ...] = option(
        "multiaddresses of DHT peers to join; neurons find each other without", default=()
    )
    announce: tuple[str, ...] = option("multiaddresses that others can reach, where they differ", default=())
    map_port: bool = option("ask the router for a port", default=False)
    direct_port: int = option("TCP port for the data of rounds; 0 takes a free one", default=0)
    direct_public_port: int | None = option("what the router maps to it; default: the same", default=None)
    relay: bool = option("be reached through the initial peers, from behind a NAT", default=False)
    relay_others: bool = option("let neurons behind a NAT be reached through this one", default=False)

    def peer(self, identity_path: Path) -> PeerConfig:
        """The peer's own configuration."""
        return PeerConfig(
            host=self.ip,
            port=self.port,
            identity_path=identity_path,
            initial_peers=self.initial_peers,
            announce=self.announce,
            map_port=self.map_port,
            direct_port=self.direct_port,
            direct_public_port=self.direct_public_port,
            relay=self.relay,
            relay_others=self.relay_others,
        )


@dataclass(frozen=True, kw_only=True)
class StatesConfig:
    """What peers that come late may have of this neuron's state."""

    readers: int = option("how many peers may download this neuron's state at a time; 0: none", default=4)

    def __post_init__(self) -> None:
        if self.readers < 0:
            raise ConfigurationError("--states.readers must not be negative")

    def server(self) -> StateServerConfig:
        """The server's own configuration."""
        return StateServerConfig(readers=self.readers)


@dataclass(frozen=True, kw_only=True)
class ValidatorConfig:
    """What only a validator does."""

    until_epoch: int | None = option("lead no round from this epoch on; default: go on", default=None)


@dataclass(frozen=True, kw_only=True)
class HubToken:
    """The credentials for the model hub and the corpus."""

    token: Secret | None = option("access token of the model hub; validators need one to publish", default=None)
    data_token: Secret | None = option("access token for a dataset on the Hub that is not public", default=None)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All sections of one neuron."""

    general: GeneralConfig
    subtensor: SubtensorConfig
    chain: ChainWatchConfig
    wallet: WalletConfig
    axon: AxonConfig
    dht: DhtConfig
    states: StatesConfig
    hub: HubConfig
    corpus: CorpusConfig
    secret: HubToken
    telemetry: TelemetryConfig
    logging: LoggingConfig
    neuron: NeuronConfig

    @classmethod
    def from_command_line(cls, prog: str, description: str, argv: list[str] | None = None) -> Self:
        """A miner's settings from flags, environment and file.

        Raises:
            ConfigurationError: with the flag and the remedy.
            HelpRequested: `--help`.
        """
        return cls(**_parsed(SECTIONS, prog, description, argv))


SECTIONS: dict[str, type] = {
    "general": GeneralConfig,
    "subtensor": SubtensorConfig,
    "chain": ChainWatchConfig,
    "wallet": WalletConfig,
    "axon": AxonConfig,
    "dht": DhtConfig,
    "states": StatesConfig,
    "hub": HubConfig,
    "corpus": CorpusConfig,
    "secret": HubToken,
    "telemetry": TelemetryConfig,
    "logging": LoggingConfig,
    "neuron": NeuronConfig,
}


def validator_settings(prog: str, description: str, argv: list[str] | None = None) -> tuple[Settings, ValidatorConfig]:
    """A validator's settings; raises as `Settings.from_command_line` does."""
    values = _parsed({**SECTIONS, "validator": ValidatorConfig}, prog, description, argv)
    config: ValidatorConfig = values.pop("validator")
    return Settings(**values), config


def _parsed(kinds: dict[str, type], prog: str, description: str, argv: list[str] | None) -> dict[str, Any]:
    sections = {("" if name == "general" else name): kind for name, kind in kinds.items()}
    found = parse(sections, argv, prog=prog, description=description)
    return {name: found["" if name == "general" else name] for name in kinds}
