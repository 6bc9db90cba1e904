"""Back in step: which state is right, where it is fetched from, and that no round is disturbed by it."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from distributed_training.catch_up import CatchUp, CatchUpConfig
from distributed_training.hub.hub import ModelTag
from distributed_training.hub.memory import MemoryHub
from distributed_training.schedule import View
from template.clock import ManualClock
from template.telemetry import Telemetry
from tests.roles import Neuron, Subnet, serving, subnet

STAKES = (100.0, 100.0, 100.0, 1000.0)  # the last one is the miner


@dataclass
class Scene:
    """Three validators, of which the first two are at epoch 1, and a miner (uid 3) that is not."""

    net: Subnet
    catch_up: CatchUp
    hub: MemoryHub
    clock: ManualClock

    @property
    def miner(self) -> Neuron:
        return self.net.neurons[3]

    @property
    def right(self) -> tuple[int, str]:
        return self.net.neurons[0].state

    def views(self, *uids: int) -> list[View]:
        return [view for view in self.net.views() if view.uid in uids]

    def strangers(self) -> list[View]:
        """The two that are right, under peer ids that nobody has vouched for."""
        peer = self.views(0)[0].peer.model_copy(update={"peer_id": "stranger"})
        return [dataclasses.replace(view, peer=peer) for view in self.views(0, 1)]

    async def check(self, *uids: int) -> bool:
        return await self.catch_up.check(self.views(*uids), STAKES, 3)

    def sources(self) -> list[str]:
        return [event["source"] for event in self.miner.told("CaughtUp")]

    def failed(self) -> list[str]:
        return [event["source"] for event in self.miner.told("CatchUpFailed")]


@asynccontextmanager
async def scene(folder: Path, **config: float) -> AsyncIterator[Scene]:
    async with subnet(folder, miners=1, validators=3) as net:
        clock = ManualClock()
        for uid in (0, 1):
            await step(net.neurons[uid], 1.0)
        hub = MemoryHub(telemetry=Telemetry(), clock=clock)
        catch_up = net.catch_up(3, hub, clock, CatchUpConfig(**config))  # type: ignore[arg-type]
        catch_up.settled = True  # what a start is like has tests of its own
        async with serving(net.neurons[0]), serving(net.neurons[1]), serving(net.neurons[2]):
            yield Scene(net, catch_up, hub, clock)


async def step(neuron: Neuron, by: float) -> None:
    """End an epoch with an average of that value, and offer the state."""
    await neuron.worker.apply(np.full(neuron.engine.layout.size, by, np.float32))
    await neuron.keeper.save()


async def test_who_is_behind_fetches_at_once_from_a_peer(tmp_path: Path) -> None:
    """The state is verified, kept, and told with its source; nothing is left in the folder."""
    async with scene(tmp_path) as at:
        assert await at.check(0, 1, 2)
        assert at.miner.state == at.right
        assert at.sources() == ["peers"]
        told = at.miner.told("CaughtUp")[0]
        assert set(told["parts"]) <= {"peer:0", "peer:1"}
        assert sum(told["parts"].values()) == told["bytes"] == 3 * 4 * at.miner.engine.layout.size
        assert at.miner.keeper.offer(1) is not None
        assert list((tmp_path / "neuron3").iterdir()) == []


async def test_miners_and_stakeless_views_have_no_say(tmp_path: Path) -> None:
    """The validators' stake decides; where three of them stand apart, nobody is right."""
    async with scene(tmp_path) as at:
        views = [dataclasses.replace(view, is_validator=False) for view in at.views(0, 1)] + at.views(2)
        assert await at.catch_up.check(views, STAKES, 3)
        await step(at.net.neurons[1], 1.0)
        assert await at.check(0, 1, 2)
        assert at.miner.engine.epoch == 0
        assert at.miner.told("OutOfStep") == []


