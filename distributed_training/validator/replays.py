"""Audits of miners that make steps of their own: a stretch of them is replayed from a state that the miner shows.

scoring/replay.py says what is asked and why. Whoever does not show a state that it has committed to is asked again for
a while. If most of the others cannot be reached either, it is more likely this validator's own line; if the run has
gone on so far that it may have dropped the states, this validator came too late. Else the miner owes them: an outage of
its machine or line looks like that, so the epoch counts as not observed, and it is asked for the same states again as
soon as it takes part in an epoch. Who has them shows them then, and is judged by them as it would have been at once;
who does not has failed.

That opens no door. What is owed was committed to before anybody drew it, so time does not help to make it up. Being
away when one is drawn costs the pay of that epoch and of all those in which one stays away, and there is nothing to
wait for: a debt has no end. A miner is asked first thing when it is in an average again, before it can be paid for
anything; whoever owes is looked at in each epoch (`owing`). It keeps its states for `KEPT_EPOCHS` epochs that it took
part in itself, so an outage takes none of them away. A debt is forgiven only where this validator failed to ask in
those, by its own line or by being away; a validator that starts again knows of no debts. What is left to an honest
miner's bad luck is a crash in the seconds before its states are on disk, in an epoch in which it is drawn.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from distributed_training.averaging.codecs.names import PairName, TopKName, parse_pair
from distributed_training.averaging.witness import sighting_of
from distributed_training.data.loader import IGNORED, Loader, MicroBatch
from distributed_training.engine.audit import Auditor
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.engine import KEPT_EPOCHS
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import StateShown, Unseen
from distributed_training.model.chunks import Chunks
from distributed_training.model.layout import Vector
from distributed_training.model.state import State
from distributed_training.protocol import IsAlive, IsAliveResponse, Mark, Record
from distributed_training.run import ReplaySpec, RunSpec
from distributed_training.scoring.gradient import AuditResult
from distributed_training.scoring.improvement import improvement
from distributed_training.scoring.replay import (
    Fidelity,
    Origin,
    Replayed,
    drawn_stretches,
    drift,
    judge_chain,
    judge_end,
    judge_improvement,
    judge_replay,
    not_shown,
    other_moved,
)
from distributed_training.strategies.base import LocalState
from distributed_training.validator.inquiry import EpochSeen, Report
from distributed_training.validator.recomputation import claimed_batch
from distributed_training.validator.shown_states import ShownStates
from template.clock import Clock
from template.errors import AveragingError, StateError
from template.telemetry import Telemetry
from template.transport.dendrite import Dendrite, Target

PATIENCE_SECONDS = 60.0  # with a miner that has not written its state to disk yet, or serves others
PAUSE_SECONDS = 1.0
ALIVE_SECONDS = 5.0


class OwnLineDown(StateError):
    """Most of the others cannot be reached, so that a miner does not answer says nothing of it."""


class TooLate(StateError):
    """The run has gone on so far that the miner may have dropped the states of this epoch."""


class Owing(StateError):
    """The miner did not show its states, and is asked again when it takes part in an epoch."""


@dataclass(frozen=True, eq=False)
class Owed:
    """A stretch that was drawn, of a miner that did not show its states. `seen` is without parameter vectors;
    `taken_part`: in how many averages the miner was since."""

    report: Report
    stretch: int
    seen: EpochSeen
    taken_part: int = 0


class ReplayDesk:
    """Replays for one validator; remembers what each miner's last epoch ended with.

    `rng` must be unpredictable to miners (`random.SystemRandom` outside tests).
    """

    def __init__(
        self,
        *,
        uid: int,
        spec: RunSpec,
        replay: ReplaySpec,
        loader: Loader,
        auditor: Auditor,
        worker: TrainingWorker,
        dendrite: Dendrite,
        states: ShownStates,
        telemetry: Telemetry,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._uid = uid
        self._telemetry = telemetry
        self._spec = spec
        self._replay = replay
        self._loader = loader
        self._auditor = auditor
        self._worker = worker
        self._dendrite = dendrite
        self._states = states
        self._clock = clock
        self._rng = rng
        self._fresh: tuple[int, Sequence[MicroBatch]] | None = None  # of that epoch, the same for all miners
        self._ends: dict[str, tuple[int, str]] = {}  # by hotkey: the last epoch, and the hash of the inner state
        self._owed: dict[str, Owed] = {}  # by hotkey
        self._last: int | None = None  # epoch that was looked at
        codecs = parse_pair(spec.averaging.codec)
        self._fidelity = _fidelity(codecs, spec.averaging.error_feedback)
        self._zeros = codecs.makes_zeros

    @property
    def owing(self) -> frozenset[str]:
        """The hotkeys that owe states."""
        return frozenset(self._owed)

    def begin(self, seen: EpochSeen, hotkeys: Mapping[int, str]) -> None:
        """An epoch is looked at. Who owes states may have dropped them if it took part in too many without being asked;
        of epochs that we missed we do not know whether it did. `hotkeys` by uid, of all miners that serve."""
        missed = 0 if self._last is None else max(0, seen.epoch - self._last - 1)
        present = {hotkeys[uid] for uid in seen.outcome.participants if uid in hotkeys}
        counted = {
            hotkey: replace(owed, taken_part=owed.taken_part + missed + (hotkey in present))
            for hotkey, owed in self._owed.items()
        }
        self._owed = {hotkey: owed for hotkey, owed in counted.items() if owed.taken_part <= KEPT_EPOCHS - 2}
        self._last = seen.epoch

    def drawn(self, reports: Mapping[int, Report], seen: EpochSeen) -> dict[int, int]:
        """The stretch of each miner that is to be replayed; only of those that are in the average."""
        self._ends = {hotkey: end for hotkey, end in self._ends.items() if end[0] >= seen.epoch - 1}
        own = {uid: r for uid, r in reports.items() if uid in seen.outcome.participants and uid in seen.peers}
        records = {uid: _in_order(report.records) for uid, report in own.items()}
        marks = {uid: report.marks for uid, report in own.items()}
        return drawn_stretches(records, marks, self._spec.audit, self._replay, self._rng)

    async def audits(
        self, target: Target, report: Report, stretch: int | None, seen: EpochSeen, others: Sequence[Target]
    ) -> list[AuditResult]:
        """What there is to say of a miner that is in the average; `others` are asked whether it is our own line.

        Raises:
            Owing: it did not show its states.
            DataError, StateError: our corpus, our numbers or our line; nothing that the miner did.
        """
        uid, records = target.uid, _in_order(report.records)
        base = seen.bases[report.base_hash]
        origin = await self._origin(target.hotkey, seen.epoch, base)
        chain = judge_chain(uid, seen.epoch, records, report.marks, origin, self._replay.stretch)
        if report.marks:
            self._ends[target.hotkey] = (seen.epoch, report.marks[-1].inner)
        if stretch is None or not chain.passed:
            return [chain]
        found = await self._looked(target, report, stretch, seen, base)
        if found is None:
            await self._require_own_line(target, others)
            bare = replace(seen, bases={}, reduction=None)
            self._owed.setdefault(target.hotkey, Owed(report, stretch, bare))
            raise Owing(f"it owes states of epoch {seen.epoch}")
        return [chain, *found]

    async def settled(self, target: Target, seen: EpochSeen, others: Sequence[Target]) -> list[AuditResult]:
        """What there is to hold against a miner that owes states and is in an average again; nothing if it shows them
        and they are sound, or owes none. Raises as `audits`, but never Owing."""
        owed = self._owed.get(target.hotkey)
        if owed is None or target.uid not in seen.peers:
            return []
        now = replace(owed.seen, peers={**owed.seen.peers, target.uid: seen.peers[target.uid]})
        found = await self._looked(target, owed.report, owed.stretch, now, None)
        if found is None:
            await self._require_own_line(target, others)
            found = [not_shown(target.uid, now.epoch)]
        del self._owed[target.hotkey]
        return [result for result in found if not result.passed]

    async def _looked(
        self, target: Target, report: Report, stretch: int, seen: EpochSeen, base: Vector | None
    ) -> list[AuditResult] | None:
        """What comes of one stretch; None if the miner does not show its states. Without `base`, the parameters that
        the epoch began with, it shows these, too: it has committed to them, and they were found to be right."""
        uid, records, marks = target.uid, _in_order(report.records), report.marks
        first, last, end = marks[stretch], marks[stretch + 1], marks[-1]
        wanted = (first, last, end) if base is not None else (first, last, end, marks[0])
        shown = await self._shown(target, wanted, seen, owed=base is None)
        if shown is None:
            return None
        base = shown[marks[0].state].params if base is None else base
        part = records[first.after : last.after]
        replayed = await self._replayed(uid, seen.epoch, part, shown[first.state], shown[last.state])
        found = judge_replay(uid, seen.epoch, part, replayed, self._spec.audit, self._replay)
        moved = np.subtract(base, shown[end.state].params)
        ended = self._judged_end(uid, seen, end, moved)
        return [found, *ended, *await self._improved(uid, records, seen, base, moved)]

    async def _origin(self, hotkey: str, epoch: int, base: Vector) -> Origin:
        state = State(self._auditor.layout, epoch, base, {})
        params = await asyncio.to_thread(lambda: state.model_hash)
        ended, inner = self._ends.get(hotkey, (None, ""))
        return Origin(params, self._auditor.empty_vectors_hash, inner if ended == epoch - 1 else None)

    async def _shown(
        self, target: Target, marks: Sequence[Mark], seen: EpochSeen, *, owed: bool
    ) -> dict[str, State] | None:
        """The states behind the marks by their hashes; None if the miner does not show one of them."""
        shown: dict[str, State] = {}
        for mark in marks:
            if mark.state not in shown:
                state = await self._fetched(target, mark, seen, owed=owed)
                if state is None:
                    return None
                shown[mark.state] = state
        return shown

    async def _fetched(self, target: Target, mark: Mark, seen: EpochSeen, *, owed: bool) -> State | None:
        until = self._clock.monotonic() + PATIENCE_SECONDS
        while True:
            started = self._clock.monotonic()
            try:
                state = await self._states.show(target.uid, seen.peers[target.uid], mark)
            except (AveragingError, StateError) as error:
                reason = str(error)
            else:
                self._tell_shown(target.uid, seen.epoch, state, self._clock.monotonic() - started)
                return state
            if not owed and await self._is_late(seen.epoch):
                raise TooLate(f"this validator asked too late for the states of epoch {seen.epoch}: {reason}")
            if self._clock.monotonic() >= until:
                self._telemetry.emit(Unseen(uid=self._uid, miner=target.uid, synapse="state", reason=reason))
                return None
            await self._clock.sleep(PAUSE_SECONDS)

    async def _is_late(self, epoch: int) -> bool:
        """Whether a miner may be about to forget the epoch; those that are a little ahead of us, too."""
        return await self._worker.run(lambda engine: engine.epoch) >= epoch + KEPT_EPOCHS - 1

    def _tell_shown(self, miner: int, epoch: int, state: State, seconds: float) -> None:
        size = Chunks.of(state.layout, state.optimizer).size
        self._telemetry.emit(
            StateShown(uid=self._uid, miner=miner, epoch=epoch, state_hash=state.hash, bytes=size, seconds=seconds)
        )

    async def _require_own_line(self, target: Target, others: Sequence[Target]) -> None:
        asked = [other for other in others if other.uid != target.uid] or [target]
        outcomes = await self._dendrite.broadcast(tuple(asked), IsAlive(run_id=self._spec.run_id), ALIVE_SECONDS)
        reached = sum(isinstance(outcome.response, IsAliveResponse) for outcome in outcomes.values())
        if 2 * reached < len(asked):
            raise OwnLineDown(f"only {reached} of {len(asked)} miners can be reached: more likely our own line")

    async def _replayed(self, uid: int, epoch: int, reported: Sequence[Record], start: State, stop: State) -> Replayed:
        """The stretch computed again, step by step, so that a round never waits for more than one."""
        records, pages, stood = [], [], self._auditor.stand(start)
        for record in reported:
            batch = await claimed_batch(self._loader, epoch, uid, record)
            record, stood = await self._worker.run(functools.partial(self._step, epoch, stood, batch))
            records.append(record)
            pages.append(batch.pages)
        end = self._auditor.arrived(stood)
        pairs = [(start.params, end.params, stop.params)]
        pairs += [(start.optimizer[name], end.optimizer[name], stop.optimizer[name]) for name in end.optimizer]
        worst = await asyncio.to_thread(lambda: max(drift(*vectors) for vectors in pairs))
        return Replayed(records=tuple(records), pages=tuple(pages), drift=worst)

    def _step(self, epoch: int, stood: LocalState, batch: MicroBatch, engine: object) -> tuple[Record, LocalState]:
        return self._auditor.step(epoch, stood, batch)

    def _judged_end(self, uid: int, seen: EpochSeen, end: Mark, moved: Vector) -> list[AuditResult]:
        """What was put into the average against `moved` [P], base - end: where marks show it, and where they do not."""
        chosen = coordinates(self._spec.run_id, seen.epoch, self._auditor.layout, self._spec.audit.coordinates)
        if tuple(moved[chosen].tolist()) != end.moved:
            return [other_moved(uid, seen.epoch)]
        kept = sighting_of(seen.outcome.sightings, uid)
        if kept is None:
            return []
        sightings, sighting = kept
        own = moved[sightings.drawn]
        found = judge_end(uid, seen.epoch, sighting.drawn, own, self._spec.audit, self._fidelity, zeros=self._zeros)
        return [] if found is None else [found]

    async def _improved(
        self, uid: int, records: Sequence[Record], seen: EpochSeen, base: Vector, moved: Vector
    ) -> list[AuditResult]:
        """What the contribution alone does to the loss, with the weight that it has in the average."""
        wanted, weights = self._spec.audit.improvement, seen.outcome.weights
        if wanted is None or uid not in weights or len(records) < wanted.batches:
            return []
        fresh = await self._fresh_batches(seen.epoch, wanted.batches)
        chosen = self._rng.sample(list(records), wanted.batches)
        own = [await asyncio.to_thread(self._loader.micro_batch, seen.epoch, uid, each.number) for each in chosen]
        own, fresh = _counting(own), _counting(fresh)
        if min(len(own), len(fresh)) < wanted.batches // 2:
            return []
        probe = base - moved * np.float32(weights[uid] / sum(weights.values()))
        on_own, on_fresh = await self._gains(base, probe, own), await self._gains(base, probe, fresh)
        return [judge_improvement(uid, seen.epoch, improvement(on_own, on_fresh, wanted.confidence))]

    async def _fresh_batches(self, epoch: int, count: int) -> Sequence[MicroBatch]:
        if self._fresh is None or self._fresh[0] != epoch:
            self._fresh = (epoch, await asyncio.to_thread(self._loader.unassigned, epoch, count, self._rng))
        return self._fresh[1]

    async def _gains(self, base: Vector, probe: Vector, batches: Sequence[MicroBatch]) -> list[float]:
        """The loss at `base` less that at `probe`, by micro-batch; a round never waits for more than one."""
        losses = [
            [await self._worker.run(functools.partial(self._loss, params, batch)) for batch in batches]
            for params in (base, probe)
        ]
        return [before - after for before, after in zip(*losses, strict=True)]

    def _loss(self, params: Vector, batch: MicroBatch, engine: object) -> float:
        return self._auditor.held_out_loss(params, [batch])


def _fidelity(codecs: PairName, error_feedback: bool) -> Fidelity:
    if isinstance(codecs.parts, TopKName):
        return Fidelity.SPARSE
    return Fidelity.EXACT if codecs.lossless and not error_feedback else Fidelity.LOSSY


def _counting(batches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """Those that have a label to be measured by."""
    return [batch for batch in batches if (batch.labels != IGNORED).any()]


def _in_order(records: Sequence[Record]) -> tuple[Record, ...]:
    """As they were trained: each step starts where the one of the number before ended."""
    return tuple(sorted(records, key=lambda record: record.number))
