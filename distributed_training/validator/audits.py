"""Auditing one epoch: ask the miners for their records, recompute a few of them, and gather the evidence for scores.

Which records are recomputed is drawn from the validator's own randomness, and only after the records were received; the
more samples a record claims, the likelier it is drawn.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from distributed_training.averaging.outcome import RoundOutcome
from distributed_training.data.loader import Loader
from distributed_training.engine.audit import Auditor
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import Audited, AuditNotPossible, Unseen
from distributed_training.model.layout import Vector
from distributed_training.peers import targets, validators_of
from distributed_training.protocol import MAX_RECORDS_PER_PAGE, NO_SUCH_EPOCH, Record, Train, TrainResponse
from distributed_training.run import RunSpec
from distributed_training.scoring.bandwidth import Measured
from distributed_training.scoring.combine import Evidence
from distributed_training.scoring.gradient import AuditResult, judge
from distributed_training.scoring.participation import RoundSeen, standing
from distributed_training.scoring.steps import MicroBatch, Steps, verified_samples
from template.chain.metagraph import Metagraph
from template.errors import DataError, StateError
from template.telemetry import Telemetry
from template.transport.dendrite import NOT_SENT, Dendrite, Outcome, Target

TRAIN_SECONDS = 10.0
UNCLAIMED = 1e-3  # the weight of a record without samples in the draw


@dataclass(frozen=True)
class EpochSeen:
    """What this validator saw of an epoch that was averaged: its own outcome, and the rounds by uid.

    `bases`: the parameters [P], by state hash, that the epoch may have been trained at: θₑ and, in a run with overlap,
    θₑ₋₁ if this validator was there already.
    """

    epoch: int
    state_hash: str
    bases: Mapping[str, Vector]
    outcome: RoundOutcome
    rounds: tuple[RoundSeen, ...]


@dataclass(frozen=True)
class _Report:
    """What one miner reported, and the hash of the state that its records were computed at.

    `unobserved`: why it could not be asked or looked at, which is not its fault.
    """

    records: tuple[Record, ...] = ()
    base_hash: str = ""
    unobserved: str = ""


def drawn(records: Sequence[Record], count: int, rng: random.Random) -> list[Record]:
    """`count` different records (all, if there are no more), each draw in proportion to the samples they claim.

    A record that claims more than it did is then caught more often by as much as it claims more, so overstating never
    pays. Weighted sampling without replacement after Efraimidis and Spirakis (2006).
    """

    def key(record: Record) -> float:
        return math.log(1.0 - rng.random()) / max(record.samples, UNCLAIMED)

    return sorted(records, key=key, reverse=True)[:count]


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

    async def examine(self, metagraph: Metagraph, seen: EpochSeen, *, late: bool = False) -> tuple[Evidence, ...]:
        """The evidence of one epoch, for a random sample of the miners.

        `late`: so long after its end that a miner who kept no records of it is not to blame.
        """
        miners = targets(metagraph, self.miners(metagraph, seen))
        count = min(len(miners), self._spec.audit.miners_per_epoch)
        sample = sorted(self._rng.sample(miners, count), key=lambda target: target.uid)
        reports = await self._reports(sample, seen, late)
        return tuple([await self._examine_miner(target, reports[target.uid], seen) for target in sample])

    def miners(self, metagraph: Metagraph, seen: EpochSeen) -> frozenset[int]:
        """The uids that are scored: all that serve an axon and are given data, validators only if they contributed."""
        given_data = range(min(len(metagraph), self._spec.data.max_uids))
        serving = {uid for uid in given_data if metagraph.axons[uid] is not None}
        contributed = {uid for round_seen in seen.rounds for uid in round_seen.asked}
        return frozenset(serving - (validators_of(metagraph, self._spec.epoch.validator_stake) - contributed))

    async def _reports(self, sample: list[Target], seen: EpochSeen, late: bool) -> dict[int, _Report]:
        """All records of each miner; pages are asked for until the number it stated is reached, or none come."""
        reports = {target.uid: _Report() for target in sample}
        waiting = {target.uid: target for target in sample}
        for offset in range(0, self._loader.micro_batches_per_epoch, MAX_RECORDS_PER_PAGE):
            request = Train(run_id=self._spec.run_id, epoch=seen.epoch, offset=offset)
            outcomes = await self._dendrite.broadcast(tuple(waiting.values()), request, TRAIN_SECONDS)
            for uid, outcome in outcomes.items():
                answer, problem = outcome.response, _problem(outcome, seen)
                if problem is not None:
                    self._telemetry.emit(Unseen(uid=self._uid, miner=uid, synapse="Train", reason=problem))
                if self._is_ours(outcome, seen, late):
                    reports[uid] = _Report(unobserved=f"the validator could not ask or look: {problem}")
                if problem is not None or not isinstance(answer, TrainResponse):
                    del waiting[uid]
                    continue
                reports[uid] = _Report((*reports[uid].records, *answer.records), answer.base_hash)
                if not answer.records or answer.total_records <= offset + MAX_RECORDS_PER_PAGE:
                    del waiting[uid]
            if not waiting:
                break
        return reports

    def _is_ours(self, outcome: Outcome, seen: EpochSeen, late: bool) -> bool:
        """Whether it is our own doing, or our coming late, that this answer cannot be examined."""
        if isinstance(outcome.response, TrainResponse):
            came_later = self._spec.epoch.overlap and seen.epoch > 0 and len(seen.bases) == 1
            return came_later and _at_epoch(outcome.response, seen) and outcome.response.base_hash not in seen.bases
        return outcome.reason == NOT_SENT or (late and outcome.reason == NO_SUCH_EPOCH)

    async def _examine_miner(self, target: Target, report: _Report, seen: EpochSeen) -> Evidence:
        uid, hotkey, records = target.uid, target.hotkey, report.records
        if report.unobserved:
            return Evidence(uid=uid, hotkey=hotkey, unobserved=report.unobserved)
        audits, trouble = await self._audits(uid, report, seen)
        if trouble:
            self._telemetry.emit(AuditNotPossible(uid=self._uid, epoch=seen.epoch, reason=trouble))
            return Evidence(
                uid=uid, hotkey=hotkey, audits=audits, unobserved=f"the validator could not audit: {trouble}"
            )
        return Evidence(
            uid=uid,
            hotkey=hotkey,
            audits=audits,
            steps=await asyncio.to_thread(self._steps, uid, seen.epoch, records, audits),
            transfers=_measured(seen.outcome, uid),
            standings=tuple(standing(uid, round_seen) for round_seen in seen.rounds),
        )

    async def _audits(self, uid: int, report: _Report, seen: EpochSeen) -> tuple[tuple[AuditResult, ...], str]:
        """The audits that could be made, and what kept us from making the others; empty if nothing did."""
        audits: list[AuditResult] = []
        for record in drawn(report.records, self._spec.audit.records_per_miner, self._rng):
            try:
                audits.append(await self._audit(uid, record, seen.epoch, seen.bases[report.base_hash]))
            except (DataError, StateError) as error:  # our corpus or our own numbers: nothing that the miner did
                return tuple(audits), str(error)
        return tuple(audits), ""

    def _steps(self, uid: int, epoch: int, records: Sequence[Record], audits: Sequence[AuditResult]) -> Steps:
        failed = {audit.number for audit in audits if not audit.passed}
        return verified_samples(records, self._assigned(uid, epoch, records), failed)

    def _assigned(self, uid: int, epoch: int, records: Iterable[Record]) -> Mapping[int, MicroBatch]:
        """The assignment behind the reported numbers. What a page holds is checked where a record is recomputed."""
        return {
            record.number: MicroBatch(pages=self._loader.pages(epoch, uid, record.number), samples=record.samples)
            for record in records
            if record.number < self._loader.micro_batches_per_epoch
        }

    async def _audit(self, uid: int, record: Record, epoch: int, base: Vector) -> AuditResult:
        number = record.number if record.number < self._loader.micro_batches_per_epoch else 0
        batch = await asyncio.to_thread(self._loader.micro_batch, epoch, uid, number)
        recomputed = await self._worker.run(lambda _: self._auditor.recompute(epoch, base, batch))
        result = judge(uid, epoch, record, recomputed, batch.pages, self._spec.audit)
        self._telemetry.emit(
            Audited(
                uid=self._uid,
                miner=uid,
                epoch=epoch,
                number=record.number,
                agreement=result.agreement,
                passed=result.passed,
                reason=str(result.finding),
                loss_difference=result.loss_difference,
                gradient_difference=result.gradient_difference,
            )
        )
        return result


def _problem(outcome: Outcome, seen: EpochSeen) -> str | None:
    """Why an answer holds no records of this epoch that we can recompute; None if it does."""
    answer = outcome.response
    if not isinstance(answer, TrainResponse):
        return str(outcome.error)
    if not _at_epoch(answer, seen):
        return f"its records are of epoch {answer.epoch}, state {answer.state_hash[:12]}, not of {seen.state_hash[:12]}"
    if answer.base_hash not in seen.bases:
        known = ", ".join(base[:12] for base in seen.bases)
        return f"its records were computed at the state {answer.base_hash[:12]}, not at {known}"
    return None


def _at_epoch(answer: TrainResponse, seen: EpochSeen) -> bool:
    return (answer.epoch, answer.state_hash) == (seen.epoch, seen.state_hash)


def _measured(outcome: RoundOutcome, uid: int) -> tuple[Measured, ...]:
    return tuple(
        Measured(bytes=transfer.bytes_received, seconds=transfer.seconds_receiving)
        for transfer in outcome.transfers
        if transfer.uid == uid and transfer.bytes_received > 0
    )
