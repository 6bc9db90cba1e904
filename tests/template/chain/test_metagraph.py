"""The frozen metagraph, read through the SDK."""

from __future__ import annotations

import dataclasses
from typing import Any

import bittensor as bt
import pytest

from template.chain import neuron_calls
from template.chain.metagraph import AxonInfo, axon_of, read_metagraph, read_weights
from template.errors import ChainUnavailable, ConfigurationError


async def test_fields(chain: Any, wallet: Any) -> None:
    """Who is registered, with what stake, under which rules."""
    graph = await read_metagraph(chain.client, 1)
    names = ("owner", "v", "m1", "m2")
    assert graph.hotkeys == tuple(wallet(name).keys.hotkey for name in names)
    assert graph.coldkeys == tuple(wallet(name).keys.coldkey for name in names)
    assert graph.stake == (0.0, pytest.approx(500.0, abs=1e-6), 0.0, 0.0)  # half: the pool held as much
    assert (graph.block, graph.tempo, graph.registered_at, len(graph)) == (1, 20, (1, 1, 1, 1), 4)
    assert (graph.weights_rate_limit, graph.max_uids, graph.max_weights_limit) == (5, 64, 65535)
    assert graph.owner_uid == 0


async def test_agrees_with_the_sdk(chain: Any) -> None:
    """Ours and the SDK's own metagraph say the same."""
    chain.advance(25)
    ours, theirs = await read_metagraph(chain.client, 1), await chain.client.subnets.metagraph(1)
    assert list(ours.hotkeys) == theirs.hotkeys
    assert [n.validator_permit for n in theirs] == list(ours.validator_permit)
    assert [n.dividends for n in theirs] == list(ours.dividends)
    assert [n.total_stake.alpha for n in theirs] == pytest.approx(ours.stake)
    assert [n.emission.alpha for n in theirs] == pytest.approx(ours.emission)


async def test_is_frozen(chain: Any) -> None:
    """A snapshot cannot be changed by whoever gets it."""
    graph = await read_metagraph(chain.client, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.block = 7  # type: ignore[misc]


async def test_uid_and_validator(chain: Any, wallet: Any) -> None:
    """Permit and stake together make a validator; neither does alone."""
    graph = await read_metagraph(chain.client, 1)
    assert graph.uid_of(wallet("m1").keys.hotkey) == 2
    assert graph.uid_of(wallet("nobody").keys.hotkey) is None
    assert not graph.is_validator(1, 400.0)
    chain.advance(25)
    graph = await read_metagraph(chain.client, 1)
    assert graph.is_validator(1, 400.0)
    assert not graph.is_validator(1, 600.0)


async def test_pinned_to_a_block(chain: Any, wallet: Any) -> None:
    """A past block looks as it did then; one to come is refused, never answered with the head."""
    before = await chain.client.block()
    await neuron_calls.serve_axon(chain.client, wallet("m1"), 1, "127.0.0.2", 8091)
    assert (await read_metagraph(chain.client, 1)).axons[2] == AxonInfo("127.0.0.2", 8091)
    assert (await read_metagraph(chain.client, 1, block=before)).axons[2] is None
    with pytest.raises(ChainUnavailable, match="not there yet"):
        await read_metagraph(chain.client, 1, block=before + 100)


@pytest.mark.parametrize(("netuid", "mechid"), [(9, 0), (1, 2)])
async def test_missing_subnet_or_mechanism(chain: Any, netuid: int, mechid: int) -> None:
    """What does not exist is an error of configuration."""
    with pytest.raises(ConfigurationError, match=f"mechanism {mechid} of subnet {netuid}"):
        await read_metagraph(chain.client, netuid, mechid)


async def test_mechanism_one_has_its_own_updates_and_incentive(chain: Any, wallet: Any) -> None:
    """Weights of mechanism 1 move only its own vectors."""
    chain.advance(25)
    intent = bt.SetWeights(netuid=1, weights={3: 1.0}, mechid=1)
    assert (await chain.client.execute(intent, wallet("v"))).success
    block = await chain.client.block()
    chain.advance(20)
    zero, one = await read_metagraph(chain.client, 1), await read_metagraph(chain.client, 1, mechid=1)
    assert (zero.netuid, one.netuid, one.mechid) == (1, 1, 1)
    assert (zero.last_update[1], one.last_update[1]) == (1, block)
    assert (zero.incentive, one.incentive) == ((0.0,) * 4, (0.0, 0.0, 0.0, 1.0))
    assert await read_weights(chain.client, 1, 0) == {}
    assert await read_weights(chain.client, 1, 1) == {1: {3: 1.0}}


def test_axon_of_ipv6_and_none() -> None:
    """Both address families; an empty record is nothing served."""
    assert axon_of({"ip": 0x20010DB8 << 96, "ip_type": 6, "port": 5}) == AxonInfo("2001:db8::", 5)
    assert axon_of({"ip": 0, "ip_type": 4, "port": 1}) is None
