"""Auditing one epoch: ask the miners for their records, recompute a few of them, and gather the evidence for scores.

Which records are recomputed is drawn from the validator's own randomness, and only after the records were received.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distributed_training.averaging.outcome import RoundOutcome
from distributed_training.data.loader import Loader
from distributed_training.engine.audit import Auditor
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import Audited, AuditNotPossible, Unseen
from distributed_training.model.layout import Vector
from distributed_training.peers import targets, validators_of
from distributed_training.protocol import MAX_RECORDS_PER_PAGE, Record, Train, TrainResponse
from distributed_training.run import RunSpec
from distributed_training.scoring.bandwidth import Measured
from distributed_training.scoring.combine import Evidence
from distributed_training.scoring.gradient import AuditResult, judge
from distributed_training.scoring.participation import RoundSeen, standing
from distributed_training.scoring.steps import NO_STEPS, MicroBatch, verified_samples
from template.chain.metagraph import Metagraph
from template.errors import DataError
from template.telemetry import Telemetry
from template.transport.dendrite import Dendrite, Target

TRAIN_SECONDS = 10.0


@dataclass(frozen=True)
class EpochSeen:
    """What this validator saw of an epoch that was averaged: θₑ [P], its own outcome, and the rounds by uid."""

    epoch: int
    base: Vector
    outcome: RoundOutcome
    rounds: tuple[RoundSeen, ...]


class AuditDesk:
    """Audits for one validator. `rng` must be unpredictable to miners (`random.SystemRandom` outside tests)."""

    def __init__(
        self,
        *,
        uid: int,
        spec: RunSpec,
        loader: Loader,
        auditor: Auditor,
        worker: TrainingWorker,
        dendrite: Dendrite,
        telemetry: Telemetry,
        rng: random.Random,
    ) -> None:
        self._uid = uid
        self._spec = spec
        self._loader = loader
        self._auditor = auditor
        self._worker = worker
        self._dendrite = dendrite
        self._telemetry = telemetry
        self._rng = rng

    async def examine(self, metagraph: Metagraph, seen: EpochSeen) -> tuple[Evidence, ...]:
        """The evidence of one epoch, for a random sample of the miners."""
        miners = targets(metagraph, self.miners(metagraph, seen))
        count = min(len(miners), self._spec.audit.miners_per_epoch)
        sample = sorted(self._rng.sample(miners, count), key=lambda target: target.uid)
        reports = await self._reports(sample, seen.epoch)
        return tuple([await self._examine_miner(target, reports.get(target.uid), seen) for target in sample])

    def miners(self, metagraph: Metagraph, seen: EpochSeen) -> frozenset[int]:
        """The uids that are scored: all that serve an axon, but validators only if they put something in."""
        serving = {uid for uid, axon in enumerate(metagraph.axons) if axon is not None}
        contributed = {uid for round_seen in seen.rounds for uid in round_seen.asked}
        return frozenset(serving - (validators_of(metagraph, self._spec.epoch.validator_stake) - contributed))

    async def _reports(self, sample: list[Target], epoch: int) -> dict[int, tuple[Record, ...]]:
        """All records of each miner that answered; pages are asked for until the number it stated is reached."""
        records: dict[int, list[Record]] = {}
        waiting = {target.uid: target for target in sample}
        for offset in range(0, self._loader.micro_batches_per_epoch, MAX_RECORDS_PER_PAGE):
            request = Train(run_id=self._spec.run_id, epoch=epoch, offset=offset)
            outcomes = await self._dendrite.broadcast(tuple(waiting.values()), request, TRAIN_SECONDS)
            for uid, outcome in outcomes.items():
                answer = outcome.response
                if not isinstance(answer, TrainResponse):
                    self._telemetry.emit(Unseen(uid=self._uid, miner=uid, synapse="Train", reason=str(outcome.error)))
                    del waiting[uid]
                    continue
                records.setdefault(uid, []).extend(answer.records)
                if answer.total_records <= offset + MAX_RECORDS_PER_PAGE:
                    del waiting[uid]
            if not waiting:
                break
        return {uid: tuple(reported) for uid, reported in records.items()}

    async def _examine_miner(self, target: Target, records: tuple[Record, ...] | None, seen: EpochSeen) -> Evidence:
        standings = tuple(standing(target.uid, round_seen) for round_seen in seen.rounds)
        transfers = _measured(seen.outcome, target.uid)
        if not records:
            return Evidence(
                uid=target.uid, hotkey=target.hotkey, steps=NO_STEPS, transfers=transfers, standings=standings
            )
        chosen = self._rng.sample(records, min(len(records), self._spec.audit.records_per_miner))
        try:
            audits = [await self._audit(target.uid, record, seen) for record in chosen]
        except DataError as error:
            self._telemetry.emit(AuditNotPossible(uid=self._uid, epoch=seen.epoch, reason=str(error)))
            return Evidence(uid=target.uid, hotkey=target.hotkey, unobserved=f"the validator's corpus: {error}")
        assigned = self._assigned(target.uid, seen.epoch, records)
        failed = {audit.number for audit in audits if not audit.passed}
        return Evidence(
            uid=target.uid,
            hotkey=target.hotkey,
            audits=tuple(audits),
            steps=verified_samples(records, assigned, failed),
            transfers=transfers,
            standings=standings,
        )

    def _assigned(self, uid: int, epoch: int, records: Iterable[Record]) -> Mapping[int, MicroBatch]:
        """The assignment behind the reported numbers. What a page holds is checked where a record is recomputed."""
        return {
            record.number: MicroBatch(pages=self._loader.pages(epoch, uid, record.number), samples=record.samples)
            for record in records
            if record.number < self._loader.micro_batches_per_epoch
        }

    async def _audit(self, uid: int, record: Record, seen: EpochSeen) -> AuditResult:
        number = record.number if record.number < self._loader.micro_batches_per_epoch else 0
        batch = await asyncio.to_thread(self._loader.micro_batch, seen.epoch, uid, number)
        recomputed = await self._worker.run(lambda _: self._auditor.recompute(seen.epoch, seen.base, batch))
        result = judge(uid, seen.epoch, record, recomputed, batch.pages, self._spec.audit)
        self._telemetry.emit(
            Audited(
                uid=self._uid,
                miner=uid,
                epoch=seen.epoch,
                number=record.number,
                agreement=result.agreement,
                passed=result.passed,
                reason=str(result.finding),
                loss_difference=result.loss_difference,
                gradient_difference=result.gradient_difference,
            )
        )
        return result


def _measured(outcome: RoundOutcome, uid: int) -> tuple[Measured, ...]:
    return tuple(
        Measured(bytes=transfer.bytes_received, seconds=transfer.seconds_receiving)
        for transfer in outcome.transfers
        if transfer.uid == uid and transfer.bytes_received > 0
    )
