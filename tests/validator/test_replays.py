"""Real rounds of miners that make steps of their own: honest ones pass every question, each cheat fails one."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_training.averaging.wire_exhibits import WireExhibits
from distributed_training.composition import EngineFactory
from distributed_training.data.loader import Loader
from distributed_training.engine.audit import Auditor
from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.engine.inner_steps import InnerSteps
from distributed_training.engine.records import Work, mark_of
from distributed_training.model.layout import Vector
from distributed_training.model.state import State
from distributed_training.protocol import Record
from distributed_training.run import ImprovementSpec, ReplaySpec, RunSpec
from distributed_training.scoring.combine import Evidence
from distributed_training.scoring.gradient import Finding
from distributed_training.validator import replays
from distributed_training.validator.audits import AuditDesk, EpochSeen
from distributed_training.validator.replays import ReplayDesk
from distributed_training.validator.shown_states import PeerStates
from template.clock import SystemClock
from tests.engine import tiny
from tests.roles import AUDIT, AVERAGING, Subnet, run_spec, serving, subnet
from tests.validator.test_contributions import averaged

LARGER = dataclasses.replace(tiny.GPT2, config={**tiny.GPT2.config, "n_embd": 64})  # enough coordinates to decide
REPLAY = ReplaySpec(stretch=4, share=1.0, tolerance=1e-3)
AUDITED = dataclasses.replace(AUDIT, replay=REPLAY, improvement=ImprovementSpec(batches=8, confidence=0.999))
STEPS = 9  # three stretches, the last of one step


class Cheat(Engine):
    """Knows what a miner knows."""

    def __init__(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> None:
        self.loader = loader
        self.uid = uid
        super().__init__(spec, loader.tokenizer.vocab_size, device)

    @property
    def steps(self) -> InnerSteps:
        assert isinstance(self._local, InnerSteps)
        return self._local

    def shown(self) -> np.ndarray:
        return coordinates(self._spec.run_id, self.epoch, self.layout, self._spec.audit.coordinates)

    def restand(self, params: Vector) -> None:
        """Stand somewhere else from now on, without steps."""
        state = self.steps._local()
        self.steps._state = state.having(state.params.new_tensor(params))
        self.steps.enter(self._replica)


class OtherData(Cheat):
    """Trains its neighbour's pages, and says that they are its own: a copy of another's work."""

    def train(self, batch: MicroBatch) -> Record:
        super().train(self.loader.micro_batch(self.epoch, self.uid + 1, batch.number))
        record = self.work.records[-1].model_copy(update={"pages": batch.pages, "samples": batch.samples})
        samples = self.work.samples - self.work.records[-1].samples + batch.samples
        changes = {"records": (*self.work.records[:-1], record), "samples": samples}
        self._replace(self.work.model_copy(update=changes))
        return record


class NoTraining(Cheat):
    """Makes its records, and leaves out the steps."""

    def train(self, batch: MicroBatch) -> Record:
        before = self.steps._local()
        record = super().train(batch)
        self.restand(before.params.numpy())
        return record

    def _marked(self, work: Work) -> Work:
        if self.steps._state is not None:
            self.restand(self._training_params)
        return super()._marked(work)


class Stale(Cheat):
    """Trains from the parameters of its first epoch for ever."""

    def _enter(self, state: State, before: Any) -> None:
        self.first = getattr(self, "first", state.params)
        super()._enter(state, before)

    @property
    def _training_params(self) -> Vector:
        return self.first


class StaleInSecret(Stale):
    """The same, but its first mark and what it puts in are as if it had begun at the epoch's parameters."""

    def _marked(self, work: Work) -> Work:
        if work.marks:
            standing = self.steps.standing()
            self._standings[standing.hash] = standing
            return work.with_mark(mark_of(standing, len(work.records), self.state.params, self.shown()), self._stretch)
        late = self.steps._base
        self.steps._base = self.state.params
        work = super()._marked(work)
        self.steps._base = late
        return work

    def contribution(self) -> Contribution:
        made = super().contribution()
        standing = self._standings[made.marks[-1].state]
        return dataclasses.replace(made, vector=self.state.params - standing.params)


