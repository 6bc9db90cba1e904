"""Epochs through the SDK: permits, who is paid how much, mechanisms, bonds, replaced hotkeys."""

from __future__ import annotations

from typing import Any

import bittensor as bt
import pytest
from bittensor import calls

from template.chain import neuron_calls
from template.chain.metagraph import read_metagraph

ALPHA = 10**9
CUT = ALPHA * 11796 // 65535
SERVERS = (ALPHA - CUT) // 2


async def set_weights(chain: Any, wallet: Any, weights: dict[int, float], mechid: int = 0) -> None:
    result = await chain.client.execute(bt.SetWeights(netuid=1, weights=weights, mechid=mechid), wallet)
    assert result.success, result.message


async def staked(chain: Any, wallet: Any) -> int:
    return int((await chain.client.staking.get(wallet.keys.coldkey, wallet.keys.hotkey, 1)).rao)


async def test_permits_come_with_the_first_epoch(chain: Any) -> None:
    """Stake gives a permit at the epoch, not before; the owner always has one."""
    assert (await read_metagraph(chain.client, 1)).validator_permit == (False,) * 4
    chain.advance(20)
    assert (await read_metagraph(chain.client, 1)).validator_permit == (True, True, False, False)


async def test_permits_are_limited_to_the_largest(chain: Any, wallet: Any) -> None:
    """With one place only the largest stake and the owner may validate."""
    chain.set("max_validators", 1)
    await neuron_calls.add_stake(chain.client, wallet("m1"), 1, 10.0)
    chain.advance(20)
    assert (await read_metagraph(chain.client, 1)).validator_permit == (True, True, False, False)


async def test_miners_are_paid_by_incentive(chain: Any, wallet: Any) -> None:
    """One epoch: 41 % of the alpha to the miners 3 to 1, as both mechanisms agree; 18 % to the owner."""
    chain.advance(25)
    for mechid in (0, 1):
        await set_weights(chain, wallet("v"), {2: 3.0, 3: 1.0}, mechid)
    before = [await staked(chain, wallet(name)) for name in ("owner", "m1", "m2")]
    last = int(await chain.client.query(("SubtensorModule", "LastEpochBlock"), [1]))
    chain.advance(last + 20 - await chain.client.block())
    paid = [await staked(chain, wallet(n)) - b for n, b in zip(("owner", "m1", "m2"), before, strict=True)]
    assert paid[0] == 20 * CUT
    assert paid[1] == pytest.approx(20 * SERVERS * 0.75, rel=1e-4)
    assert paid[2] == pytest.approx(20 * SERVERS * 0.25, rel=1e-4)


async def test_split_pays_each_mechanism_its_share(chain: Any, wallet: Any) -> None:
    """20 % to mechanism 0 and 80 % to mechanism 1, each to its own best miner."""
    call = calls.AdminUtils.sudo_set_mechanism_emission_split(netuid=1, maybe_split=[13107, 52428])
    assert (await chain.client.submit_call(call, wallet("owner"))).success
    chain.advance(25)
    await set_weights(chain, wallet("v"), {2: 1.0}, 0)
    await set_weights(chain, wallet("v"), {3: 1.0}, 1)
    chain.advance(20)
    first, second = await staked(chain, wallet("m1")), await staked(chain, wallet("m2"))
    assert first == pytest.approx(20 * SERVERS * 0.2, rel=1e-3)
    assert second == pytest.approx(20 * SERVERS * 0.8, rel=1e-3)


async def test_owners_incentive_is_burned(chain: Any, wallet: Any) -> None:
    """Weight on the owner's uid pays nobody: its hotkey gets the cut and no more."""
    chain.advance(25)
    for mechid in (0, 1):
        await set_weights(chain, wallet("v"), {0: 1.0}, mechid)
    before = await staked(chain, wallet("owner"))
    chain.advance(20)
    graph = await read_metagraph(chain.client, 1)
    assert graph.incentive == (1.0, 0.0, 0.0, 0.0)
    assert await staked(chain, wallet("owner")) - before == 20 * CUT
    assert await staked(chain, wallet("m1")) == 0


async def test_dividends_are_shared_with_stakers(chain: Any, wallet: Any) -> None:
    """18 % take to the validator, the rest by stake."""
    client, other = chain.client, wallet("m1")
    stake = calls.SubtensorModule.add_stake(hotkey=wallet("v").keys.hotkey, netuid=1, amount_staked=500 * ALPHA)
    assert (await client.submit_call(stake, other)).success is True
    own, foreign = [
        int((await client.staking.get(w.keys.coldkey, wallet("v").keys.hotkey, 1)).rao) for w in (wallet("v"), other)
    ]
    chain.advance(25)
    after = int((await client.staking.get(other.keys.coldkey, wallet("v").keys.hotkey, 1)).rao)
    last = int(await client.query(("SubtensorModule", "LastEpochBlock"), [1]))
    pot = (last - 1) * (ALPHA - CUT)  # nobody set weights: the miners' half goes to the stake too
    assert after - foreign == pytest.approx(pot * (1 - 11796 / 65535) * foreign / (own + foreign), rel=1e-6)