async def test_a_source_with_another_state_gives_way_to_the_next(tmp_path: Path) -> None:
    """One of two holders serves something else than it says; both are tried, the right one is taken."""
    async with scene(tmp_path) as at:
        liar, honest = at.views(0, 1)
        await step(at.net.neurons[2], -1.0)  # epoch 1, another state
        liar = dataclasses.replace(liar, uid=2, peer=at.views(2)[0].peer)
        assert await at.catch_up.check([liar, honest], STAKES, 3)
        assert at.miner.state == at.right
        assert list(at.miner.told("CaughtUp")[0]["parts"]) == ["peer:1"]
        assert at.failed() == ["peer:2"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
async def test_corrupt_files_are_not_taken(tmp_path: Path, name: str) -> None:
    """A bit that tipped over at the source, under whatever digest; then the hub, which has the right one."""
    async with scene(tmp_path) as at:
        keeper = at.net.neurons[0].keeper
        folder = keeper.folder(1)
        assert folder is not None
        await publish(at, folder)
        content = bytearray((folder / name).read_bytes())
        content[-9] ^= 1
        (folder / name).write_bytes(content)
        views = [view for view in at.views(0, 1) if view.uid == 0] + [
            dataclasses.replace(view, peer=at.views(0)[0].peer) for view in at.views(1)
        ]
        assert await at.catch_up.check(views, STAKES, 3)
        assert (sorted(at.failed()), at.sources()) == (["peer:0", "peer:1", "peers"], ["hub"])
        assert at.miner.state == at.right


async def publish(at: Scene, folder: Path, **changes: str) -> None:
    epoch, state_hash = at.right
    tag = ModelTag(
        run_id=at.net.spec.run_id,
        epoch=epoch,
        state_hash=state_hash,
        samples=1,
        participants=(3,),
        held_out_loss=None,
    )
    await at.hub.publish(folder, dataclasses.replace(tag, **changes))  # type: ignore[arg-type]


async def test_the_hub_is_the_last_source(tmp_path: Path) -> None:
    """When no peer can be reached."""
    async with scene(tmp_path) as at:
        folder = at.net.neurons[0].keeper.folder(1)
        assert folder is not None
        await publish(at, folder)
        for uid in (0, 1):
            at.net.streams.kill(f"peer{uid}")
        assert await at.check(0, 1, 2)
        assert (sorted(at.failed()), at.sources()) == (["peer:0", "peer:1", "peers"], ["hub"])


def damage(folder: Path, kind: str) -> None:
    """What a hub may have under the right tag instead of the right state."""
    model, optimizer = folder / "model.safetensors", folder / "optimizer.safetensors"
    if kind == "wrong bytes":
        content = bytearray(model.read_bytes())
        content[-9] ^= 1
        model.write_bytes(content)
    elif kind == "truncated":
        optimizer.write_bytes(optimizer.read_bytes()[:-4096])
    elif kind == "no optimiser state":
        optimizer.unlink()
    elif kind == "endless header":
        model.write_bytes(struct.pack("<Q", 2**40) + model.read_bytes()[8:])
    elif kind == "no manifest":
        (folder / "state.json").unlink()


HUB_DAMAGE = ["wrong bytes", "truncated", "no optimiser state", "endless header", "no manifest"]


@pytest.mark.parametrize("kind", HUB_DAMAGE)
async def test_what_a_hostile_hub_has_is_refused(tmp_path: Path, kind: str) -> None:
    """The old state stays in use and nothing is left; the next attempt takes the right one from a peer."""
    async with scene(tmp_path, retry_seconds=10) as at:
        folder = at.net.neurons[0].keeper.folder(1)
        assert folder is not None
        damage(shutil.copytree(folder, tmp_path / "bad"), kind)
        await publish(at, tmp_path / "bad")
        before = at.miner.state
        assert not await at.catch_up.check(at.strangers(), STAKES, 3)
        assert (at.miner.state, at.failed()) == (before, ["hub"])
        assert list((tmp_path / "neuron3").iterdir()) == []
        await at.clock.advance(11)
        assert await at.check(0, 1, 2)
        assert (at.miner.state, at.sources()) == (at.right, ["peers"])


@pytest.mark.parametrize("kind", ["stale", "other run", "far too large"])
async def test_a_release_is_refused_before_it_is_downloaded(tmp_path: Path, kind: str) -> None:
    """By what its release.json says."""
    async with scene(tmp_path) as at:
        folder = at.net.neurons[0].keeper.folder(1)
        assert folder is not None
        shutil.copytree(folder, tmp_path / "bad")
        if kind == "far too large":
            with (tmp_path / "bad" / "tokenizer.json").open("wb") as file:
                file.truncate(1 << 27)
        changes = {"stale": {"state_hash": "0" * 64}, "other run": {"run_id": "other-0123456789ab"}}.get(kind, {})
        await publish(at, tmp_path / "bad", **changes)
        assert not await at.catch_up.check(at.strangers(), STAKES, 3)
        reason = at.miner.told("CatchUpFailed")[-1]["reason"]
        assert {"stale": "the hub has state 0000", "other run": "of other-", "far too large": "takes at most"}[
            kind
        ] in reason


async def test_the_checkpoint_is_the_first_source(tmp_path: Path) -> None:
    """Who went on to a state of its own finds the right one, of the epoch before, on its own disk."""
    async with scene(tmp_path, patience=10) as at:
        await step(at.miner, 1.0)
        assert at.miner.state == at.right
        await step(at.miner, 5.0)
        for uid in (0, 1):
            at.net.streams.kill(f"peer{uid}")
        assert not await at.check(0, 1, 2)
        await at.clock.advance(10)
        assert await at.check(0, 1, 2)
        assert (at.miner.state, at.sources(), at.failed()) == (at.right, ["checkpoint"], [])


async def test_after_a_failure_all_sources_are_left_alone_for_a_while(tmp_path: Path) -> None:
    """Not once a second; a new majority is tried at once."""
    async with scene(tmp_path, retry_seconds=10) as at:
        at.net.neurons[0].keeper._offers.clear()
        at.net.neurons[1].keeper._offers.clear()
        assert not await at.check(0, 1, 2)
        assert sorted(at.failed()) == ["hub", "peer:0", "peer:1", "peers"]
        assert not await at.check(0, 1, 2)
        assert len(at.failed()) == 4
        await at.clock.advance(11)
        assert not await at.check(0, 1, 2)
        assert len(at.failed()) == 8
        for uid in (0, 1):
            await step(at.net.neurons[uid], 1.0)
        assert await at.check(0, 1, 2)
        assert at.miner.engine.epoch == 2


async def test_another_hash_of_the_same_epoch_is_given_up_only_after_patience(tmp_path: Path) -> None:
    """The others may only not have committed yet; ours is dropped if they stay where they are."""
    async with scene(tmp_path, patience=10) as at:
        await step(at.miner, -1.0)
        wrong = at.miner.state
        assert not await at.check(0, 1, 2)
        await at.clock.advance(9)
        assert not await at.check(0, 1, 2)
        assert at.miner.state == wrong
        await at.clock.advance(1)
        assert await at.check(0, 1, 2)
        assert at.miner.state == at.right


async def test_who_is_ahead_waits_for_the_others(tmp_path: Path) -> None:
    """It may have committed first; patience begins anew when the others move."""
    async with scene(tmp_path, patience=10) as at:
        await step(at.miner, 1.0)
        await step(at.miner, 1.0)
        assert not await at.check(0, 1, 2)
        await at.clock.advance(9)
        for uid in (0, 1):
            await step(at.net.neurons[uid], 1.0)
        assert await at.check(0, 1, 2)
        assert at.miner.told("OutOfStep") == []


async def test_no_state_is_adopted_in_a_round(tmp_path: Path) -> None:
    """A round that ends during the transfer keeps what it decided: the average belongs to the state it began at."""
    async with scene(tmp_path) as at:
        await at.miner.turn.acquire()  # as a round does
        task = asyncio.create_task(at.check(0, 1, 2))
        await asyncio.sleep(0.3)
        assert at.miner.engine.epoch == 0
        await step(at.miner, -3.0)  # the round commits
        at.miner.turn.release()
        assert not await task
        assert at.miner.engine.epoch == 1
        assert at.miner.state != at.right
        assert "a round has ended meanwhile" in at.miner.told("CatchUpFailed")[0]["reason"]


async def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    """Half a state of gigabytes must not stay for ever."""
    async with scene(tmp_path) as at:
        (tmp_path / "neuron3" / "incoming-abc").mkdir()
        (tmp_path / "neuron3" / "incoming-abc" / "model.safetensors").write_bytes(b"half")
        assert await at.check(0, 1, 2)
        assert list((tmp_path / "neuron3").iterdir()) == []


async def test_who_starts_waits_to_hear_from_all_validators(tmp_path: Path) -> None:
    """Some have not answered yet: no state is taken for right before patience ends; then that of most is."""
    async with scene(tmp_path, patience=10) as at:
        at.catch_up.settled = False
        unsettled = [dataclasses.replace(view, settled=False) for view in at.views(0, 1)]
        assert not await at.catch_up.check(unsettled, STAKES, 3)
        assert at.miner.engine.epoch == 0
        await at.clock.advance(10)
        assert await at.catch_up.check(unsettled, STAKES, 3)
        assert at.miner.state == at.right
        assert not at.catch_up.settled
        assert await at.catch_up.check(unsettled, STAKES, 3)
        assert at.catch_up.settled


@asynccontextmanager
async def gone_on(folder: Path, uid: int) -> AsyncIterator[tuple[Subnet, CatchUp, ManualClock]]:
    """Two validators (uids 0, 1), and three miners that ended an epoch without them; how `uid` gets in step."""
    async with subnet(folder, miners=3, validators=2) as net:
        for miner in (2, 3, 4):
            if miner != uid:
                await step(net.neurons[miner], 1.0)
        clock = ManualClock()
        catch_up = net.catch_up(uid, MemoryHub(telemetry=Telemetry(), clock=clock), clock)
        async with serving(net.neurons[2]), serving(net.neurons[3]):
            yield net, catch_up, clock


def views_of(net: Subnet, *uids: int, settled: bool = False) -> list[View]:
    """What these neurons say; `settled` is what validators say of that."""
    return [dataclasses.replace(v, settled=settled) for v in net.views() if v.uid in uids]


async def test_validators_that_were_all_away_follow_the_miners(tmp_path: Path) -> None:
    """After some patience, in which one that was there all the time could have answered."""
    async with gone_on(tmp_path, uid=0) as (net, catch_up, clock):
        assert not await catch_up.check(views_of(net, 0, 1, 2, 3, 4), STAKES, 2)
        await clock.advance(10)
        assert await catch_up.check(views_of(net, 0, 1, 2, 3, 4), STAKES, 2)
        assert net.neurons[0].state == net.neurons[2].state
        await catch_up.check(views_of(net, 0, 1, 2, 3, 4), STAKES, 2)
        assert catch_up.settled


async def test_miners_alone_cannot_overrule_validators_that_stand_together(tmp_path: Path) -> None:
    """Nor even a single one that was there all the time."""
    async with gone_on(tmp_path, uid=0) as (net, catch_up, clock):
        await clock.advance(100)
        views = views_of(net, 0, 2, 3, 4) + views_of(net, 1, settled=True)
        assert await catch_up.check(views, STAKES, 2)
        assert (net.neurons[0].engine.epoch, catch_up.settled) == (0, True)


async def test_a_validator_that_heard_no_miner_for_long_asks_anew(tmp_path: Path) -> None:
    """Its patience begins anew, too."""
    async with gone_on(tmp_path, uid=0) as (net, catch_up, clock):
        catch_up.settled = True
        await clock.advance(100)
        catch_up.unsettle()
        assert not catch_up.settled
        assert not await catch_up.check(views_of(net, 0, 1, 2, 3, 4), STAKES, 2)
        await clock.advance(10)
        assert await catch_up.check(views_of(net, 0, 1, 2, 3, 4), STAKES, 2)
        assert net.neurons[0].engine.epoch == 1


async def test_a_miner_follows_the_other_miners_where_no_validator_answers(tmp_path: Path) -> None:
    """More than half of them; a single one is not followed, and any validator's word is worth more."""
    async with gone_on(tmp_path, uid=4) as (net, catch_up, _):
        catch_up.settled = True
        assert await catch_up.check(views_of(net, 2, 4), STAKES, 2)
        assert await catch_up.check(views_of(net, 0, 2, 3, 4), STAKES, 2)
        assert net.neurons[4].engine.epoch == 0
        assert await catch_up.check(views_of(net, 2, 3, 4), STAKES, 2)
        assert net.neurons[4].state == net.neurons[2].state


async def test_a_miner_that_starts_ahead_of_the_validators_gives_them_time_to_follow(tmp_path: Path) -> None:
    """All were stopped and started again: what the miners did meanwhile is not thrown away at once."""
    async with gone_on(tmp_path, uid=0) as (net, _, clock):
        catch_up = net.catch_up(3, MemoryHub(telemetry=Telemetry(), clock=clock), clock)
        await clock.advance(15)
        assert not await catch_up.check(views_of(net, 0, 1), STAKES, 2)
        for uid in (0, 1):
            await step(net.neurons[uid], 1.0)
        assert await catch_up.check(views_of(net, 0, 1), STAKES, 2)
        assert net.neurons[3].told("OutOfStep") == []
