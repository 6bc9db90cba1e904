"""LocalSubstrate as the SDK sees it: the protocol, blocks, pinned reads, signatures, what is missing."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest
from bittensor import calls
from bittensor._substrate import Substrate

from template.chain.connect import connect
from template.chain.local.genesis import create_file
from template.chain.local.substrate import LocalSubstrate
from template.clock import ManualClock

FREE_FORM = {"prepare", "submit_signature", "submit_signed", "submit_multisig"}  # they only raise


def test_protocol_signatures() -> None:
    """Every method of the SDK's protocol is there with the same parameters."""
    for name, wanted in vars(Substrate).items():
        if name.startswith("_") or not callable(wanted) or name in FREE_FORM:
            continue
        ours = inspect.signature(getattr(LocalSubstrate, name))
        assert list(ours.parameters) == list(inspect.signature(wanted).parameters), name


async def test_block_stream(tmp_path: Path) -> None:
    """Every block comes once and in order, linked by its parent's hash."""
    create_file(tmp_path / "c.db", block_seconds=0.02, manual=False)
    async with connect(f"local://{tmp_path}/c.db") as client:
        headers = []
        async for header in client.blocks():
            headers.append(header)
            if len(headers) == 5:
                break
    numbers = [header.number for header in headers]
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    for before, after in itertools.pairwise(headers):
        assert after.parent_hash == before.raw["hash"]


async def test_wall_clock_is_a_parameter(tmp_path: Path) -> None:
    """With a clock moved by hand, blocks pass without waiting, and a submission waits for its block."""
    clock = ManualClock()
    path = tmp_path / "c.db"
    create_file(path, block_seconds=12.0, manual=False, clock=clock)
    async with connect(f"local://{path}", clock=clock) as client:
        assert await client.block() == 1
        waiting = asyncio.create_task(client.wait_for_block(4))
        await clock.advance(36.5)
        assert (await waiting).number == 4
        stamp = (await client.block_info(3)).timestamp.timestamp()  # type: ignore[union-attr]
        assert stamp == pytest.approx(1_700_000_000 + 24)


async def test_wait_for_epoch(chain: Any) -> None:
    """The SDK's wait sees the epoch at the block it ran."""
    waiting = asyncio.create_task(chain.client.wait_for_epoch(1, timeout=20))
    await asyncio.sleep(0.1)
    chain.advance(25)
    event = await waiting
    assert (event.block, event.previous) == (21, 1)
    status = await chain.client.read("epoch_status", netuid=1)
    assert (status["last_epoch_block"], status["next_epoch_start_block"], status["epoch_index"]) == (21, 41, 1)


async def test_reads_are_pinned(chain: Any, wallet: Any) -> None:
    """A snapshot never sees what was written after its block."""
    who = wallet("new").keys.coldkey
    view = await chain.client.at()
    transfer = bt.Transfer(dest_ss58=who, amount_tao=3.0)
    assert (await chain.client.execute(transfer, wallet("v"))).success
    assert (await view.balances.get(who)).rao == 0
    assert (await chain.client.balances.get(who)).tao == 3.0
    assert (await view.subnets.metagraph(1)).block == view.block


async def test_pinned_reads_across_epochs(chain: Any) -> None:
    """Blocks before an epoch keep the old permits."""
    chain.advance(50)
    at = {b: (await (await chain.client.at(b)).subnets.metagraph(1)).neuron(1).validator_permit for b in (20, 21, 40)}
    assert at == {20: False, 21: True, 40: True}


async def test_future_and_foreign_blocks(chain: Any) -> None:
    """A block to come has no hash; a hash of another chain is refused."""
    substrate = chain.client._substrate
    assert await substrate.block_hash(99) is None
    with pytest.raises(bt.ChainError, match="no block"):
        await substrate.block_hash(-1)
    with pytest.raises(bt.ChainError, match="no block has the hash"):
        await substrate.query("SubtensorModule", "Tempo", [1], block_hash="0x" + "ab" * 24 + f"{1:016x}")


async def test_nonce_is_checked_and_used_once(chain: Any, wallet: Any) -> None:
    """Old and future nonces are refused and change nothing; a refused call still uses its nonce."""
    substrate, who = chain.client._substrate, wallet("v").coldkey
    call = calls.Balances.transfer_keep_alive(dest=wallet("m1").keys.coldkey, value=1000)
    assert (await substrate.submit(call, who, nonce=0)).success
    assert (await substrate.submit(call, who, nonce=0)).error.name == "Stale"
    assert (await substrate.submit(call, who, nonce=2)).error.name == "Future"
    failing = calls.Balances.transfer_keep_alive(dest=wallet("m1").keys.coldkey, value=10**18)
    assert (await substrate.submit(failing, who)).error.name == "FundsUnavailable"
    assert await substrate.account_next_index(who.ss58_address) == 2


class Forger:
    """Signs with another key than it claims."""

    crypto_type = 1

    def __init__(self, victim: str, key: Any) -> None:
        self.ss58_address = victim
        self.sign = key.sign


async def test_bad_signature(chain: Any, wallet: Any) -> None:
    """Nobody spends another's money."""
    forger = Forger(wallet("v").keys.coldkey, wallet("m1").coldkey)
    call = calls.Balances.transfer_keep_alive(dest=wallet("m1").keys.coldkey, value=1000)
    result = await chain.client._substrate.submit(call, forger)
    assert (result.success, result.error.name) == (False, "BadProof")