class Scaled(Cheat):
    """Puts in three times what it has moved."""

    def contribution(self) -> Contribution:
        made = super().contribution()
        return dataclasses.replace(made, vector=3 * made.vector)


class ScaledInSecret(Cheat):
    """The same, but not where everybody can see it."""

    def contribution(self) -> Contribution:
        made = super().contribution()
        vector = 3 * made.vector
        vector[self.shown()] = made.vector[self.shown()]
        return dataclasses.replace(made, vector=vector)


class ScaledSteps(Cheat):
    """Moves three times as far at the end, and commits to that."""

    def contribution(self) -> Contribution:
        if self.work.marks[-1].after != len(self.work.records):
            base = self._training_params
            self.restand(base + 3 * (self.steps.standing().params - base))
        return super().contribution()


class InventedMoments(Cheat):
    """Begins its second epoch with an inner state that no work has led to."""

    def train(self, batch: MicroBatch) -> Record:
        if self.epoch and not self.work.records:
            local = self.steps._local()
            self.steps._state = local.having(first_moment=-local.vectors["first_moment"])
        return super().train(batch)


class Uncommitted(Cheat):
    """Says nothing of where it stood in between."""

    def contribution(self) -> Contribution:
        made = super().contribution()
        marks = (made.marks[0], made.marks[-1])
        self._works = (*self._works[:-1], self.work.model_copy(update={"marks": marks}))
        return dataclasses.replace(made, marks=marks)


@dataclass
class Court:
    """A subnet, and the desk of its validator."""

    net: Subnet
    desk: AuditDesk

    async def epoch(self) -> tuple[EpochSeen, dict[int, Evidence]]:
        """One epoch of everybody, and what the validator finds."""
        for uid in list(self.net.neurons)[1:]:
            await self.net.train(uid, STEPS)
        seen = await averaged(self.net)
        await asyncio.gather(*(neuron.keeper.save() for neuron in self.net.neurons.values()))
        return seen, {e.uid: e for e in await self.desk.examine(self.net.chain.metagraph, seen)}


def desk_of(net: Subnet, replay: ReplaySpec, seed: int) -> AuditDesk:
    neuron = net.neurons[0]
    auditor = Auditor(net.spec, net.loader.tokenizer.vocab_size)
    states = PeerStates(
        transport=neuron.transport,
        binding=neuron.node.binding,
        run_id=net.spec.run_id,
        layout=neuron.engine.layout,
        vectors=neuron.engine.own_vectors,
        architecture=neuron.engine.architecture,
        folder=net.folder,
    )
    shared = {
        "uid": 0,
        "spec": net.spec,
        "loader": net.loader,
        "auditor": auditor,
        "worker": neuron.worker,
        "dendrite": neuron.dendrite,
        "telemetry": neuron.telemetry,
        "clock": SystemClock(),
    }
    shared["rng"] = random.Random(seed)
    return AuditDesk(
        replays=ReplayDesk(replay=replay, states=states, **shared),
        exhibits=WireExhibits(neuron.transport, SystemClock()),
        in_time=lambda epoch: neuron.engine.epoch <= epoch + 1,
        **shared,
    )


@asynccontextmanager
async def court(
    folder: Path, cheat: EngineFactory | None = None, *, serve: bool = True, seed: int = 0, **changes: Any
) -> AsyncIterator[Court]:
    """Three miners, of which the first may cheat; they serve what they have committed to."""
    data = dataclasses.replace(run_spec(folder).data, pages_per_epoch=16)
    run = {"strategy": "diloco", "model": LARGER, "data": data, "audit": AUDITED, **changes}
    engines = {} if cheat is None else {1: cheat}
    async with subnet(folder, 3, attached=False, engines=engines, **run) as net, AsyncExitStack() as stack:
        net.neurons[0].node.attach(net.neurons[0].axon, net.neurons[0].ended.append)
        for uid in (1, 2, 3):
            net.miner(uid)
            if serve:
                await stack.enter_async_context(serving(net.neurons[uid]))
        yield Court(net, desk_of(net, REPLAY, seed))


def failed(evidence: Evidence) -> set[Finding]:
    return {audit.finding for audit in evidence.audits if not audit.passed}


