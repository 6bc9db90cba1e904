"""Miners without a validator: when they begin, that they end an epoch together, and when they must not."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distributed_training.miner.fallback import Fallback
from distributed_training.schedule import View
from distributed_training.silence import FRESH_SECONDS
from template.clock import ManualClock
from tests.roles import EPOCH, Subnet, subnet

MINERS = (1, 2, 3)


@dataclass
class Alone:
    """Three miners that have not heard of the validator (uid 0) for long enough, just before an agreed block."""

    net: Subnet
    clock: ManualClock
    fallbacks: dict[int, Fallback]

    def views(self, *uids: int) -> list[View]:
        return [view for view in self.net.views() if view.uid in uids]

    async def consider(self, *uids: int, seen: Iterable[int] = MINERS) -> None:
        """What these miners do at this block if they see those neurons."""
        graph, views = self.net.chain.metagraph, self.views(*seen)
        await asyncio.gather(*(self.fallbacks[uid].consider(graph, views) for uid in uids))

    def tries(self, uid: int) -> list[Any]:
        return self.net.neurons[uid].told("FallbackTried")

    def states(self) -> set[tuple[int, str]]:
        return {self.net.neurons[uid].state for uid in MINERS}


@asynccontextmanager
async def alone(folder: Path, **changes: Any) -> AsyncIterator[Alone]:
    async with subnet(folder, miners=3, **changes) as net:
        clock = ManualClock()
        net.chain.block = 10
        fallbacks = {uid: net.fallback(uid, clock) for uid in MINERS}
        for uid, fallback in fallbacks.items():
            net.neurons[uid].ended = Ended(fallback)
            net.neurons[uid].node._on_ended = net.neurons[uid].ended.append
            await net.train(uid)
        await clock.advance(FRESH_SECONDS)
        net.chain.block = 10 + EPOCH.fallback_blocks
        yield Alone(net, clock, fallbacks)


class Ended(list[Any]):
    """What ended, told to the fallback as the miner does."""

    def __init__(self, fallback: Fallback) -> None:
        super().__init__()
        self._fallback = fallback

    def append(self, done: Any) -> None:
        super().append(done)
        self._fallback.on_ended(done)


async def test_miners_end_an_epoch_by_themselves(tmp_path: Path) -> None:
    """One state at all, one step further; each tells why it tried, whom it found and how it ended."""
    async with alone(tmp_path) as at:
        assert all(fallback.alone for fallback in at.fallbacks.values())
        await at.consider(*MINERS)
        assert len(at.states()) == 1
        assert at.net.neurons[1].engine.epoch == 1
        (told,) = at.tries(1)
        assert (told["silent_blocks"], told["found"], told["completed"]) == (10, [1, 2, 3], True)
        assert at.net.neurons[0].engine.epoch == 0


async def test_the_next_epoch_follows_at_the_next_agreed_block(tmp_path: Path) -> None:
    """Not before it; those whose work is in the state are the ones that count then."""
    async with alone(tmp_path) as at:
        await at.consider(*MINERS)
        for uid in MINERS:
            await at.net.train(uid)
        at.net.chain.block += EPOCH.turn_blocks - 1
        await at.consider(*MINERS)
        assert [len(at.tries(uid)) for uid in MINERS] == [1, 1, 1]
        at.net.chain.block += 1
        await at.consider(*MINERS)
        assert {state[0] for state in at.states()} == {2}
        assert len(at.states()) == 1


async def test_a_heard_validator_ends_it(tmp_path: Path) -> None:
    """An answer, a question, or its view: no group is looked for."""
    async with alone(tmp_path) as at:
        await at.consider(*MINERS, seen=(0, 1, 2, 3))
        at.net.neurons[1].node.hear(2)  # a miner
        assert at.fallbacks[1].alone
        at.net.neurons[1].node.hear(0)
        assert not at.fallbacks[1].alone
        at.net.chain.block += EPOCH.turn_blocks
        await at.consider(1)
        assert at.tries(1) == []


async def test_a_validator_that_comes_back_during_the_search_leads(tmp_path: Path) -> None:
    """The group that was found does nothing."""
    async with alone(tmp_path) as at:
        trying = asyncio.create_task(at.consider(*MINERS))
        while not at.net.notices.by_key:  # noqa: ASYNC110 - the search tells nobody when it begins
            await asyncio.sleep(0)
        for uid in MINERS:
            at.net.neurons[uid].node.hear(0)
        await trying
        assert [at.tries(uid)[0]["ended"] for uid in MINERS] == ["a validator is back: it leads"] * 3
        assert at.states() == {at.net.neurons[0].state}


async def test_too_few_do_nothing(tmp_path: Path) -> None:
    """One of three that are seen, or two of whom one is gone: no round, and it is told."""
    async with alone(tmp_path) as at:
        at.fallbacks[1] = at.net.fallback(1, at.clock, search_seconds=2.0)
        at.net.chain.block += 2 * EPOCH.fallback_blocks
        await at.clock.advance(FRESH_SECONDS)
        await at.consider(1)
        (told,) = at.tries(1)
        assert told["needed"] == 3  # two thirds of four: whose work is in the state is not known
        assert told["ended"].startswith("no group of at least 3")
        at.net.chain.block += EPOCH.turn_blocks
        await at.consider(2, seen=(2,))
        assert at.tries(2)[0]["ended"] == "too few miners to end an epoch without a validator"
        assert at.states() == {at.net.neurons[0].state}


async def test_half_of_those_who_made_the_state_cannot_end_it(tmp_path: Path) -> None:
    """Cut off from the others, they see only themselves, and know of the others all the same."""
    async with alone(tmp_path) as at:
        await at.consider(*MINERS)
        await at.net.train(1)
        at.net.chain.block += EPOCH.turn_blocks
        await at.consider(1, seen=(1,))
        _, told = at.tries(1)
        assert (told["needed"], told["completed"]) == (3, False)  # 0.67 of three
        assert at.net.neurons[1].engine.epoch == 1


async def test_nobody_tries_before_there_is_enough_work(tmp_path: Path) -> None:
    """The same readiness as a leader's: the sample target, or the epoch's blocks."""
    much = dataclasses.replace(EPOCH, target_samples=10_000)
    async with alone(tmp_path, epoch=much) as at:
        await at.consider(*MINERS)
        assert at.tries(1) == []
        at.net.chain.block += EPOCH.max_blocks
        await at.consider(*MINERS)
        assert at.tries(1)[0]["completed"]


async def test_who_failed_a_round_is_left_out_of_the_next(tmp_path: Path) -> None:
    """It volunteers and does not come: named by all, and the others end the epoch without it."""
    short = dataclasses.replace(at_least_half(), connect_seconds=0.5)
    async with alone(tmp_path, averaging=short) as at:

        async def stays_away(request: object) -> Any:
            raise AssertionError("it never comes")

        at.net.neurons[3].node.take_part = stays_away  # type: ignore[method-assign,assignment]
        results = await asyncio.gather(
            *(at.fallbacks[u].consider(at.net.chain.metagraph, at.views(*MINERS)) for u in MINERS),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [type(None), type(None), AssertionError]
        assert [at.tries(uid)[0]["ended"] for uid in (1, 2)] == ["the round failed"] * 2
        at.net.chain.block += EPOCH.turn_blocks
        await at.consider(1, 2)
        assert [at.tries(uid)[1]["found"] for uid in (1, 2)] == [[1, 2]] * 2
        assert at.net.neurons[1].state == at.net.neurons[2].state
        assert at.net.neurons[1].engine.epoch == 1


def at_least_half() -> Any:
    from tests.roles import AVERAGING

    return dataclasses.replace(AVERAGING, quorum=0.51)


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    """Then miners wait for a validator, however long."""
    async with alone(tmp_path, epoch=dataclasses.replace(EPOCH, fallback_blocks=0)) as at:
        at.net.chain.block += 10_000
        assert not any(fallback.alone for fallback in at.fallbacks.values())


@pytest.mark.parametrize("uid", MINERS)
async def test_a_validator_in_the_group_is_no_miner(tmp_path: Path, uid: int) -> None:
    """Who has become one on the chain leads; its volunteering is refused."""
    async with alone(tmp_path) as at:
        graph = at.net.chain.metagraph
        permits = tuple(other in (0, uid) for other in range(len(graph.hotkeys)))
        stakes = tuple(100.0 if permit else 0.0 for permit in permits)
        at.net.chain.metagraph = dataclasses.replace(graph, validator_permit=permits, stake=stakes)
        await at.consider(*MINERS)
        assert all(not told for told in map(at.tries, MINERS))
