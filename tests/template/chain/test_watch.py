"""Going along with the chain: fresh when it answers, told and unchanged when it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from template.chain.metagraph import read_metagraph
from template.chain.watch import ChainWatch, ChainWatchConfig
from template.clock import ManualClock
from template.errors import ConfigurationError
from template.telemetry import MemorySink, Telemetry


class Flaky:
    """The chain's client, until it is told to fail or to hang."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.error: Exception | None = None
        self.hangs = False

    async def block(self) -> int:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        await asyncio.sleep(0)  # as over a network: others have their turn
        return int(await self._client.block())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@dataclass
class Watched:
    chain: Any
    client: Flaky
    watch: ChainWatch
    clock: ManualClock
    sink: MemorySink

    async def pass_seconds(self, seconds: float) -> None:
        """Moves the clock, and lets what it wakes read the file."""
        for _ in range(int(seconds)):
            await self.clock.advance(1)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def watched(chain: Any, **config: Any) -> AsyncIterator[Watched]:
    client, clock, sink = Flaky(chain.client), ManualClock(), MemorySink()
    watch = ChainWatch(
        client,  # type: ignore[arg-type]
        await read_metagraph(chain.client, 1),
        stake_floor=100.0,
        config=ChainWatchConfig(**config),
        telemetry=Telemetry([sink]),
        clock=clock,
    )
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    yield Watched(chain, client, watch, clock, sink)
    assert not running.done()
    running.cancel()
    await asyncio.wait({running})


async def test_the_head_is_followed_and_the_metagraph_now_and_then(chain: Any) -> None:
    """Each poll sees the block; the metagraph is read when it is so many blocks old."""
    async with watched(chain, refresh_blocks=3) as at:
        before = at.watch.metagraph
        chain.advance(2)
        await at.pass_seconds(1)
        assert at.watch.block == before.block + 2
        assert at.watch.metagraph is before
        chain.advance(1)
        await at.pass_seconds(1)
        assert at.watch.metagraph.block == before.block + 3


async def test_a_silent_chain_is_told_and_asked_more_and_more_rarely(chain: Any) -> None:
    """The last snapshot stays in use; when the chain is back, so is the pace."""
    async with watched(chain, longest_retry_seconds=8) as at:
        before = at.watch.metagraph
        at.client.error = ConnectionRefusedError("the node is away")
        await at.pass_seconds(30)
        pauses = [record["retry_seconds"] for record in at.sink.records]
        assert pauses[:4] == [2, 4, 8, 8]
        assert "the node is away" in at.sink.records[0]["reason"]
        assert at.watch.metagraph is before
        at.client.error = None
        chain.advance(10)
        await at.pass_seconds(9)
        assert at.watch.block == before.block + 10
        told = len(at.sink.records)
        at.client.error = ConnectionRefusedError("again")
        await at.pass_seconds(2)
        assert [record["retry_seconds"] for record in at.sink.records[told:]] == [2]


async def test_a_chain_that_never_answers_is_silent_too(chain: Any) -> None:
    """A hanging node must not stop the view for ever without a word."""
    async with watched(chain, answer_seconds=0.05) as at:
        at.client.hangs = True
        await at.clock.advance(1)
        await asyncio.sleep(0.15)
        assert len(at.sink.records) == 1
        at.client.hangs = False
        chain.advance(1)
        await at.pass_seconds(3)
        assert at.watch.block == await chain.client.block()


async def test_it_is_the_axon_s_directory(chain: Any, wallet: Any) -> None:
    """Uids by hotkey; a validator has a permit and the stake."""
    chain.advance(25)
    async with watched(chain) as at:
        assert at.watch.uid_of(wallet("m1").keys.hotkey) == 2
        assert at.watch.uid_of("5Nobody") is None
        assert [at.watch.is_validator(uid) for uid in range(4)] == [False, True, False, False]


async def test_a_second_look_sees_what_came_since(chain: Any, wallet: Any) -> None:
    """A permit given after the last read counts at once; in a second there is one read, whoever asks."""
    async with watched(chain, refresh_blocks=1000) as at:
        assert not at.watch.is_validator(1)
        assert not await at.watch.look_again()
        chain.advance(25)
        assert not await at.watch.look_again(), "looked a moment ago"
        await at.clock.advance(1)
        assert await asyncio.gather(*(at.watch.look_again() for _ in range(5))) == [True] * 5
        assert at.watch.is_validator(1)
        seen = at.watch.metagraph
        chain.advance(1)
        assert not await at.watch.look_again()
        assert at.watch.metagraph is seen


async def test_a_second_look_at_a_silent_chain_ends(chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for it is refused by the old view, in time; the silence is told."""
    monkeypatch.setattr("template.chain.watch.SECOND_LOOK_SECONDS", 0.05)
    async with watched(chain) as at:
        before = at.watch.metagraph
        at.client.hangs = True
        assert not await at.watch.look_again()
        at.client.hangs, at.client.error = False, ConnectionRefusedError("the node is away")
        await at.clock.advance(1)
        assert not await at.watch.look_again()
        assert at.watch.metagraph is before
        assert "looking at the chain again" in at.sink.records[0]["reason"]
        assert any("the node is away" in record["reason"] for record in at.sink.records)
        at.client.error = None


@pytest.mark.parametrize("field", ["refresh_blocks", "poll_seconds", "longest_retry_seconds", "answer_seconds"])
def test_no_pause_can_be_nothing(field: str) -> None:
    """A poll without a pause would take a whole core."""
    with pytest.raises(ConfigurationError, match=f"--chain.{field}"):
        ChainWatchConfig(**{field: 0})