VARIANTS: dict[str, dict[str, Any]] = {
    "diloco": {},
    "muloco": {"strategy": "muloco"},
    "int2": {"averaging": dataclasses.replace(AVERAGING, codec="int2-block64+int8-block256", error_feedback=True)},
    "sparseloco": {
        "strategy": "sparseloco",
        "averaging": dataclasses.replace(AVERAGING, codec="topk32-int2-block512+int8-block256", error_feedback=True),
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
async def test_honest_miners_pass_every_question(tmp_path: Path, variant: str) -> None:
    """Epoch after epoch, at one state, whatever the inner optimiser and the codec; each has a stretch replayed."""
    async with court(tmp_path, **VARIANTS[variant]) as here:
        for _ in range(2):
            _, evidence = await here.epoch()
            assert len({neuron.state for neuron in here.net.neurons.values()}) == 1
            for uid in (1, 2, 3):
                assert failed(evidence[uid]) == set()
                assert evidence[uid].unobserved == ""
                drifts = [audit.drift for audit in evidence[uid].audits if audit.drift is not None]
                assert len(drifts) == 1
                assert drifts[0] < REPLAY.tolerance
                (gained,) = [audit.improvement for audit in evidence[uid].audits if audit.improvement is not None]
                assert gained.gap_low < gained.gap < gained.gap_high
                assert evidence[uid].steps.samples > 0


async def everything_found(here: Court, epochs: int) -> set[Finding]:
    """What is found of miner 1, while nothing is of the others."""
    found = set()
    for _ in range(epochs):
        _, evidence = await here.epoch()
        assert failed(evidence[2]) | failed(evidence[3]) == set()
        found |= failed(evidence[1])
    return found


WORK = {Finding.LOSS_DIFFERS, Finding.GRADIENT_DIFFERS, Finding.STEPS_DIFFER}  # which one depends on the stretch
CHEATS: dict[str, tuple[EngineFactory, int, set[Finding]]] = {
    "other data": (OtherData, 1, WORK),
    "no training": (NoTraining, 1, WORK),
    "stale": (Stale, 2, {Finding.OTHER_BASE}),
    "scaled": (Scaled, 1, {Finding.NOT_ITS_STEPS}),
    "scaled in secret": (ScaledInSecret, 1, {Finding.NOT_ITS_STEPS}),
    "invented moments": (InventedMoments, 2, {Finding.OTHER_INNER_STATE}),
    "uncommitted": (Uncommitted, 1, {Finding.NOT_COMMITTED}),
}


@pytest.mark.parametrize("name", CHEATS)
async def test_a_cheat_fails_and_nobody_else_does(tmp_path: Path, name: str) -> None:
    """Whichever stretch is drawn; one that trains nothing does the model no good either."""
    make, epochs, findings = CHEATS[name]
    async with court(tmp_path, make) as here:
        found = await everything_found(here, epochs)
        assert findings & found
        assert name != "no training" or Finding.NO_IMPROVEMENT in found


@pytest.mark.parametrize(("make", "stretch", "epochs"), [(StaleInSecret, 0, 2), (ScaledSteps, 2, 1)])
async def test_one_false_stretch_is_found_when_it_is_drawn(
    tmp_path: Path, make: EngineFactory, stretch: int, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only then: what it was committed to before and after it is sound."""
    found: dict[int, set[Finding]] = {}
    for drawn in (1, stretch):
        monkeypatch.setattr(ReplayDesk, "drawn", lambda *_, drawn=drawn: {1: drawn, 2: drawn, 3: drawn})
        folder = tmp_path / str(drawn)
        folder.mkdir()
        async with court(folder, make) as here:
            found[drawn] = await everything_found(here, epochs)
    assert found[stretch] & WORK
    assert not found[1] - {Finding.NO_IMPROVEMENT}


async def served(here: Court, stack: AsyncExitStack) -> None:
    """From now on the miners show their states."""
    for uid in (1, 2, 3):
        await stack.enter_async_context(serving(here.net.neurons[uid]))


async def test_who_was_away_shows_its_states_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The epoch is not observed, and nobody is blamed; whose steps are sound owes nothing after the next one, and whose
    are not fails by the states that it had committed to."""
    monkeypatch.setattr(replays, "PATIENCE_SECONDS", 0.0)
    async with court(tmp_path, NoTraining, serve=False) as here, AsyncExitStack() as stack:
        _, evidence = await here.epoch()
        assert [failed(evidence[uid]) for uid in (1, 2, 3)] == [set()] * 3
        assert all("owes states of epoch 0" in each.unobserved for each in evidence.values())
        assert here.net.neurons[0].told("Unseen")[0]["synapse"] == "state"
        await served(here, stack)
        monkeypatch.setattr(replays, "PATIENCE_SECONDS", 60.0)
        _, evidence = await here.epoch()
        assert failed(evidence[2]) | failed(evidence[3]) == set()
        assert evidence[2].unobserved == ""
        late = [audit for audit in evidence[1].audits if audit.epoch == 0]
        assert {audit.finding for audit in late} & WORK
        assert here.desk._replays is not None
        assert here.desk._replays.owing == frozenset()


async def test_who_owes_and_shows_nothing_when_it_is_back_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took part in another epoch, so it was there to be asked; it is not asked a third time."""
    monkeypatch.setattr(replays, "PATIENCE_SECONDS", 0.0)
    async with court(tmp_path, serve=False) as here:
        await here.epoch()
        _, evidence = await here.epoch()
        assert [failed(evidence[uid]) for uid in (1, 2, 3)] == [{Finding.NOT_SHOWN}] * 3
        assert {audit.epoch for audit in evidence[1].audits if not audit.passed} == {0}


async def test_our_own_line_makes_nobody_owe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where most of the others cannot be reached either."""
    monkeypatch.setattr(replays, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(replays, "ALIVE_SECONDS", 0.0)
    async with court(tmp_path, serve=False) as here:
        _, evidence = await here.epoch()
        assert failed(evidence[1]) == set()
        assert "our own line" in evidence[1].unobserved
        assert here.desk._replays is not None
        assert here.desk._replays.owing == frozenset()


@pytest.mark.parametrize(("epochs", "owing"), [((1,), True), ((1, 2), True), ((1, 2, 3), False), ((4,), False)])
async def test_a_debt_that_we_failed_to_collect_is_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: tuple[int, ...], owing: bool
) -> None:
    """After so many epochs with it, or that we have missed, the miner may have dropped what it owes."""
    monkeypatch.setattr(replays, "PATIENCE_SECONDS", 0.0)
    async with court(tmp_path, serve=False) as here:
        seen, _ = await here.epoch()
        desk = here.desk._replays
        assert desk is not None
        hotkeys = dict(enumerate(here.net.chain.metagraph.hotkeys))
        assert desk.owing == {hotkeys[uid] for uid in (1, 2, 3)}
        for epoch in epochs:
            desk.begin(dataclasses.replace(seen, epoch=epoch), hotkeys)
        assert bool(desk.owing) is owing


async def test_a_failed_attempt_leaves_no_false_mark(tmp_path: Path) -> None:
    """What a miner committed to for a round that came to nothing is not held against the steps after it."""
    async with court(tmp_path) as here:
        await here.net.train(1, 3)
        await here.net.neurons[1].worker.run(lambda engine: engine.contribution())
        await here.net.train(1, STEPS - 3, first=3)
        for uid in (2, 3):
            await here.net.train(uid, STEPS)
        seen = await averaged(here.net)
        await asyncio.gather(*(neuron.keeper.save() for neuron in here.net.neurons.values()))
        evidence = await here.desk.examine(here.net.chain.metagraph, seen)
        assert [failed(each) for each in evidence] == [set()] * 3


async def test_a_validator_that_asks_too_late_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of an epoch may be gone when the run has moved on by as many as are kept."""
    monkeypatch.setattr(replays, "PATIENCE_SECONDS", 0.0)
    async with court(tmp_path, serve=False) as here:
        first = None
        for _ in range(3):
            for uid in (1, 2, 3):
                await here.net.train(uid, 2)
            seen = await averaged(here.net)
            first = first or seen
        assert first is not None
        evidence = await here.desk.examine(here.net.chain.metagraph, first)
    assert [failed(each) for each in evidence] == [set()] * 3
    assert all("asked too late" in each.unobserved for each in evidence)
