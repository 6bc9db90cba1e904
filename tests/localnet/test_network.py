"""What a localnet is made of, before a neuron starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed_training.localnet.network import open_network, remove
from template.chain.connect import connect
from template.chain.metagraph import read_metagraph
from template.errors import ConfigurationError
from tests.integration.subnet import TINY


async def test_a_new_network_has_its_neurons_on_the_chain(tmp_path: Path) -> None:
    """Owner, staked validators and miners have the uids that the commands assume."""
    network = open_network(tmp_path / "net", TINY, 2, 2, ("nan",))
    assert network.prepare()
    async with connect(network.chain_url) as client:
        await client.wait_for_block(2)
        graph = await read_metagraph(client, 1)
    assert len(graph) == 5
    assert graph.stake[2] == pytest.approx(graph.stake[1], rel=0.1)
    assert [stake > 200 for stake in graph.stake] == [False, True, True, False, False]
    names = {command.name: command.arguments for command in network.commands(5)}
    assert list(names) == ["validator-1", "validator-2", "miner-1", "miner-2"]
    assert "neurons.validator" in names["validator-1"]
    assert names["miner-2"][2:5] == ["tests.adversaries.miner", "--adversary.kind", "nan"]


def test_a_folder_is_continued_only_by_what_made_it(tmp_path: Path) -> None:
    """The same layout goes on with the same ports; another one is refused with the remedy."""
    first = open_network(tmp_path / "net", TINY, 2, 1, ())
    first.prepare()
    again = open_network(tmp_path / "net", TINY, 2, 1, ())
    assert not again.prepare()
    assert again.commands(5) == first.commands(5)
    with pytest.raises(ConfigurationError, match="--fresh"):
        open_network(tmp_path / "net", TINY, 3, 1, ()).prepare()


def test_ports_are_none_that_the_system_gives_away(tmp_path: Path) -> None:
    """A neuron may start minutes after its port was chosen, or again: no outgoing connection may hold it by then."""
    open_network(tmp_path / "net", TINY, 3, 2, ()).prepare()
    ports = json.loads((tmp_path / "net" / "ports.json").read_text())
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len(set(ports)) == 5
    assert all(1024 <= port < first for port in ports)


def test_a_hub_elsewhere_is_named_to_every_neuron(tmp_path: Path) -> None:
    """With its address, which may be another one the next time; another hub is another localnet."""
    network = open_network(tmp_path / "net", TINY, 1, 1, (), "s3://models/tiny", "http://127.0.0.1:9000")
    network.prepare()
    for command in network.commands(until_epoch=1):
        at = command.arguments.index("--hub.url")
        assert command.arguments[at + 1] == "s3://models/tiny"
        assert command.arguments[command.arguments.index("--hub.endpoint") + 1] == "http://127.0.0.1:9000"
    open_network(tmp_path / "net", TINY, 1, 1, (), "s3://models/tiny", "http://127.0.0.1:9001").prepare()
    with pytest.raises(ConfigurationError, match="other miners, validators, hub or run file"):
        open_network(tmp_path / "net", TINY, 1, 1, ()).prepare()


def test_only_a_localnet_is_deleted(tmp_path: Path) -> None:
    """--fresh never deletes a folder with something else in it."""
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match="not a localnet"):
        remove(precious)
    open_network(tmp_path / "net", TINY, 1, 1, ()).prepare()
    remove(tmp_path / "net")
    assert not (tmp_path / "net").exists()
    assert (precious / "thesis.txt").exists()
