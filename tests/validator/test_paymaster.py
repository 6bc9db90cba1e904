"""Weights on a real embedded chain, block by block: when, to whom, and what follows from a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from bittensor import Client

from distributed_training.events import WeightsSet
from distributed_training.explain.account import check_payment
from distributed_training.scoring.combine import Entry, ScoreBook
from distributed_training.validator import paymaster
from distributed_training.validator.memory import MemoryFile, Remembered
from distributed_training.validator.paymaster import CHAIN_PATIENCE_BLOCKS, TRIES, Paymaster
from distributed_training.validator.payment import payment_of
from template.chain.connect import connect
from template.chain.local import operator
from template.chain.local.genesis import Registration, create_chain
from template.chain.local.ledger import Ledger
from template.chain.metagraph import read_metagraph, read_weights
from template.clock import ManualClock
from template.telemetry import MemorySink, Telemetry
from tests.roles import Chain, metagraph_of, run_spec
from tests.template.chain.conftest import DevWallet, wallet_of

INTERVAL = 10


@dataclass
class Office:
    """A validator (uid 1) with a permit, miners m1 (2) and m2 (3), and the chain under the test's hand."""

    path: Path
    client: Client
    view: Chain
    memory: Remembered
    paymaster: Paymaster
    sink: MemorySink

    async def advance(self, blocks: int) -> None:
        with Ledger(self.path) as ledger:
            operator.advance(ledger, blocks)
        self.view.metagraph = await read_metagraph(self.client, 1)
        self.view.block = self.view.metagraph.block

    async def until(self, block: int) -> None:
        """Go to that block; an extrinsic moves the head by one as well."""
        await self.advance(block - await self.client.block())

    def earn(self, **shares: float) -> None:
        uids = {"m1": 2, "m2": 3}
        entries = tuple(
            Entry(uid=uids[name], hotkey=wallet_of(name).keys.hotkey, ema=ema) for name, ema in shares.items()
        )
        self.memory.note(book=ScoreBook(epoch=0, entries=entries))

    async def tick(self) -> list[str]:
        """What one look at the chain led to."""
        before = len(self.sink.records)
        if self.paymaster.due():
            await self.paymaster.pay()
        return [record["outcome"] for record in self.sink.records[before:]]

    async def weights(self) -> dict[int, float]:
        return {uid: round(w, 3) for uid, w in (await read_weights(self.client, 1)).get(1, {}).items()}


@asynccontextmanager
async def office(folder: Path, wallet: DevWallet | None = None) -> AsyncIterator[Office]:
    path = folder / "chain.db"
    neurons = [Registration(wallet_of("v").keys, 1000.0), *(Registration(wallet_of(n).keys) for n in ("m1", "m2"))]
    create_chain(path, owner=wallet_of("owner").keys, neurons=neurons, block_seconds=12.0, tempo=20, manual=True)
    sink = MemorySink()
    telemetry = Telemetry([sink])
    scoring = replace(run_spec(folder).scoring, weights_interval=INTERVAL, version_key=0)
    memory = Remembered(MemoryFile(folder / "validator.json"), "run-1", telemetry)
    view = Chain(metagraph_of(1))
    async with connect(f"local://{path}") as client:
        master = Paymaster(
            uid=1,
            spec=scoring,
            netuid=1,
            chain=view,
            client=client,
            wallet=wallet or wallet_of("v"),  # type: ignore[arg-type]
            memory=memory,
            telemetry=telemetry,
            clock=ManualClock(),
        )
        made = Office(path, client, view, memory, master, sink)
        await made.advance(25)  # past the first epoch of the chain: the validator has its permit
        yield made


async def test_nothing_is_set_before_an_epoch_was_scored(tmp_path: Path) -> None:
    """No evidence, no weights: not even a burn."""
    async with office(tmp_path) as at:
        assert await at.tick() == []
        at.earn(m1=3.0, m2=1.0)
        assert await at.tick() == ["set"]
        assert await at.weights() == {2: 0.75, 3: 0.25}


async def test_nobody_earned_anything_burns(tmp_path: Path) -> None:
    """All weight to the owner's uid, never evenly to all."""
    async with office(tmp_path) as at:
        at.earn(m1=0.0, m2=0.0)
        assert await at.tick() == ["set"]
        assert await at.weights() == {0: 1.0}


async def test_weights_are_set_once_an_interval(tmp_path: Path) -> None:
    """Also over a restart: the block is in the memory file."""
    async with office(tmp_path) as at:
        at.earn(m1=1.0)
        start = at.view.block
        assert await at.tick() == ["set"]
        await at.until(start + INTERVAL - 1)
        assert await at.tick() == []
        assert MemoryFile(tmp_path / "validator.json").load("run-1").weights_block == start
        await at.until(start + INTERVAL)
        assert await at.tick() == ["set"]