async def test_shielded_register(chain: Any, wallet: Any) -> None:
    """The inner call is executed under the next nonce and its own receipt is found."""
    chain.fund(wallet("new"), 5.0)
    result = await chain.client.execute(bt.BurnedRegister(netuid=1), wallet("new"))
    assert (result.success, result.data["shielded"]) == (True, True)
    assert result.extrinsic_id.endswith("-0002")
    assert any(event["event_id"] == "NeuronRegistered" for event in result.events)
    assert await chain.client._substrate.account_next_index(wallet("new").keys.coldkey) == 2


async def test_envelope_without_its_call_is_refused(chain: Any, wallet: Any) -> None:
    """Ciphertext made elsewhere cannot be opened here, and says so."""
    call = calls.MevShield.submit_encrypted(ciphertext=b"sealed")
    result = await chain.client._substrate.submit(call, wallet("v").coldkey, nonce=0)
    assert not result.success
    assert "opens only envelopes" in result.message
    assert await chain.client._substrate.account_next_index(wallet("v").keys.coldkey) == 0


async def test_batch_is_all_or_nothing(chain: Any, wallet: Any) -> None:
    """One refused call undoes the others."""
    client, dest = chain.client, wallet("new").keys.coldkey

    async def batch(*values: int) -> Any:
        inner = [await client.compose(calls.Balances.transfer_keep_alive(dest=dest, value=v)) for v in values]
        return await client.submit_call(calls.Utility.batch_all(calls=inner), wallet("v"))

    assert (await batch(10**9, 10**18)).error.name == "FundsUnavailable"
    assert (await client.balances.get(dest)).rao == 0
    assert (await batch(10**9, 10**9)).success
    assert (await client.balances.get(dest)).tao == 2.0


async def test_block_info_and_events(chain: Any, wallet: Any) -> None:
    """A block shows its calls with their signers, and what they caused."""
    result = await chain.client.execute(bt.ServeAxon(netuid=1, ip="127.0.0.2", port=8091), wallet("m1"))
    info = await chain.client.block_info(int(result.extrinsic_id.split("-")[0]))
    assert info.extrinsics[1]["address"] == wallet("m1").keys.hotkey
    assert info.extrinsics[1]["call"]["call_function"] == "serve_axon"
    assert [event["event_id"] for event in result.events] == ["AxonServed", "ExtrinsicSuccess"]


async def test_stake_round_trip(chain: Any, wallet: Any) -> None:
    """Unstaking everything gives back what the pool takes it for."""
    client, w = chain.client, wallet("m1")
    before = (await client.balances.get(w.keys.coldkey)).rao
    assert (await client.execute(bt.AddStake(hotkey_ss58=w.keys.hotkey, netuid=1, amount_tao=5), w)).success
    gone = bt.RemoveStake(hotkey_ss58=w.keys.hotkey, netuid=1, amount_alpha="all")
    assert (await client.execute(gone, w)).success
    assert (await client.staking.get(w.keys.coldkey, w.keys.hotkey, 1)).rao == 0
    assert before - 3 <= (await client.balances.get(w.keys.coldkey)).rao <= before


async def test_commitment_round_trip(chain: Any, wallet: Any) -> None:
    """Published by a hotkey, found in the metagraph."""
    call = calls.Commitments.set_commitment(netuid=1, info={"fields": [[{"Raw5": b"hello"}]]})
    assert (await chain.client.submit_call(call, wallet("m1"), signer="hotkey")).success
    graph = await chain.client.subnets.metagraph(1)
    assert graph.commitments[2].value == "hello"


async def test_hyperparameters_by_intent(chain: Any, wallet: Any) -> None:
    """The owner sets and everybody reads them by the SDK's names."""
    intent = bt.SetHyperparameter(netuid=1, name="immunity_period", value=77)
    assert (await chain.client.execute(intent, wallet("owner"))).success
    assert (await chain.client.read("subnet_hyperparameters", netuid=1))["immunity_period"] == 77


async def test_neurons_and_subnets(chain: Any) -> None:
    """The SDK's listings."""
    assert [n.uid for n in await chain.client.neurons.all(1)] == [0, 1, 2, 3]
    assert [(s.netuid, s.neuron_count) for s in await chain.client.subnets.all()] == [(0, 0), (1, 4)]


MISSING: list[tuple[str, tuple[Any, ...]]] = [
    ("query", ("SubtensorModule", "TotalIssuance")),
    ("query", ("Embedded", "Stake", [1, "a", "b"])),
    ("query_map", ("Proxy", "Proxies")),
    ("runtime_call", ("DelegateInfoRuntimeApi", "get_delegates", [])),
    ("constant", ("SubtensorModule", "InitialBurn")),
    ("decode_scale", ("Call", b"")),
    ("estimate_weight", (None, None)),
    ("prepare", (None,)),
    ("submit_signature", (None, None)),
    ("submit_signed", (None, None)),
    ("submit_multisig", (None, None, None)),
]


@pytest.mark.parametrize(("method", "arguments"), MISSING)
async def test_missing_parts_raise(chain: Any, method: str, arguments: tuple[Any, ...]) -> None:
    """Named, never answered with a default."""
    with pytest.raises(bt.ChainError, match="the embedded chain does not implement"):
        await getattr(chain.client._substrate, method)(*arguments)


async def test_root_stake_raises_and_uses_no_nonce(chain: Any, wallet: Any) -> None:
    """What a call needs and the chain lacks undoes the whole extrinsic."""
    call = calls.SubtensorModule.add_stake(hotkey=wallet("v").keys.hotkey, netuid=0, amount_staked=10**9)
    result = await chain.client.submit_call(call, wallet("v"))
    assert "does not implement root stake" in result.message
    assert await chain.client._substrate.account_next_index(wallet("v").keys.coldkey) == 0
