"""A validator: watches the miners, leads a round when it is its turn, audits what was done, and sets weights.

Each of these is a loop of its own, so that a slow audit never delays a round and a silent chain never stops an audit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from distributed_training import schedule
from distributed_training.catch_up import CatchUp
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import AttemptVoid, AuditNotPossible, Excluded
from distributed_training.keeper import Keeper
from distributed_training.model.state import State
from distributed_training.node import ChainView, EndedRound, Node
from distributed_training.peers import Census, validators_of
from distributed_training.run import RunSpec
from distributed_training.scoring.combine import Rules, absent, advance
from distributed_training.scoring.explain import score_epoch
from distributed_training.scoring.participation import Fault, RoundSeen
from distributed_training.scoring.report import Report
from distributed_training.silence import Silence
from distributed_training.validator.audits import AuditDesk, EpochSeen
from distributed_training.validator.lead import Attempt, RoundLeader
from distributed_training.validator.memory import Remembered, without_strangers
from distributed_training.validator.paymaster import Paymaster
from distributed_training.validator.publisher import Publication, Publisher
from distributed_training.validator.report_desk import ReportDesk
from distributed_training.validator.rounds import Attendance, completed_round, failed_attempt, judged_attempt
from template.chain.metagraph import Metagraph
from template.clock import Clock
from template.neuron import together
from template.telemetry import Telemetry
from template.transport.axon import Axon

TICK_SECONDS = 1.0
CENSUS_SECONDS = 5.0
WAITING_AUDITS = 4  # epochs, as long as miners keep their records; older ones are dropped
ASKED_IN_TIME = 2  # epochs after which a miner may have forgotten its records
TOLD_MISSED = 16  # epochs that were not scored; of a longer absence, the last ones
REMEMBERED_ATTEMPTS = 16  # failed ones of the epoch in progress


class Validator:
    """Composed of the parts it is given; opens and closes nothing itself."""

    def __init__(
        self,
        *,
        spec: RunSpec,
        chain: ChainView,
        node: Node,
        engine: Engine,
        worker: TrainingWorker,
        keeper: Keeper,
        census: Census,
        catch_up: CatchUp,
        leader: RoundLeader,
        desk: AuditDesk,
        publisher: Publisher,
        paymaster: Paymaster,
        memory: Remembered,
        reports: ReportDesk,
        until_epoch: int | None,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._spec = spec
        self._chain = chain
        self._node = node
        self._engine = engine
        self._worker = worker
        self._keeper = keeper
        self._census = census
        self._catch_up = catch_up
        self._leader = leader
        self._desk = desk
        self._publisher = publisher
        self._paymaster = paymaster
        self._memory = memory
        self._until_epoch = until_epoch
        self._telemetry = telemetry
        self._clock = clock
        self._rules = Rules(audit=spec.audit, scoring=spec.scoring)
        self._reports = reports
        self._seen: asyncio.Queue[EpochSeen] = asyncio.Queue(WAITING_AUDITS)
        self._dropped: set[int] = set()  # epochs that were told as not audited, and not passed since
        self._ended_with: State | None = None
        self._new_state = asyncio.Event()
        self._live: frozenset[int] = frozenset()
        self._failed_attempts: list[RoundSeen] = []
        self._attendance = Attendance(spec.epoch.attempts)
        self._epoch_block: tuple[tuple[int, str], int] | None = None
        self._led: tuple[tuple[int, str], int] | None = None  # the state and turn that `_attempts` are counted of
        self._attempts = 0
        self._silence = Silence(chain, clock)  # of miners
        self._overtaken_at: int | None = None  # the block at which the miners were first seen ahead of us

    def attach(self, axon: Axon) -> None:
        """Serve what a validator answers. Anybody registered may ask how it was scored itself."""
        self._node.attach(axon, self.on_ended)
        axon.attach(Report, self._reports.answer, validators_only=False)

    async def run(self) -> None:
        """Work until cancelled.

        Raises:
            SubnetError: the worker's thread ended, or the hotkey lost its uid.
        """
        await self._publisher.measure(self._engine.state)
        await together(
            self._worker.watch(),
            self._watch(),
            self._keep_new_states(),
            self._audit(),
            self._publisher.run(),
            self._paymaster.run(),
        )

    def on_ended(self, done: EndedRound) -> None:
        """Called by the node after each round: note who failed; queue the audit of an epoch that is over."""
        if not done.completed:
            self._note_failed(done)
        self._leader.observe(done)  # after the failed were judged by what was known before
        if not done.completed:
            return
        self._ended_with = done.state
        self._new_state.set()
        rounds = (*(seen for seen in self._failed_attempts if seen.epoch == done.epoch), self._completed(done))
        self._failed_attempts.clear()
        if self._seen.full():
            dropped = self._seen.get_nowait()
            self._dropped.add(dropped.epoch)
            self._not_audited(dropped.epoch, "audits cannot keep up")
        seen = EpochSeen(
            done.epoch,
            done.request.state_hash,
            done.bases,
            done.result.outcome,
            rounds,
            reduction=self._desk.keep(done.plan, done.result),
            peers={member.uid: member.peer for member in done.request.group},
        )
        self._seen.put_nowait(seen)

    def _note_failed(self, done: EndedRound) -> None:
        request, outcome = done.request, done.result.outcome
        verdict = judged_attempt(request, outcome, self._node.uid, self._leader.fair_exchange_seconds())
        if verdict.fault is not Fault.NONE:
            self._telemetry.emit(
                AttemptVoid(
                    uid=self._node.uid,
                    epoch=request.epoch,
                    attempt=request.attempt,
                    round_id=request.round_id,
                    fault=str(verdict.fault),
                    reason=verdict.reason,
                )
            )
        uids = frozenset(range(len(self._chain.metagraph)))
        self._failed_attempts.append(failed_attempt(request, verdict, uids))
        del self._failed_attempts[:-REMEMBERED_ATTEMPTS]
        hotkeys = {member.peer.hotkey for member in request.group if member.uid in verdict.failed}
        self._memory.note(failed=self._memory.now.failed | hotkeys)

    def _completed(self, done: EndedRound) -> RoundSeen:
        delivered = {m.peer.hotkey for m in done.request.group if m.uid in done.result.outcome.participants}
        failed = self._memory.now.failed - delivered
        self._memory.note(failed=failed)
        owing = {uid for uid, hotkey in enumerate(self._chain.metagraph.hotkeys) if hotkey in failed}
        return completed_round(done.request, done.result.outcome, self._live, owing)

    def _not_audited(self, epoch: int, reason: str) -> None:
        self._telemetry.emit(AuditNotPossible(uid=self._node.uid, epoch=epoch, reason=reason))

    def _tell_missed(self, scored: int | None, epoch: int) -> None:
        """The epochs in between change nobody's score: it was we who were in no round that ended them."""
        if scored is None:
            return
        told, self._dropped = self._dropped, {dropped for dropped in self._dropped if dropped > epoch}
        for missed in sorted(set(range(max(scored + 1, epoch - TOLD_MISSED), epoch)) - told):
            self._not_audited(missed, "this validator was in no round that ended the epoch, or was still starting")

    async def _keep_new_states(self) -> None:
        while True:
            await self._new_state.wait()
            self._new_state.clear()
            await self._keeper.keep()

    async def _watch(self) -> None:
        while True:
            await self._tick()
            await self._clock.sleep(TICK_SECONDS)

    async def _tick(self) -> None:
        metagraph = self._chain.metagraph
        self._node.require_place(metagraph)
        uids = range(len(metagraph.hotkeys))
        views = await self._census.ask(metagraph, uids, CENSUS_SECONDS)
        self._hear_miners(views)
        views = (*views, self._node.view())  # which says whether it is settled
        self._live = frozenset(view.uid for view in views)
        if self._node.in_round:
            return
        self._ended_with = None  # only needed after a round of ours; a second state takes memory
        validators = validators_of(metagraph, self._spec.epoch.validator_stake)
        if not await self._catch_up.check(views, metagraph.stake, len(validators)):
            return
        await self._lead_if_due(metagraph, views)

    def _hear_miners(self, views: tuple[schedule.View, ...]) -> None:
        """Who could not be heard by any miner for so long does not know any more where they stand."""
        if all(view.is_validator for view in views):
            return
        if schedule.without_validators(self._silence.blocks, self._spec.epoch):
            self._catch_up.unsettle()
        self._silence.heard()

    async def _lead_if_due(self, metagraph: Metagraph, views: tuple[schedule.View, ...]) -> None:
        state, block, limits = self._node.view().state, self._chain.block, self._spec.epoch
        if self._epoch_block is None or self._epoch_block[0] != state:
            self._epoch_block = (state, block)
        if self._missed_its_end(views, state[0], block) or not self._is_our_turn(metagraph, state[0], block):
            return
        memory = self._memory.now
        excluded, unpaid = schedule.excluded(memory.exclusions, state[0]), memory.book.unpaid(state[0])
        blocks = block - self._epoch_block[1]
        overdue = blocks >= limits.max_blocks
        admitted = schedule.admitted(views, state, excluded, unpaid, limits.min_miners, overdue=overdue)
        tried = any(seen.epoch == state[0] for seen in self._failed_attempts)
        if not schedule.ready(admitted, state, blocks, limits, tried=tried):
            return
        made = self._attempts_made(state, block // limits.turn_blocks)
        attempts = await self._leader.lead(metagraph, state, schedule.group(admitted, state), made)
        self._attempts += len(attempts)
        if attempts:
            await self._settle(metagraph, state[0], attempts)

    def _missed_its_end(self, views: tuple[schedule.View, ...], epoch: int, block: int) -> bool:
        """Whether the miners seem to have ended the epoch without us. Believed for one turn: they may lie."""
        if not schedule.overtaken(views, epoch):
            self._overtaken_at = None
            return False
        if self._overtaken_at is None:
            self._overtaken_at = block
        return block - self._overtaken_at < self._spec.epoch.turn_blocks

    def _is_our_turn(self, metagraph: Metagraph, epoch: int, block: int) -> bool:
        if self._until_epoch is not None and epoch >= self._until_epoch:
            return False
        validators = validators_of(metagraph, self._spec.epoch.validator_stake)
        return schedule.leader(validators, epoch, block, self._spec.epoch.turn_blocks) == self._node.uid

    def _attempts_made(self, state: tuple[int, str], turn: int) -> int:
        """How many attempts this validator made at this state in this turn."""
        if self._led != (state, turn):
            self._led, self._attempts = (state, turn), 0
        return self._attempts

    async def _settle(self, metagraph: Metagraph, epoch: int, attempts: Sequence[Attempt]) -> None:
        """Remember who spoiled attempts, forgive who delivered, and have the new state published."""
        exclusions = self._memory.now.exclusions
        for attempt in attempts:
            spoilers = {uid: metagraph.hotkeys[uid] for uid in self._spoilers(attempt)}
            exclusions = schedule.exclude(exclusions, spoilers.values(), epoch)
            for uid, hotkey in spoilers.items():
                until = exclusions[hotkey].until_epoch
                self._telemetry.emit(Excluded(uid=self._node.uid, miner=uid, epoch=epoch, until_epoch=until))
        if attempts[-1].completed:
            last = attempts[-1]
            contributors = [m.uid for m in last.group if m.contributes and m.uid in last.confirmed]
            exclusions = schedule.forgive(exclusions, {metagraph.hotkeys[uid] for uid in contributors})
            samples = sum(last.answers[uid].samples for uid in contributors)
            if self._ended_with is not None and self._ended_with.epoch == epoch + 1:
                self._publisher.add(Publication(self._ended_with, samples, tuple(contributors)))
        self._memory.note(exclusions=exclusions)
        await self._memory.change(**without_strangers(self._memory.now, frozenset(metagraph.hotkeys)))

    def _spoilers(self, attempt: Attempt) -> list[int]:
        """The contributors to exclude after an attempt; to lead and to reduce is the chain's to allow."""
        if attempt.gave_way:  # the others may be in the round that we are in ourselves
            return []
        hotkeys = {member.uid: member.peer.hotkey for member in attempt.group if member.contributes}
        return sorted(hotkeys.keys() & (attempt.spoilers | self._attendance.spoilers(hotkeys, attempt.silent)))

    async def _audit(self) -> None:
        while True:
            await self._audit_epoch(await self._seen.get())

    async def _audit_epoch(self, seen: EpochSeen) -> None:
        metagraph = self._chain.metagraph
        before = self._memory.now.book
        if before.epoch is not None and seen.epoch <= before.epoch:
            self._not_audited(seen.epoch, f"epoch {before.epoch} was scored before; what was scored stays scored")
            return
        self._tell_missed(before.epoch, seen.epoch)
        late = self._node.status().epoch > seen.epoch + ASKED_IN_TIME
        uids = self._desk.miners(metagraph, seen)
        gone = absent(before, uids, metagraph.hotkeys)
        evidence = (*await self._desk.examine(metagraph, seen, late=late), *gone)
        miners = {uid: metagraph.hotkeys[uid] for uid in (*uids, *(item.uid for item in gone))}
        after, rows = advance(before, seen.epoch, miners, evidence, self._rules)
        await self._memory.change(book=after)
        event = score_epoch(before, after, rows, self._rules)
        self._reports.keep(event, after)
        await self._reports.save()
        self._telemetry.emit(event)
