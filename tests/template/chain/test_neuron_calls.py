"""Registering, serving and staking, each repeatable, with this project's errors."""

from __future__ import annotations

from typing import Any

import pytest

from template.chain import neuron_calls
from template.chain.metagraph import AxonInfo, read_metagraph
from template.errors import ChainRefused, ChainUnavailable, ConfigurationError, NotRegistered


async def test_register_once(chain: Any, wallet: Any) -> None:
    """The second call finds the uid and pays nothing."""
    new = wallet("new")
    chain.fund(new, 5.0)
    assert await neuron_calls.register(chain.client, new, 1) == 4
    paid = await chain.client.balances.get(new.keys.coldkey)
    assert await neuron_calls.register(chain.client, new, 1) == 4
    assert await chain.client.balances.get(new.keys.coldkey) == paid
    assert 4.0 < paid.tao < 5.0


async def test_register_without_money(chain: Any, wallet: Any) -> None:
    """The pallet's refusal keeps its code and name."""
    with pytest.raises(ChainRefused, match="NotEnoughBalanceToStake") as caught:
        await neuron_calls.register(chain.client, wallet("poor"), 1)
    assert (caught.value.code, caught.value.name) == ("insufficient_balance", "NotEnoughBalanceToStake")


async def test_serve_and_skip(chain: Any, wallet: Any) -> None:
    """The same address again is not sent, so a restart is never rate-limited."""
    miner = wallet("m1")
    assert await neuron_calls.serve_axon(chain.client, miner, 1, "127.0.0.2", 8091)
    block = await chain.client.block()
    assert not await neuron_calls.serve_axon(chain.client, miner, 1, "127.0.0.2", 8091)
    assert await chain.client.block() == block
    assert (await read_metagraph(chain.client, 1)).axons[2] == AxonInfo("127.0.0.2", 8091)


async def test_serve_elsewhere_is_rate_limited(chain: Any, wallet: Any) -> None:
    """A new address soon after the last is refused with the code, later it is taken."""
    miner = wallet("m1")
    await neuron_calls.serve_axon(chain.client, miner, 1, "127.0.0.2", 8091)
    with pytest.raises(ChainRefused, match="ServingRateLimitExceeded") as caught:
        await neuron_calls.serve_axon(chain.client, miner, 1, "127.0.0.2", 8092)
    assert caught.value.code == "rate_limited"
    chain.advance(5)
    assert await neuron_calls.serve_axon(chain.client, miner, 1, "127.0.0.2", 8092)


async def test_loopback_one_is_refused(chain: Any, wallet: Any) -> None:
    """As on the chain, exactly 127.0.0.1 is no address."""
    with pytest.raises(ChainRefused, match="InvalidIpAddress") as caught:
        await neuron_calls.serve_axon(chain.client, wallet("m1"), 1, "127.0.0.1", 8091)
    assert caught.value.code == "invalid_argument"


@pytest.mark.parametrize(("ip", "port"), [("localhost", 80), ("10.0.0.1", 0), ("10.0.0.1", 65536)])
async def test_impossible_address(chain: Any, wallet: Any, ip: str, port: int) -> None:
    """Found before the chain is asked."""
    with pytest.raises(ConfigurationError):
        await neuron_calls.serve_axon(chain.client, wallet("m1"), 1, ip, port)


async def test_serve_unregistered(chain: Any, wallet: Any) -> None:
    """A hotkey without a uid cannot serve."""
    with pytest.raises(NotRegistered, match="not registered on subnet 1"):
        await neuron_calls.serve_axon(chain.client, wallet("nobody"), 1, "127.0.0.2", 8091)


async def test_add_stake(chain: Any, wallet: Any) -> None:
    """TAO becomes alpha on the hotkey; too large a bite of the pool is refused."""
    await neuron_calls.add_stake(chain.client, wallet("m1"), 1, 2.0)
    assert (await read_metagraph(chain.client, 1)).stake[2] > 0
    with pytest.raises(ChainRefused, match="SlippageTooHigh") as caught:
        await neuron_calls.add_stake(chain.client, wallet("m1"), 1, 900.0)
    assert caught.value.code == "insufficient_liquidity"


async def test_file_gone_bad_is_chain_unavailable(chain: Any, wallet: Any) -> None:
    """SQLite's errors do not reach a neuron."""
    await chain.client.close()
    with pytest.raises(ChainUnavailable):
        await neuron_calls.uid_of(chain.client, 1, wallet("m1").keys.hotkey)
