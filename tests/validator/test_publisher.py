"""Publishing: each state that was led to, with its own loss, however far the run has moved on, or a word on why not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from distributed_training.engine.audit import Auditor
from distributed_training.engine.engine import Engine
from distributed_training.hub.memory import MemoryHub
from distributed_training.hub.retention import Retention
from distributed_training.model.files import read_state
from distributed_training.validator.publisher import WAITING, Publication, Publisher
from template.clock import ManualClock
from tests.roles import Subnet, subnet


def publisher_of(net: Subnet, hub: MemoryHub, *, held_out: bool = True) -> Publisher:
    neuron, folder = net.neurons[0], net.folder / "validator"
    folder.mkdir()
    return Publisher(
        uid=0,
        run_id=net.spec.run_id,
        auditor=Auditor(net.spec, net.loader.tokenizer.vocab_size),
        worker=neuron.worker,
        config=neuron.engine.architecture,
        folder=folder,
        hub=hub,
        retention=Retention(keep_last=3, keep_every=4),
        held_out=net.loader.held_out() if held_out else [],
        telemetry=neuron.telemetry,
    )


def hub_of(net: Subnet) -> MemoryHub:
    return MemoryHub(telemetry=net.neurons[0].telemetry, clock=ManualClock())


async def next_state(net: Subnet) -> Publication:
    """The validator's state after one more epoch."""

    def end_epoch(engine: Engine) -> Publication:
        engine.apply(np.ones(engine.layout.size, np.float32))
        return Publication(engine.state, 12, (1, 2))

    return await net.neurons[0].worker.run(end_epoch)


async def test_a_state_is_published_with_its_loss(tmp_path: Path) -> None:
    """What is on the hub loads as that state; the loss is that of all held-out pages at once, up to rounding."""
    async with subnet(tmp_path) as net:
        hub, neuron = hub_of(net), net.neurons[0]
        publication = await next_state(net)
        await publisher_of(net, hub).publish(publication)
        (release,) = await hub.releases()
        assert (release.epoch, release.state_hash) == neuron.state
        assert (release.samples, release.participants) == (12, (1, 2))
        await hub.fetch(1, tmp_path / "fetched")
        fetched = read_state(
            tmp_path / "fetched", neuron.engine.layout, net.spec.run_id, neuron.engine.vectors, release.state_hash
        )
        np.testing.assert_array_equal(fetched.params, publication.state.params)
        whole = await neuron.worker.run(lambda engine: engine.held_out_loss(net.loader.held_out()))
        assert release.held_out_loss == pytest.approx(whole, rel=1e-5)
        assert list((tmp_path / "validator").iterdir()) == []


async def test_old_epochs_are_thinned_by_the_rule(tmp_path: Path) -> None:
    """After each publication; what goes is told, the last ones and every fourth stay."""
    async with subnet(tmp_path) as net:
        hub = hub_of(net)
        publisher = publisher_of(net, hub)
        for _ in range(7):
            await publisher.publish(await next_state(net))
        assert await hub.epochs() == (4, 5, 6, 7)
        assert [event["removed"] for event in net.neurons[0].told("EpochsThinned")] == [(1,), (2,), (3,)]


async def test_a_hub_that_cannot_be_thinned_is_told(tmp_path: Path) -> None:
    """One event with the reason, and nothing is lost."""
    async with subnet(tmp_path) as net:
        hub = hub_of(net)
        publisher = publisher_of(net, hub)
        await publisher.publish(await next_state(net))
        hub.reachable = False
        await publisher.thin(1)
        (told,) = net.neurons[0].told("NotThinned")
        assert "switched off" in told["reason"]


async def test_a_state_is_published_though_the_run_has_moved_on(tmp_path: Path) -> None:
    """With the loss at that state and not at the current one."""
    async with subnet(tmp_path) as net:
        hub, publisher = hub_of(net), None
        first, second = await next_state(net), await next_state(net)
        publisher = publisher_of(net, hub)
        await publisher.publish(first)
        await publisher.publish(second)
        losses = [release.held_out_loss for release in await hub.releases()]
        assert [release.state_hash for release in await hub.releases()] == [first.state.hash, second.state.hash]
        assert losses[0] != losses[1]
        assert [(e["epoch"], e["loss"]) for e in net.neurons[0].told("HeldOut")] == list(
            zip((1, 2), losses, strict=True)
        )


async def test_a_hub_that_fails_is_told_and_the_next_epoch_is_tried(tmp_path: Path) -> None:
    """Training goes on without the hub."""
    async with subnet(tmp_path) as net:
        hub = hub_of(net)
        publisher = publisher_of(net, hub)
        hub.reachable = False
        await publisher.publish(await next_state(net))
        assert [event["error"] for event in net.neurons[0].told("PublishFailed")] == ["HubUnavailable"]
        hub.reachable = True
        await publisher.publish(await next_state(net))
        assert [release.epoch for release in await hub.releases()] == [2]


async def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    """The validator goes on; the next epoch may find room again."""
    async with subnet(tmp_path) as net:
        hub = hub_of(net)
        publisher = publisher_of(net, hub)
        (tmp_path / "validator").rmdir()
        await publisher.publish(await next_state(net))
        assert await hub.releases() == ()
        assert "free some space" in net.neurons[0].told("NotPublished")[0]["reason"]


async def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    """Half a release of gigabytes must not stay for ever."""
    async with subnet(tmp_path) as net:
        publisher = publisher_of(net, hub_of(net))
        (tmp_path / "validator" / "release-abc").mkdir()
        (tmp_path / "validator" / "release-abc" / "model.safetensors").write_bytes(b"half")
        await publisher.publish(await next_state(net))
        assert list((tmp_path / "validator").iterdir()) == []


async def test_a_run_that_holds_nothing_out_has_no_loss(tmp_path: Path) -> None:
    """None, not an error at the start of a validator."""
    async with subnet(tmp_path) as net:
        publisher = publisher_of(net, hub_of(net), held_out=False)
        assert await publisher.measure(net.neurons[0].engine.state) is None
        assert net.neurons[0].told("HeldOut") == []


async def test_when_publishing_cannot_keep_up_the_oldest_is_dropped(tmp_path: Path) -> None:
    """The states that wait take memory: so many and no more, and what is dropped is told."""
    async with subnet(tmp_path) as net:
        publisher = publisher_of(net, hub_of(net))
        for _ in range(WAITING + 1):
            publisher.add(await next_state(net))
        assert [(e["epoch"], e["reason"]) for e in net.neurons[0].told("NotPublished")] == [
            (1, "publishing cannot keep up with the run")
        ]


async def test_a_round_need_not_wait_for_the_whole_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request to the worker is answered between two batches."""
    async with subnet(tmp_path) as net:
        order: list[str] = []
        publisher = publisher_of(net, hub_of(net))
        monkeypatch.setattr(Auditor, "held_out_loss", lambda *_: order.append("batch") or 1.0)
        measuring = asyncio.create_task(publisher.measure(net.neurons[0].engine.state))
        await asyncio.sleep(0)
        await net.neurons[0].worker.run(lambda _: order.append("round"))
        await measuring
        assert order.index("round") < len(order) - 1
        assert order.count("batch") == net.spec.data.held_out_pages
