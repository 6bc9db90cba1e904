"""The census: only what a registered hotkey signed is believed, and only its peers are served."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from distributed_training.averaging.binding import sign_binding
from distributed_training.peers import KnownPeers, targets, validators_of
from tests.roles import key_of, metagraph_of, subnet


async def test_everybody_but_oneself_is_asked(tmp_path: Path) -> None:
    """Views by uid, with the role that the chain gives them and the samples they told."""
    async with subnet(tmp_path, miners=2, validators=2) as net:
        await net.train(3, 1)
        views = await net.census(0).ask(net.chain.metagraph, range(4), 5)
        assert [(v.uid, v.is_validator, v.samples > 0) for v in views] == [
            (1, True, False),
            (2, False, False),
            (3, False, True),
        ]


async def test_who_does_not_answer_is_told_once(tmp_path: Path) -> None:
    """And again only after it was seen in between."""
    async with subnet(tmp_path) as net:
        census, axon = net.census(0), net.neurons[2].axon
        net.wire.remove(axon.hotkey)
        for _ in range(3):
            assert [v.uid for v in await census.ask(net.chain.metagraph, range(3), 5)] == [1]
        net.wire.add(axon)
        await census.ask(net.chain.metagraph, range(3), 5)
        net.wire.remove(axon.hotkey)
        await census.ask(net.chain.metagraph, range(3), 5)
        net.wire.add(axon)
        assert [event["miner"] for event in net.neurons[0].told("Unseen")] == [2, 2]


async def test_a_peer_id_that_its_hotkey_did_not_sign_for_is_not_known(tmp_path: Path) -> None:
    """The answer is left out and its streams are not served."""
    async with subnet(tmp_path) as net:
        net.neurons[0].known.keep(())
        forged = sign_binding(key_of(1), net.spec.run_id, "peer2", ("/memory",))
        net.neurons[2].node.binding = forged.model_copy(update={"hotkey": key_of(2).ss58_address})
        views = await net.census(0).ask(net.chain.metagraph, range(3), 5)
        assert [v.uid for v in views] == [1]
        assert "peer1" in net.neurons[0].known
        assert "peer2" not in net.neurons[0].known


@pytest.mark.parametrize("victim", [0, 1])
async def test_naming_another_s_peer_id_keeps_nobody_out(tmp_path: Path, victim: int) -> None:
    """The peer itself says whose it is: only the impostor is left out, and told, whoever it is that it names."""
    async with subnet(tmp_path) as net:
        net.neurons[2].node.binding = sign_binding(key_of(2), net.spec.run_id, f"peer{victim}", ("/elsewhere",))
        census = net.census(0)
        for _ in range(2):
            assert [v.uid for v in await census.ask(net.chain.metagraph, range(3), 5)] == [1]
        assert [(e["miner"], "several hotkeys" in e["reason"]) for e in net.neurons[0].told("Unseen")] == [(2, True)]
        net.neurons[2].node.binding = sign_binding(key_of(2), net.spec.run_id, "peer2", ("/memory",))
        assert [v.uid for v in await census.ask(net.chain.metagraph, range(3), 5)] == [1, 2]


async def test_a_disputed_peer_that_nobody_reaches_is_left_out(tmp_path: Path) -> None:
    """A group could not use it either."""
    async with subnet(tmp_path, miners=3) as net:
        net.neurons[3].node.binding = sign_binding(key_of(3), net.spec.run_id, "peer2", ("/elsewhere",))
        await net.neurons[2].transport.unserve("dt-introduction/1")
        assert [v.uid for v in await net.census(0).ask(net.chain.metagraph, range(4), 5)] == [1]
        await net.neurons[2].transport.serve("dt-introduction/1", lambda stream: stream.close())


async def test_another_corpus_is_left_out_with_the_reason(tmp_path: Path) -> None:
    """Its gradients would be of other text."""
    async with subnet(tmp_path, miners=1) as net:
        assert await net.census(0, "c" * 64).ask(net.chain.metagraph, range(2), 5) == ()
        assert "both need the same text" in net.neurons[0].told("Unseen")[0]["reason"]


async def test_peers_of_those_who_left_the_subnet_are_forgotten(tmp_path: Path) -> None:
    """A replaced hotkey's streams are served no longer."""
    async with subnet(tmp_path) as net:
        hotkeys = (*net.chain.metagraph.hotkeys[:2], "5Newcomer")
        await net.census(0).ask(dataclasses.replace(net.chain.metagraph, hotkeys=hotkeys), [1], 5)
        assert "peer1" in net.neurons[0].known
        assert "peer2" not in net.neurons[0].known


def test_a_hotkey_has_one_peer() -> None:
    """Its new identity replaces the old one."""
    known = KnownPeers()
    known.add("5A", "old")
    known.add("5A", "new")
    assert "new" in known
    assert "old" not in known


def test_validators_have_permit_stake_and_an_axon() -> None:
    """Each of the three is needed; who serves nothing is no target either."""
    graph = metagraph_of(4, range(4))
    graph = dataclasses.replace(
        graph,
        validator_permit=(True, False, True, True),
        stake=(100.0, 100.0, 1.0, 100.0),
        axons=(*graph.axons[:3], None),
    )
    assert validators_of(graph, 10.0) == {0}
    assert [target.uid for target in targets(graph, range(4))] == [0, 1, 2]
