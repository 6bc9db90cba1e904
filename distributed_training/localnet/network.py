"""The parts of a localnet that are made before a neuron starts: chain file, keys, folders, and how each is started."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from distributed_training.hub.build import HubConfig
from distributed_training.localnet.processes import Command
from distributed_training.run import load_run
from template.chain.local import operator
from template.chain.local.genesis import Registration, create_chain
from template.chain.local.ledger import Ledger
from template.chain.local.operator import Keys
from template.chain.local.state import State
from template.chain.wallet import create_wallet
from template.clock import SystemClock
from template.errors import ConfigurationError

ADDRESS = "127.0.0.2"  # on the loopback; the chain refuses 127.0.0.1 as an axon's address
_PORTS = range(20_000, 32_000)  # systems give later ones to connections that go out, before a neuron starts or again
BLOCK_SECONDS = 1.0
TEMPO = 20
VALIDATOR_STAKE = 1000.0  # TAO
STAKE_TURNS = 20
HOTKEY = "default"
NETUID = 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a localnet consists of; kept in `localnet.json`, so that a folder is only continued by what made it."""

    run_id: str
    miners: int
    validators: int
    adversaries: tuple[str, ...]  # the kind of each of the last miners
    hub: str | None = None  # where models are published; None: in the folder

    @property
    def validator_names(self) -> list[str]:
        return [f"validator-{i}" for i in range(1, self.validators + 1)]

    @property
    def miner_names(self) -> list[str]:
        return [f"miner-{i}" for i in range(1, self.miners + 1)]

    @property
    def kinds(self) -> dict[str, str]:
        """Adversary kind by miner name; honest miners are not in it."""
        return dict(zip(self.miner_names[self.miners - len(self.adversaries) :], self.adversaries, strict=True))

    @property
    def uids(self) -> dict[str, int]:
        """The chain gives uid 0 to the owner, then one to each neuron in this order."""
        return {name: uid for uid, name in enumerate([*self.validator_names, *self.miner_names], start=1)}


