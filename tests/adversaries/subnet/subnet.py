"""One simulated run: who takes part, and what came of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np

from distributed_training.averaging import memory as streams
from distributed_training.engine.audit import Auditor
from distributed_training.events import Audited, AuditNotPossible, Excluded, RoundLed
from distributed_training.protocol import AllReduce, IsAlive, Train
from distributed_training.run import DataSpec, RunSpec, load_run
from distributed_training.scoring.explain import EpochScored
from distributed_training.validator import paymaster
from distributed_training.validator.validator import Validator
from template.chain.weights import WeightsOutcome
from template.telemetry import Event
from tests.adversaries.behaviour import HONEST, Behaviour
from tests.adversaries.subnet import virtual
from tests.adversaries.subnet.chain import OWNER, STAKE, Chain, Paid
from tests.adversaries.subnet.corpus import PAGE, loader_of
from tests.adversaries.subnet.hall import Hall
from tests.adversaries.subnet.model import small_models
from tests.adversaries.subnet.neurons import Gauge, Shelf, World, key_of, miner_of, open_parts, validator_of
from tests.adversaries.subnet.wire import Wire

E = TypeVar("E", bound=Event)

NANO = Path(__file__).parents[3] / "runs" / "nano.toml"
MICRO_BATCHES = 16  # at most, a miner and epoch
USUAL = 4  # of an honest miner of speed 1
SAMPLES = 4  # of a micro-batch: one page
BATCH_SECONDS = 1.0
RATE = 2e6  # bytes a second and stream: twice the run's reference
HELD = 12  # epochs, as a long run has it; nano is a short one
POLL_SECONDS = 2.0
EPOCH_SECONDS = 60.0  # of patience, for each epoch
KINDS: frozenset[type[Event]] = frozenset({Audited, AuditNotPossible, EpochScored, Excluded, RoundLed})


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A run of `epochs` epochs. Uid 0 is the owner, then come the validators, then the miners.

    `behaviours`, `speeds` (1: USUAL micro-batches an epoch) and `rates` by uid; who is not in them is as usual.
    `fine`: so many times as many micro-batches, each of them so much faster.
    `validating`: a validator's own loop by uid, for one that does not do what it should; `changes` to the run spec.
    """

    miners: int
    validators: int = 2
    epochs: int = 100
    seed: int = 0
    behaviours: Mapping[int, Behaviour] = field(default_factory=dict)
    speeds: Mapping[int, float] = field(default_factory=dict)
    rates: Mapping[int, float] = field(default_factory=dict)
    stakes: Mapping[int, float] = field(default_factory=dict)
    validating: Mapping[int, Callable[[World, Validator, int], Any]] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fine: int = 1
    measure_every: int = 10
    kinds: frozenset[type[Event]] = KINDS

    @property
    def first_miner(self) -> int:
        return OWNER + 1 + self.validators

    @property
    def miner_uids(self) -> range:
        return range(self.first_miner, self.first_miner + self.miners)

    @property
    def validator_uids(self) -> range:
        return range(OWNER + 1, self.first_miner)


@dataclass(frozen=True, kw_only=True)
class Story:
    """What came of a run: epochs reached, held-out loss by epoch, what the chain paid, and by uid the events.

    `weights` are the last rows [validator, miner] in the chain's units; `samples` by uid those that went into averages.
    """

    epochs: int
    seconds: float
    losses: Mapping[int, float]
    paid: tuple[Paid, ...]
    weights: np.ndarray[Any, np.dtype[np.float64]]
    samples: Mapping[int, int]
    events: Mapping[int, list[tuple[float, Event]]]

    def pay(self, uid: int) -> float:
        """All incentive that the uid earned, in epochs of the chain."""
        return sum(paid.incentive[uid] for paid in self.paid)

    def dividends(self, uid: int) -> float:
        """All dividends that the uid earned, in epochs of the chain."""
        return sum(paid.dividends[uid] for paid in self.paid)

    def told(self, uid: int, kind: type[E]) -> list[E]:
        """The events of a kind that a neuron told, oldest first."""
        return [event for _, event in self.events[uid] if isinstance(event, kind)]

    @property
    def final_loss(self) -> float:
        """The mean of the last three that were measured: one epoch's sample of batches moves a single one."""
        last = sorted(self.losses)[-3:]
        return sum(self.losses[epoch] for epoch in last) / len(last)


