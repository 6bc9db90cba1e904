"""Publishing: the state that was led to, with its own loss, or a word on why not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from distributed_training.engine.engine import Engine
from distributed_training.hub.memory import MemoryHub
from distributed_training.validator.publisher import Publisher
from template.clock import ManualClock
from tests.roles import Subnet, subnet


def publisher_of(net: Subnet, hub: MemoryHub, *, held_out: bool = True) -> Publisher:
    neuron = net.neurons[0]
    return Publisher(
        uid=0,
        run_id=net.spec.run_id,
        engine=neuron.engine,
        worker=neuron.worker,
        keeper=neuron.keeper,
        hub=hub,
        held_out=net.loader.held_out() if held_out else [],
        telemetry=neuron.telemetry,
    )


def hub_of(net: Subnet) -> MemoryHub:
    return MemoryHub(telemetry=net.neurons[0].telemetry, clock=ManualClock())


def end_epoch(engine: Engine) -> None:
    engine.apply(np.ones(engine.layout.size, np.float32))


async def test_the_new_state_is_published_with_its_loss(tmp_path: Path) -> None:
    """Kept first if it is not on disk yet; the loss is that of all held-out pages at once, up to rounding."""
    async with subnet(tmp_path) as net:
        hub, neuron = hub_of(net), net.neurons[0]
        await neuron.worker.run(end_epoch)
        await publisher_of(net, hub).publish(1, 12, (1, 2))
        (release,) = await hub.releases()
        assert (release.epoch, release.state_hash) == neuron.state
        assert (release.samples, release.participants) == (12, (1, 2))
        whole = await neuron.worker.run(lambda engine: engine.held_out_loss(net.loader.held_out()))
        assert release.held_out_loss == pytest.approx(whole, rel=1e-5)
        assert [(e["epoch"], e["loss"]) for e in neuron.told("HeldOut")] == [(1, release.held_out_loss)]


async def test_a_state_that_was_left_is_not_published(tmp_path: Path) -> None:
    """The next leader publishes the next one; it is said that this one is missing."""
    async with subnet(tmp_path) as net:
        hub = hub_of(net)
        for _ in range(2):
            await net.neurons[0].worker.run(end_epoch)
        await publisher_of(net, hub).publish(1, 12, (1,))
        assert await hub.releases() == ()
        assert "moved on to epoch 2" in net.neurons[0].told("NotPublished")[0]["reason"]


async def test_the_loss_of_another_state_is_never_published(tmp_path: Path) -> None:
    """The epoch ends in the middle of measuring: the state is published without a loss."""
    async with subnet(tmp_path) as net:
        hub, neuron = hub_of(net), net.neurons[0]
        await neuron.worker.run(end_epoch)
        await neuron.keeper.save()
        left = neuron.engine.state_hash
        publisher = publisher_of(net, hub)
        measured = 0

        def slow(engine: Engine, batches: object) -> float:
            nonlocal measured
            measured += 1
            if measured == 1:
                end_epoch(engine)  # as a round does between two batches
            return 1.0

        neuron.engine.held_out_loss = lambda batches: slow(neuron.engine, batches)  # type: ignore[method-assign]
        await publisher.publish(1, 12, (1,))
        (release,) = await hub.releases()
        assert (release.epoch, release.state_hash, release.held_out_loss) == (1, left, None)
        assert neuron.told("HeldOut") == []


async def test_a_hub_that_fails_is_told_and_the_next_epoch_is_tried(tmp_path: Path) -> None:
    """Training goes on without the hub."""
    async with subnet(tmp_path) as net:
        hub, neuron = hub_of(net), net.neurons[0]
        publisher = publisher_of(net, hub)
        hub.reachable = False
        await neuron.worker.run(end_epoch)
        await publisher.publish(1, 12, (1,))
        assert [event["error"] for event in neuron.told("PublishFailed")] == ["HubUnavailable"]
        hub.reachable = True
        await neuron.worker.run(end_epoch)
        await publisher.publish(2, 12, (1,))
        assert [release.epoch for release in await hub.releases()] == [2]


async def test_a_state_that_is_not_on_disk_is_not_published(tmp_path: Path) -> None:
    """A full disk is told by the keeper, and that nothing was published by the publisher."""
    async with subnet(tmp_path) as net:
        hub, neuron = hub_of(net), net.neurons[0]
        (tmp_path / "checkpoint0").write_text("in the way")
        await neuron.worker.run(end_epoch)
        await publisher_of(net, hub).publish(1, 12, (1,))
        assert await hub.releases() == ()
        assert neuron.told("NotPublished")[0]["reason"] == "it is not on disk"


async def test_a_run_that_holds_nothing_out_has_no_loss(tmp_path: Path) -> None:
    """None, not an error at the start of a validator."""
    async with subnet(tmp_path) as net:
        assert await publisher_of(net, hub_of(net), held_out=False).measure() is None
        assert net.neurons[0].told("HeldOut") == []


async def test_a_round_need_not_wait_for_the_whole_measurement(tmp_path: Path) -> None:
    """Another request to the worker is answered between two batches."""
    async with subnet(tmp_path) as net:
        neuron, order = net.neurons[0], []
        real = neuron.engine.held_out_loss

        def noted(batches: object) -> float:
            order.append("batch")
            return real(batches)  # type: ignore[arg-type]

        neuron.engine.held_out_loss = noted  # type: ignore[method-assign]
        measuring = asyncio.create_task(publisher_of(net, hub_of(net)).measure())
        await asyncio.sleep(0)
        await neuron.worker.run(lambda _: order.append("round"))
        await measuring
        assert order.index("round") < len(order) - 1
        assert order.count("batch") == net.spec.data.held_out_pages