class Network:
    """One localnet below `folder`."""

    def __init__(self, folder: Path, layout: Layout, run: Path, hub_endpoint: str | None = None) -> None:
        self.folder = folder
        self.layout = layout
        self.run = run
        self.hub = HubConfig(url=layout.hub or f"dir://{self.hub_folder}", endpoint=hub_endpoint)
        self._ports = _free_ports(len(layout.uids)) if not self._ports_file.exists() else self._read_ports()

    @property
    def chain_url(self) -> str:
        return f"local://{self.folder.resolve()}/chain.db"

    @property
    def hub_folder(self) -> Path:
        return self.folder.resolve() / "hub"

    @property
    def _ports_file(self) -> Path:
        return self.folder / "ports.json"

    def _read_ports(self) -> list[int]:
        return [int(port) for port in json.loads(self._ports_file.read_text())]

    def prepare(self) -> bool:
        """Make chain and keys, or find the ones of an earlier run. Returns whether they are new.

        Raises:
            ConfigurationError: the folder belongs to another localnet.
        """
        marker = self.folder / "localnet.json"
        wanted = json.loads(json.dumps(asdict(self.layout)))
        if marker.exists():
            if {"hub": None, **json.loads(marker.read_text())} != wanted:
                raise ConfigurationError(
                    f"{self.folder} holds a localnet with other miners, validators, hub or run file: add --fresh to "
                    "replace it, or --folder to use another place"
                )
            return False
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ConfigurationError(
                f"{self.folder} is not empty and not a finished localnet: add --fresh to replace it"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._create_chain()
        self._ports_file.write_text(json.dumps(self._ports))
        marker.write_text(json.dumps(wanted))
        return True

    def _create_chain(self) -> None:
        keys = {name: self._keys(name) for name in ["owner", *self.layout.uids]}
        create_chain(
            self.folder / "chain.db",
            owner=keys["owner"],
            neurons=[Registration(keys[name]) for name in self.layout.uids],
            endow={keys[name].coldkey: VALIDATOR_STAKE for name in self.layout.validator_names},
            block_seconds=BLOCK_SECONDS,
            tempo=TEMPO,
        )
        with Ledger(self.folder / "chain.db", SystemClock()) as chain:
            operator.apply(chain, lambda state: _stake(state, [keys[name] for name in self.layout.validator_names]))

    def _keys(self, name: str) -> Keys:
        wallet = create_wallet(name, HOTKEY, str(self.folder / "wallets"))
        return Keys(coldkey=wallet.coldkeypub.ss58_address, hotkey=wallet.hotkey.ss58_address)

    def commands(self, until_epoch: int) -> list[Command]:
        """How to start each neuron, validators first; no round is led from `until_epoch` on."""
        return [self._command(name, until_epoch) for name in self.layout.uids]

    def _command(self, name: str, until_epoch: int) -> Command:
        folder = self.folder.resolve() / name
        kind = self.layout.kinds.get(name)
        arguments = [sys.executable, "-m", *self._program(name, kind)]
        options = {
            "run": self.run.resolve(),
            "netuid": NETUID,
            "folder": folder,
            "threads": 1,
            "subtensor.network": self.chain_url,
            "chain.refresh_blocks": 2,
            "chain.poll_seconds": BLOCK_SECONDS / 2,
            "wallet.name": name,
            "wallet.hotkey": HOTKEY,
            "wallet.path": self.folder.resolve() / "wallets",
            "axon.ip": ADDRESS,
            "axon.external_ip": ADDRESS,
            "axon.port": self._ports[self.layout.uids[name] - 1],
            "dht.ip": ADDRESS,
            "hub.url": self.hub.url,
            "telemetry.jsonl": folder / "events.jsonl",
            "neuron.parent": os.getpid(),
        }
        if name in self.layout.validator_names:
            options["validator.until_epoch"] = until_epoch
        if self.hub.endpoint is not None:
            options["hub.endpoint"] = self.hub.endpoint
        for option, value in options.items():
            arguments += [f"--{option}", str(value)]
        return Command(name, arguments, folder)

    def _program(self, name: str, kind: str | None) -> list[str]:
        if name in self.layout.validator_names:
            return ["neurons.validator"]
        return ["neurons.miner"] if kind is None else ["tests.adversaries.miner", "--adversary.kind", kind]


def open_network(
    folder: Path,
    run: Path,
    miners: int,
    validators: int,
    adversaries: tuple[str, ...],
    hub: str | None = None,
    hub_endpoint: str | None = None,
) -> Network:
    """The localnet that was asked for, not prepared yet. `hub` is the URL of its hub, None for one in the folder.

    Raises:
        ConfigurationError: numbers that make no subnet, or a bad run file.
    """
    spec = load_run(run)
    if miners < 1 or validators < 1:
        raise ConfigurationError("a localnet needs at least one miner and one validator: see --miners and --validators")
    if len(adversaries) >= miners:
        raise ConfigurationError(
            f"{len(adversaries)} of {miners} miners would cheat: raise --miners, one must be honest"
        )
    if 1 + validators + miners > spec.data.max_uids:
        raise ConfigurationError(
            f"{run} gives data to {spec.data.max_uids} uids: lower --miners or raise data.max_uids"
        )
    layout = Layout(run_id=spec.run_id, miners=miners, validators=validators, adversaries=adversaries, hub=hub)
    return Network(folder, layout, run, hub_endpoint)


def _stake(state: State, validators: list[Keys]) -> None:
    """Stake in small turns: the price rises with every purchase, and who buys last, all at once, gets little."""
    for _ in range(STAKE_TURNS):
        for keys in validators:
            operator.add_stake(state, NETUID, keys, VALIDATOR_STAKE / STAKE_TURNS)


def remove(folder: Path) -> None:
    """Delete an earlier localnet, and nothing else.

    Raises:
        ConfigurationError: the folder is not one.
    """
    if not folder.exists():
        return
    known = {"chain.db", "wallets", "localnet.json", "ports.json"}
    if any(folder.iterdir()) and not any((folder / name).exists() for name in known):
        raise ConfigurationError(f"{folder} is not a localnet: it is not deleted; choose another --folder")
    shutil.rmtree(folder)


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago on the localnet's address.

    Raises:
        ConfigurationError: there are not so many.
    """
    candidates = random.SystemRandom().sample(_PORTS, len(_PORTS))
    found = list(itertools.islice(filter(_is_free, candidates), count))
    if len(found) < count:
        raise ConfigurationError(f"{count} free ports are needed from {_PORTS.start} to {_PORTS.stop - 1} on {ADDRESS}")
    return found


def _is_free(port: int) -> bool:
    try:
        socket.create_server((ADDRESS, port)).close()
    except OSError:
        return False
    return True