async def test_rate_limited_is_tried_again_after_the_wait(tmp_path: Path) -> None:
    """As many blocks later as the chain said, not an interval later."""
    async with office(tmp_path) as at:
        at.earn(m1=1.0)
        assert await at.tick() == ["set"]
        at.memory.note(weights_block=None)  # as if the memory was lost
        await at.advance(1)
        start = at.view.block
        assert await at.tick() == ["rate_limited"]
        assert await at.tick() == []
        assert at.memory.now.weights_block is not None
        wait = at.memory.now.weights_block + INTERVAL - start
        assert 1 < wait < INTERVAL
        await at.until(start + wait - 1)
        assert await at.tick() == []
        await at.until(start + wait)
        assert await at.tick() == ["set"]


async def test_a_refusal_is_told_and_tried_at_the_next_interval(tmp_path: Path) -> None:
    """Not every second; the reason is in the event."""
    async with office(tmp_path, wallet_of("m1")) as at:  # a hotkey without a permit
        at.earn(m2=1.0)
        start = at.view.block
        assert await at.tick() == ["refused"]
        assert "NeuronNoValidatorPermit" in at.sink.records[-1]["detail"]
        await at.until(start + INTERVAL - 1)
        assert await at.tick() == []
        await at.until(start + INTERVAL)
        assert await at.tick() == ["refused"]


async def test_a_silent_chain_is_tried_again_a_few_blocks_later(tmp_path: Path) -> None:
    """Nothing is lost by an outage."""
    async with office(tmp_path) as at:
        at.earn(m1=1.0)
        away = at.path.rename(tmp_path / "away.db")
        real, at.paymaster._client = at.client, Silent()  # type: ignore[assignment]
        assert await at.tick() == ["unavailable"]
        assert await at.tick() == []
        away.rename(at.path)
        at.paymaster._client = real
        await at.advance(CHAIN_PATIENCE_BLOCKS)
        assert await at.tick() == ["set"]


class Silent:
    """A client whose node is gone."""

    async def execute(self, *_: object) -> None:
        raise ConnectionRefusedError("no route to the node")

    async def at(self, *_: object) -> None:
        raise ConnectionRefusedError("no route to the node")


class Lossy:
    """A client whose node takes what is sent, and whose answers to it are lost."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.sent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def execute(self, *arguments: Any) -> None:
        self.sent += 1
        await self._client.execute(*arguments)
        raise ConnectionResetError("the connection was lost")


class Hanging(Silent):
    """A client whose node never answers."""

    async def execute(self, *_: object) -> None:
        await asyncio.Event().wait()


async def test_weights_whose_answer_was_lost_are_found(tmp_path: Path) -> None:
    """They are read back and not sent again; the event is of the weights that are there."""
    async with office(tmp_path) as at:
        at.earn(m1=3.0, m2=1.0)
        lossy = Lossy(at.client)
        at.paymaster._client = lossy  # type: ignore[assignment]
        assert await at.tick() == ["unavailable"]
        at.earn(m1=1.0, m2=1.0)
        await at.advance(CHAIN_PATIENCE_BLOCKS)
        assert await at.tick() == ["set"]
        assert lossy.sent == 1
        told = at.sink.records[-1]
        assert (told["attempt"], told["weights"], told["stored"]) == (
            2,
            {"2": 0.75, "3": 0.25},
            {"2": 65535, "3": 21845},
        )
        assert "though the chain did not answer" in told["detail"]


async def test_a_chain_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging node must not hang the pay for ever."""
    monkeypatch.setattr(paymaster, "CHAIN_SECONDS", 0.05)
    async with office(tmp_path) as at:
        at.earn(m1=1.0)
        at.paymaster._client = Hanging()  # type: ignore[assignment]
        assert await at.tick() == ["unavailable"]


async def test_tries_are_bounded_in_an_interval(tmp_path: Path) -> None:
    """So many a few blocks apart; then the next interval is waited for."""
    async with office(tmp_path) as at:
        at.earn(m1=1.0)
        at.paymaster._client = Silent()  # type: ignore[assignment]
        for number in range(1, TRIES + 1):
            assert await at.tick() == ["unavailable"]
            assert at.sink.records[-1]["attempt"] == number
            await at.advance(CHAIN_PATIENCE_BLOCKS)
        assert await at.tick() == []
        await at.advance(INTERVAL - CHAIN_PATIENCE_BLOCKS)
        assert await at.tick() == ["unavailable"]


async def test_an_old_version_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    """With the remedy; the chain would refuse it each time, for a fee."""
    async with office(tmp_path) as at:
        at.earn(m1=1.0)
        at.view.metagraph = replace(at.view.metagraph, weights_version=7)
        at.paymaster._client = Hanging()  # type: ignore[assignment]
        assert await at.tick() == ["refused"]
        assert at.sink.records[-1]["code"] == "old_version"
        assert "update this software" in at.sink.records[-1]["detail"]