@pytest.mark.parametrize("yuma3", [True, False])
async def test_bonds_grow_towards_the_weights(chain: Any, wallet: Any, yuma3: bool) -> None:
    """v3 moves a bond by a tenth of the weight an epoch: 0.1, then 0.19; v2 scales columns to the largest."""
    chain.set("yuma3_enabled", yuma3)
    chain.advance(25)
    await set_weights(chain, wallet("v"), {2: 1.0})
    seen = []
    for _ in range(2):
        chain.advance(20)
        seen.append((await chain.client.read("bonds", netuid=1)).get(1, {}).get(2))
    assert seen == (pytest.approx([0.1, 0.19], abs=1e-3) if yuma3 else [1.0, 1.0])


async def test_wall_of_epochs_is_caught_up(chain: Any) -> None:
    """A long sleep runs every epoch that was due, each at its block."""
    chain.advance(20 * 100 + 5)
    assert int(await chain.client.query(("SubtensorModule", "SubnetEpochIndex"), [1])) == 100
    assert int(await chain.client.query(("SubtensorModule", "LastEpochBlock"), [1])) == 2001
    assert int(await chain.client.query(("SubtensorModule", "LastEpochBlock"), [1], block=1000)) == 981


async def test_pending_follows_the_block(chain: Any) -> None:
    """Alpha that waits for the epoch grows with each block and starts anew after it."""

    async def pending(block: int) -> int:
        return int(await chain.client.query(("SubtensorModule", "PendingServerEmission"), [1], block=block))

    chain.advance(25)
    assert [await pending(block) for block in (1, 11, 20, 21, 23)] == [0, 10 * SERVERS, 19 * SERVERS, 0, 2 * SERVERS]


async def full_subnet(chain: Any) -> None:
    chain.set("max_allowed_uids", 4)
    chain.set("immunity_period", 30)
    chain.advance(40)


async def test_replaced_hotkey(chain: Any, wallet: Any) -> None:
    """In a full subnet the poorest loses its uid, its address and its weights' effect, and can notice it."""
    await neuron_calls.serve_axon(chain.client, wallet("m2"), 1, "127.0.0.2", 8093)
    await full_subnet(chain)
    await set_weights(chain, wallet("v"), {2: 3.0, 3: 1.0})
    chain.advance(20)
    new = wallet("new")
    chain.fund(new, 5.0)
    assert await neuron_calls.register(chain.client, new, 1) == 3
    graph = await read_metagraph(chain.client, 1)
    assert (graph.hotkeys[3], graph.axons[3], graph.incentive[3]) == (new.keys.hotkey, None, 0.0)
    assert graph.uid_of(wallet("m2").keys.hotkey) is None
    assert graph.registered_at[3] == graph.last_update[3] == graph.block
    chain.advance(20)
    after = await read_metagraph(chain.client, 1)
    assert after.incentive == (0.0, 0.0, 1.0, 0.0)  # the old weights to uid 3 do not pay the new hotkey
    past = await read_metagraph(chain.client, 1, block=graph.block - 1)
    assert past.hotkeys[3] == wallet("m2").keys.hotkey


async def test_the_immune_are_not_replaced(chain: Any, wallet: Any) -> None:
    """A full subnet of newcomers takes nobody."""
    chain.set("max_allowed_uids", 4)
    chain.fund(wallet("new"), 5.0)
    result = await chain.client.execute(bt.BurnedRegister(netuid=1), wallet("new"))
    assert result.error.name == "NoNeuronIdAvailable"


async def test_the_owner_is_never_replaced(chain: Any, wallet: Any) -> None:
    """Though it earns least and is oldest."""
    await full_subnet(chain)
    for number in range(4):
        chain.fund(wallet(f"new{number}"), 5.0)
        result = await chain.client.execute(bt.BurnedRegister(netuid=1), wallet(f"new{number}"))
        assert result.success or result.error.name == "NoNeuronIdAvailable"
    assert (await read_metagraph(chain.client, 1)).hotkeys[0] == wallet("owner").keys.hotkey


async def test_price_rises_and_falls(chain: Any, wallet: Any) -> None:
    """Registering makes it 26 % dearer; it halves every 360 blocks, not below the minimum."""

    async def price() -> int:
        return int((await chain.client.subnets.burn(1)).rao)

    first = await price()
    chain.fund(wallet("new"), 5.0)  # seals a block
    cost = await price()
    await neuron_calls.register(chain.client, wallet("new"), 1)
    risen = await price()
    assert cost <= first
    assert risen == pytest.approx(cost * 1.26, rel=2e-2)
    chain.advance(360)
    assert await price() == pytest.approx(risen / 2, rel=1e-6)
    chain.advance(7200)
    assert await price() == 500_000
