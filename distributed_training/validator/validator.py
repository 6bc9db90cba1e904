"""A validator: watches the miners, leads a round when it is its turn, audits what was done, and sets weights.

Each of these is a loop of its own, so that a slow audit never delays a round and a silent chain never stops an audit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from bittensor import Client, Wallet

from distributed_training import schedule
from distributed_training.catch_up import CatchUp
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import AuditNotPossible, Excluded, WeightsSet
from distributed_training.keeper import Keeper
from distributed_training.node import ChainView, CompletedRound, Node
from distributed_training.peers import Census, validators_of
from distributed_training.run import RunSpec
from distributed_training.scoring.combine import Rules, advance, weights
from distributed_training.scoring.explain import score_epoch
from distributed_training.scoring.participation import RoundSeen
from distributed_training.validator.audits import AuditDesk, EpochSeen
from distributed_training.validator.lead import Attempt, RoundLeader
from distributed_training.validator.memory import MemoryFile, without_old_exclusions
from distributed_training.validator.publisher import Publisher
from template.chain.metagraph import Metagraph
from template.chain.weights import process, set_weights
from template.clock import Clock
from template.errors import ChainFault, ChainUnavailable
from template.telemetry import Telemetry

TICK_SECONDS = 1.0
CENSUS_SECONDS = 5.0
CHAIN_PATIENCE_BLOCKS = 3  # before weights are tried again on a chain that did not answer
WAITING_AUDITS = 2  # epochs; older ones are dropped when auditing cannot keep up


class Validator:
    """Composed of the parts it is given; opens and closes nothing itself."""

    def __init__(
        self,
        *,
        spec: RunSpec,
        chain: ChainView,
        client: Client,
        wallet: Wallet,
        netuid: int,
        node: Node,
        worker: TrainingWorker,
        keeper: Keeper,
        census: Census,
        catch_up: CatchUp,
        leader: RoundLeader,
        desk: AuditDesk,
        publisher: Publisher,
        memory: MemoryFile,
        until_epoch: int | None,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._spec = spec
        self._chain = chain
        self._client = client
        self._wallet = wallet
        self._netuid = netuid
        self._node = node
        self._worker = worker
        self._keeper = keeper
        self._census = census
        self._catch_up = catch_up
        self._leader = leader
        self._desk = desk
        self._publisher = publisher
        self._file = memory
        self._memory = memory.load(spec.run_id)
        self._until_epoch = until_epoch
        self._telemetry = telemetry
        self._clock = clock
        self._rules = Rules(audit=spec.audit, scoring=spec.scoring)
        self._seen: asyncio.Queue[EpochSeen] = asyncio.Queue(WAITING_AUDITS)
        self._publications: asyncio.Queue[tuple[int, int, tuple[int, ...]]] = asyncio.Queue()
        self._live: frozenset[int] = frozenset()
        self._epoch_block: tuple[tuple[int, str], int] | None = None

    async def run(self) -> None:
        """Work until cancelled."""
        if self._node.status().epoch == 0:
            await self._publisher.measure()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._worker.watch())
            tasks.create_task(self._watch())
            tasks.create_task(self._audit())
            tasks.create_task(self._publish())
            tasks.create_task(self._pay())

    async def on_completed(self, done: CompletedRound) -> None:
        """Called by the node when a round was committed: keep the new state, and queue the audit of the old one."""
        assert done.base is not None, "a validator keeps the base of what it audits"
        await self._keeper.save()
        outcome = done.result.outcome
        if self._seen.full():
            dropped = self._seen.get_nowait()
            self._telemetry.emit(
                AuditNotPossible(uid=self._node.uid, epoch=dropped.epoch, reason="audits cannot keep up")
            )
        asked = frozenset(member.uid for member in done.request.group if member.contributes)
        round_seen = RoundSeen(
            epoch=done.epoch,
            attempt=done.request.attempt,
            live=self._live,
            asked=asked,
            delivered=asked & frozenset(outcome.participants),
        )
        self._seen.put_nowait(EpochSeen(done.epoch, done.base, outcome, (round_seen,)))

    async def _watch(self) -> None:
        while True:
            await self._tick()
            await self._clock.sleep(TICK_SECONDS)

    async def _tick(self) -> None:
        metagraph = self._chain.metagraph
        uids = range(len(metagraph.hotkeys))
        views = await self._census.ask(metagraph, uids, CENSUS_SECONDS)
        views = (*views, self._node.view())
        self._live = frozenset(view.uid for view in views)
        if self._node.in_round:
            return
        if not await self._catch_up.check(views, metagraph.stake):
            return
        await self._lead_if_due(metagraph, views)

    async def _lead_if_due(self, metagraph: Metagraph, views: tuple[schedule.View, ...]) -> None:
        state, block, limits = self._node.view().state, self._chain.block, self._spec.epoch
        if self._epoch_block is None or self._epoch_block[0] != state:
            self._epoch_block = (state, block)
        validators = validators_of(metagraph, limits.validator_stake)
        turn = schedule.leader(validators, state[0], block, limits.turn_blocks)
        over = self._until_epoch is not None and state[0] >= self._until_epoch
        if turn != self._node.uid or over:
            return
        barred = schedule.excluded(self._memory.exclusions, state[0])
        candidates = tuple(view for view in views if view.peer.hotkey not in barred)
        if not schedule.ready(candidates, state, block - self._epoch_block[1], limits):
            return
        attempts = await self._leader.lead(metagraph, state, schedule.group(candidates, state, barred))
        self._settle(metagraph, state[0], attempts)

    def _settle(self, metagraph: Metagraph, epoch: int, attempts: Sequence[Attempt]) -> None:
        """Remember who spoiled attempts, forgive who delivered, and have the new state published."""
        exclusions = self._memory.exclusions
        for attempt in attempts:
            spoilers = [metagraph.hotkeys[uid] for uid in sorted(attempt.named)]
            exclusions = schedule.exclude(exclusions, spoilers, epoch)
            for uid, hotkey in zip(sorted(attempt.named), spoilers, strict=True):
                until = exclusions[hotkey].until_epoch
                self._telemetry.emit(Excluded(uid=self._node.uid, miner=uid, epoch=epoch, until_epoch=until))
        if attempts and attempts[-1].completed:
            last = attempts[-1]
            contributors = [m.uid for m in last.group if m.contributes and m.uid in last.confirmed]
            exclusions = schedule.forgive(exclusions, {metagraph.hotkeys[uid] for uid in contributors})
            samples = sum(last.answers[uid].samples for uid in contributors)
            self._publications.put_nowait((epoch + 1, samples, tuple(contributors)))
        self._memory = replace(self._memory, exclusions=exclusions)
        self._memory = without_old_exclusions(self._memory, frozenset(metagraph.hotkeys))
        self._file.save(self._memory)

    async def _publish(self) -> None:
        while True:
            epoch, samples, contributors = await self._publications.get()
            await self._publisher.publish(epoch, samples, contributors)

    async def _audit(self) -> None:
        while True:
            seen = await self._seen.get()
            metagraph = self._chain.metagraph
            before = self._memory.book
            if before.epoch is not None and seen.epoch <= before.epoch:
                continue  # the run went back to a state before; what was scored stays scored
            evidence = await self._desk.examine(metagraph, seen)
            miners = {uid: metagraph.hotkeys[uid] for uid in self._desk.miners(metagraph, seen)}
            after, rows = advance(before, seen.epoch, miners, evidence, self._rules)
            self._memory = replace(self._memory, book=after)
            self._file.save(self._memory)
            self._telemetry.emit(score_epoch(before, after, rows, self._rules))

    async def _pay(self) -> None:
        while True:
            last, block = self._memory.weights_block, self._chain.block
            due = last is None or block - last >= self._spec.scoring.weights_interval
            if due and self._memory.book.epoch is not None:
                await self._set_weights(block)
            await self._clock.sleep(TICK_SECONDS)

    async def _set_weights(self, block: int) -> None:
        metagraph = self._chain.metagraph
        if metagraph.owner_uid is None:
            raise ChainFault("the subnet's owner has no uid: there is nobody whose weight is burned")
        shares = process(
            weights(self._memory.book) or {},
            uids=len(metagraph),
            owner_uid=metagraph.owner_uid,
            min_allowed=metagraph.min_allowed_weights,
            max_limit=metagraph.max_weights_limit,
        )
        try:
            outcome = await set_weights(
                self._client, self._wallet, self._netuid, shares, version_key=self._spec.scoring.version_key
            )
            status, detail, wait = str(outcome.status), outcome.message, outcome.blocks_to_wait
        except ChainUnavailable as error:
            status, detail, wait = "unavailable", str(error), CHAIN_PATIENCE_BLOCKS
        self._telemetry.emit(
            WeightsSet(
                uid=self._node.uid,
                block=block,
                mechid=0,
                weights={str(uid): weight for uid, weight in shares.items()},
                outcome=status,
                detail=detail,
            )
        )
        interval = self._spec.scoring.weights_interval
        self._memory = replace(self._memory, weights_block=block - interval + wait if wait else block)
        self._file.save(self._memory)