def sealing(at: Office) -> None:
    """Turn commit-reveal on."""
    with Ledger(at.path) as ledger:
        operator.apply(ledger, lambda s: operator.set_hyperparameter(s, 1, "commit_reveal_weights_enabled", True))


async def test_sealed_weights_are_committed_and_looked_for(tmp_path: Path) -> None:
    """The commit is read back; once the chain has opened it, that it holds what was sealed is told."""
    async with office(tmp_path) as at:
        sealing(at)
        at.earn(m1=3.0, m2=1.0)
        assert await at.tick() == ["committed"]
        assert (at.sink.records[-1]["stored"], at.sink.records[-1]["attempt"]) == ({}, 1)
        assert await at.tick() == []
        first = at.view.block
        at.earn(m1=1.0, m2=1.0)
        await at.until(first + INTERVAL)
        assert await at.tick() == ["committed"]
        with Ledger(at.path) as ledger:  # the drand network, which the embedded chain has not, would do it
            row = [[2, 65535], [3, 21845]]
            operator.apply(ledger, lambda state: state.put("Weights", 1, 1, value=row))
        await at.until(first + 2 * INTERVAL)
        assert await at.tick() == ["revealed", "committed"]
        told = at.sink.records[-2]
        assert (told["block"], told["weights"], told["stored"]) == (
            first,
            {"2": 0.75, "3": 0.25},
            {"2": 65535, "3": 21845},
        )


async def test_a_commit_that_is_never_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once: several may wait."""
    monkeypatch.setattr(paymaster, "SEALED", 1)
    async with office(tmp_path) as at:
        sealing(at)
        at.earn(m1=1.0)
        told = []
        for _ in range(3):
            told += await at.tick()
            await at.advance(INTERVAL)
        assert told == ["committed", "committed", "refused", "committed"]
        assert [record["code"] for record in at.sink.records if record["outcome"] == "refused"] == ["not_revealed"]


async def test_what_is_told_leads_to_what_was_set(tmp_path: Path) -> None:
    """The subnet's limits and the book give the weights again, and these the u16 on the chain, to the bit."""
    async with office(tmp_path) as at:
        with Ledger(at.path) as ledger:
            for name, value in (("min_allowed_weights", 3), ("max_weights_limit", 40_000)):
                operator.apply(ledger, lambda s, n=name, v=value: operator.set_hyperparameter(s, 1, n, v))  # type: ignore[misc]
        await at.advance(1)
        at.earn(m1=5.0, m2=0.3)
        assert await at.tick() == ["set"]
        (told,) = (record for record in at.sink.records if record["kind"] == "WeightsSet")
        assert told["limits"] == {"uids": 4, "owner_uid": 0, "min_allowed": 3, "max_limit": 40_000}
        check_payment(WeightsSet(**{k: v for k, v in told.items() if k not in ("kind", "time")}), at.memory.now.book)
        assert sum(told["stored"].values()) * 40_000 >= max(told["stored"].values()) * 65535
        assert set(told["stored"]) == {"0", "2", "3"}


async def test_an_owner_without_a_uid_keeps_nobody_from_being_paid(tmp_path: Path) -> None:
    """It is needed to burn, and for nothing else."""
    async with office(tmp_path) as at:
        at.earn(m1=1.0, m2=1.0)
        at.view.metagraph = replace(at.view.metagraph, owner_hotkey="5Gone")
        assert await at.tick() == ["set"]


async def test_an_owner_without_a_uid_is_told_and_ends_nothing(tmp_path: Path) -> None:
    """There is nobody to burn to; the validator goes on and tries again."""
    async with office(tmp_path) as at:
        at.earn()
        at.view.metagraph = replace(at.view.metagraph, owner_hotkey="5Gone")
        assert await at.tick() == ["refused"]
        assert "nobody whose weight is burned" in at.sink.records[-1]["detail"]
        assert await at.tick() == []


async def test_who_lost_its_uid_is_not_paid_and_neither_is_its_successor(tmp_path: Path) -> None:
    """What a hotkey earned is not handed on with the uid."""
    async with office(tmp_path) as at:
        at.earn(m1=3.0, m2=1.0)
        hotkeys = list(at.view.metagraph.hotkeys)
        hotkeys[2] = "5Newcomer"
        graph = replace(at.view.metagraph, hotkeys=tuple(hotkeys))
        payment = payment_of(at.memory.now.book, graph)
        assert (payment.departed, payment.shares) == ((2,), {3: 1.0})
        assert payment_of(at.memory.now.book, replace(graph, hotkeys=graph.hotkeys[:2])).shares == {0: 1.0}