def spec_of(scenario: Scenario) -> RunSpec:
    """The nano run with the small model's data and as many uids as there are; pay and audits are nano's."""
    nano = load_run(NANO)
    uids = scenario.first_miner + scenario.miners
    sections: dict[str, dict[str, Any]] = {
        "optimizer": {"learning_rate": 0.02, "minimum_learning_rate": 0.002},
        "epoch": {
            "target_samples": scenario.miners * USUAL * SAMPLES * scenario.fine,
            "max_blocks": 12,
            "fallback_blocks": 0,
        },
        "averaging": {"reduction": "clip", "max_weight": MICRO_BATCHES * SAMPLES * scenario.fine},
        "audit": {"coordinates": 32},
        "scoring": {"held_epochs": HELD},
    }
    for section, changes in scenario.changes.items():
        sections[section] = {**sections.get(section, {}), **changes}
    data = DataSpec(
        source="stdlib",
        tokenizer="bytes",
        sequence_length=PAGE // SAMPLES,
        page_size=PAGE,
        pages_per_micro_batch=1,
        pages_per_epoch=MICRO_BATCHES * scenario.fine,
        max_uids=uids,
        held_out_pages=64,
    )
    data = dataclasses.replace(data, **sections.pop("data", {}))
    parts = {name: dataclasses.replace(getattr(nano, name), **changes) for name, changes in sections.items()}
    return dataclasses.replace(nano, name="simulated", seed=scenario.seed, data=data, **parts)


def simulate(scenario: Scenario) -> Story:
    """Run it; the same scenario gives the same story."""
    with small_models(), mock.patch.object(paymaster, "set_weights", _set_weights):
        return virtual.run(_simulate(scenario))


async def _set_weights(
    client: Chain, wallet: int, netuid: int, weights: Mapping[int, float], *, mechid: int = 0, version_key: int
) -> WeightsOutcome:
    """In the place of `template.chain.weights.set_weights`."""
    return client.set_weights(wallet, weights)


async def _simulate(scenario: Scenario) -> Story:
    spec = spec_of(scenario)
    uids = scenario.first_miner + scenario.miners
    loader = loader_of(spec, pages=max(8192, 4 * uids * MICRO_BATCHES * scenario.fine))
    hotkeys = [key_of(uid).ss58_address for uid in range(uids)]
    chain = Chain(
        hotkeys, scenario.validator_uids, {uid: STAKE for uid in scenario.validator_uids} | dict(scenario.stakes)
    )
    gauge = Gauge(Auditor(spec, loader.tokenizer.vocab_size), loader.held_out(), scenario.measure_every)
    world = World(spec, loader, chain, Wire(), Hall(), streams.MemoryNetwork(), Shelf(), gauge)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(chain.run())]
        neurons = {}
        for uid in (*scenario.validator_uids, *scenario.miner_uids):
            parts, work = await _open(stack, world, scenario, uid)
            neurons[uid] = parts
            running.append(tasks.create_task(work))
        world.shelf.add(neurons[scenario.first_miner].engine.state)
        await _reached(world, neurons[scenario.validator_uids[0]], scenario.epochs)
        for task in running:
            task.cancel()
        return Story(
            epochs=neurons[scenario.validator_uids[0]].engine.epoch,
            seconds=asyncio.get_running_loop().time(),
            losses=gauge.losses,
            paid=tuple(chain.paid),
            weights=chain.weights.copy(),
            samples=dict(world.hall.samples),
            events={uid: parts.telemetry.events for uid, parts in neurons.items()},
        )


async def _open(stack: AsyncExitStack, world: World, scenario: Scenario, uid: int) -> tuple[Any, Any]:
    behaviour = scenario.behaviours.get(uid, HONEST)
    jitter = np.random.default_rng((scenario.seed, uid)).uniform(0.95, 1.05)
    contributes = uid not in scenario.validator_uids
    parts = await stack.enter_async_context(
        open_parts(
            world,
            uid,
            behaviour,
            contributes=contributes,
            rate=scenario.rates.get(uid, RATE),
            seconds=BATCH_SECONDS * jitter / scenario.speeds.get(uid, 1.0) / scenario.fine,
            seed=1000 * scenario.seed + uid,
            kinds=frozenset() if contributes else scenario.kinds,
        )
    )
    if not contributes:
        validator = validator_of(world, parts, seed=1000 * scenario.seed + uid, until_epoch=scenario.epochs)
        own = scenario.validating.get(uid)
        return parts, validator.run() if own is None else own(world, validator, uid)
    miner = miner_of(world, parts)
    parts.axon.replace(Train, lambda honest: behaviour.train_handler(uid, honest, world))
    parts.axon.replace(IsAlive, lambda honest: behaviour.alive_handler(uid, honest, world))
    parts.axon.replace(AllReduce, lambda honest: behaviour.round_handler(uid, honest, world))
    return parts, miner.run()


async def _reached(world: World, first: Any, epochs: int) -> None:
    """Wait for the epoch; then for its audits, its weights and the chain's pay."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + epochs * EPOCH_SECONDS
    while first.engine.epoch < epochs and loop.time() < limit:  # noqa: ASYNC110  # the validator tells nobody
        await asyncio.sleep(POLL_SECONDS)
    await asyncio.sleep(2 * world.spec.scoring.weights_interval)
