"""Auditing one epoch: what miners reported is held against a recomputation, and against what they put into the average.

Records are those that each miner bound itself to before anybody could read them (inquiry.py). Whether its contribution
is their sum is looked at for everybody who sent us a part (scoring/contribution.py); that costs no computing. Which
records are recomputed is drawn from the validator's own randomness, and only after they were received
(scoring/sampling.py). Whatever the validator itself cannot do is told as its own, and changes nobody's score.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import numpy as np

from distributed_training.averaging.exhibits import Exhibits
from distributed_training.averaging.outcome import RoundOutcome, RoundResult
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.rule_names import MEAN
from distributed_training.averaging.witness import sighting_of
from distributed_training.data.loader import Loader
from distributed_training.engine.audit import Auditor
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import Audited, AuditNotPossible, AverageNotExplained
from distributed_training.peers import targets, validators_of
from distributed_training.protocol import Record
from distributed_training.run import RunSpec
from distributed_training.scoring.bandwidth import Measured
from distributed_training.scoring.combine import Evidence
from distributed_training.scoring.contribution import (
    Put,
    Sent,
    judge_sum,
    unexplained,
)
from distributed_training.scoring.gradient import AuditResult
from distributed_training.scoring.participation import standing
from distributed_training.scoring.replay import as_records
from distributed_training.scoring.sampling import drawn
from distributed_training.scoring.steps import MicroBatch, Steps, verified_samples
from distributed_training.validator.inquiry import EpochSeen, Inquiry, Report
from distributed_training.validator.recomputation import Recomputation, Subject
from distributed_training.validator.reductions import Findings, Reduction, ReductionDesk, draw, likeliest
from distributed_training.validator.replays import Owing, ReplayDesk
from template.chain.metagraph import Metagraph
from template.clock import Clock, SystemClock
from template.errors import DataError, StateError
from template.telemetry import Telemetry
from template.transport.dendrite import Dendrite, Target

__all__ = ["AuditDesk", "EpochSeen"]

Look = Callable[[], Awaitable[tuple[tuple[AuditResult, ...], str]]]  # the audits, and why it is not observed, if not


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
        exhibits: Exhibits,
        in_time: Callable[[int], bool],
        clock: Clock | None = None,
        replays: ReplayDesk | None = None,
    ) -> None:
        """`exhibits` shows what contributors sent in a round, while `in_time` says of its epoch that they keep it."""
        self._replays = replays
        self._uid = uid
        self._spec = spec
        self._loader = loader
        self._layout = auditor.layout
        self._inquiry = Inquiry(
            uid=uid,
            spec=spec,
            most=loader.micro_batches_per_epoch,
            dendrite=dendrite,
            telemetry=telemetry,
            clock=clock or SystemClock(),
        )
        self._reductions = ReductionDesk(
            uid=uid,
            reducers=spec.audit.reducers,
            exhibits=exhibits,
            in_time=in_time,
            telemetry=telemetry,
            rng=rng,
        )
        self._recomputation = Recomputation(spec=spec, loader=loader, auditor=auditor, worker=worker, rng=rng)
        self._telemetry = telemetry
        self._rng = rng

    async def examine(self, metagraph: Metagraph, seen: EpochSeen, *, late: bool = False) -> tuple[Evidence, ...]:
        """The evidence of one epoch, for a random sample of the miners.

        `late`: so long after its end that a miner who kept no records of it is not to blame.
        """
        miners = targets(metagraph, self.miners(metagraph, seen))
        sample = self._sampled(miners, seen)
        reports = await self._inquiry.reports(sample, seen, late=late)
        put = self._put(reports, seen)
        self._explain(put, seen)
        findings = await self._reduced(reports, put, seen)
        looks = self._looks(sample, reports, seen)
        evidence = [await self._examine_miner(t, reports[t.uid], looks[t.uid], seen) for t in sample]
        return tuple(self._with(found, findings) for found in evidence)

    def _sampled(self, miners: Sequence[Target], seen: EpochSeen) -> list[Target]:
        """Some drawn at random, and all that owe something."""
        owing: frozenset[str] = frozenset()
        if self._replays is not None:
            self._replays.begin(seen, {target.uid: target.hotkey for target in miners})
            owing = self._replays.owing
        count = min(len(miners), self._spec.audit.miners_per_epoch)
        drawn = {target.uid for target in self._rng.sample(miners, count)}
        return [t for t in sorted(miners, key=lambda t: t.uid) if t.uid in drawn or t.hotkey in owing]

    def _looks(self, sample: Sequence[Target], reports: Mapping[int, Report], seen: EpochSeen) -> dict[int, Look]:
        """How each miner's work is looked at: some records computed again, or a stretch of its own steps replayed."""
        if self._replays is None:
            chosen = drawn({uid: report.records for uid, report in reports.items()}, self._spec.audit, self._rng)
            return {
                uid: functools.partial(self._recomputed, uid, report, chosen[uid], seen)
                for uid, report in reports.items()
            }
        stretches, desk = self._replays.drawn(reports, seen), self._replays
        return {
            target.uid: functools.partial(
                self._replayed, desk, target, reports[target.uid], stretches.get(target.uid), seen, sample
            )
            for target in sample
        }

    def keep(self, plan: RoundPlan, result: RoundResult) -> Reduction | None:
        """What `examine` needs of a completed round to look at its reducers; drawn now, when everybody is bound."""
        if result.average is None or not self._spec.audit.reducers:
            return None
        return draw(plan, result.outcome, result.average, self._rng)

    def miners(self, metagraph: Metagraph, seen: EpochSeen) -> frozenset[int]:
        """The uids that are scored: all that serve an axon and are given data, validators only if they contributed."""
        given_data = range(min(len(metagraph), self._spec.data.max_uids))
        serving = {uid for uid in given_data if metagraph.axons[uid] is not None}
        contributed = {uid for round_seen in seen.rounds for uid in round_seen.asked}
        return frozenset(serving - (validators_of(metagraph, self._spec.epoch.validator_stake) - contributed))

    async def _reduced(self, reports: Mapping[int, Report], put: list[Put] | None, seen: EpochSeen) -> Findings:
        """Look at reducers among those whose reports were asked for."""
        if seen.reduction is None:
            return Findings()
        sightings = seen.outcome.sightings
        suspects = [] if sightings is None or put is None else likeliest(sightings, put)
        return await self._reductions.examine(seen.epoch, seen.reduction, reports.keys(), suspects)

    def _with(self, evidence: Evidence, findings: Findings) -> Evidence:
        """The evidence of a miner, and what it did as a reducer or kept to itself."""
        lie, unshown = findings.lies.get(evidence.uid), findings.unshown.get(evidence.uid, "")
        audits = evidence.audits if lie is None else (*evidence.audits, self._told(lie))
        return dataclasses.replace(evidence, audits=audits, unshown=unshown)

    def _put(self, reports: Mapping[int, Report], seen: EpochSeen) -> list[Put] | None:
        """The records and weights of all who are in the average; None if some are not here."""
        records = {
            uid: as_records(reports[uid].records, reports[uid].marks) if uid in reports else ()
            for uid in seen.outcome.participants
        }
        if not all(records.values()):
            return None
        return [Put(each, seen.outcome.weights[uid]) for uid, each in records.items()]

    def _explain(self, put: list[Put] | None, seen: EpochSeen) -> None:
        """Tell if the average is not what the records of all who are in it add up to, as far as that can be known."""
        limits, sightings = self._spec.averaging, seen.outcome.sightings
        if sightings is None or limits.codec != "none" or limits.reduction != MEAN or put is None:
            return
        off = unexplained(sightings.average, put)
        if off.size:
            reducers = sorted({int(uid) for uid in sightings.reducers[off]})
            self._telemetry.emit(
                AverageNotExplained(
                    uid=self._uid,
                    epoch=seen.epoch,
                    reducers=reducers,
                    coordinates=int(off.size),
                    of=sightings.average.size,
                )
            )

    async def _examine_miner(self, target: Target, report: Report, look: Look, seen: EpochSeen) -> Evidence:
        uid, hotkey, records = target.uid, target.hotkey, report.records
        if report.unobserved:
            return Evidence(uid=uid, hotkey=hotkey, unobserved=report.unobserved)
        contribution = self._contribution(uid, as_records(records, report.marks), seen)
        recomputed, unobserved = await look()
        audits = (*contribution, *recomputed)
        if unobserved:
            return Evidence(uid=uid, hotkey=hotkey, audits=audits, unobserved=unobserved)
        return Evidence(
            uid=uid,
            hotkey=hotkey,
            audits=audits,
            steps=await asyncio.to_thread(self._steps, uid, seen.epoch, records, audits),
            transfers=_measured(seen.outcome, uid),
            standings=tuple(standing(uid, round_seen) for round_seen in seen.rounds),
        )

    def _contribution(self, uid: int, records: Sequence[Record], seen: EpochSeen) -> tuple[AuditResult, ...]:
        """What the miner put into the average against its records; nothing for one that is not in it."""
        weight = seen.outcome.weights.get(uid)
        if weight is None or not records or uid not in seen.outcome.participants:
            return ()
        limits = self._spec.averaging
        sent = None if limits.error_feedback else self._sent(uid, seen)
        return (self._told(judge_sum(uid, seen.epoch, records, weight, limits.max_weight, sent)),)

    def _sent(self, uid: int, seen: EpochSeen) -> Sent | None:
        kept = sighting_of(seen.outcome.sightings, uid)
        if kept is None:
            return None
        sightings, sighting = kept
        shown = coordinates(self._spec.run_id, seen.epoch, self._layout, self._spec.audit.coordinates)
        return Sent(np.searchsorted(shown, sightings.known), sighting.known, sighting.errors)

    async def _recomputed(
        self, uid: int, report: Report, chosen: Sequence[Record], seen: EpochSeen
    ) -> tuple[tuple[AuditResult, ...], str]:
        """The audits that could be made, and what kept us from making the others; empty if nothing did."""
        if not chosen:
            return (), ""
        kept = sighting_of(seen.outcome.sightings, uid)
        subject = Subject(uid, seen.epoch, report.records, seen.bases[report.base_hash], kept)
        audits, trouble = await self._recomputation.look(subject, chosen)
        told = tuple(self._told(audit) for audit in audits)
        return told, self._not_possible(seen.epoch, trouble) if trouble else ""

    def _not_possible(self, epoch: int, reason: str) -> str:
        """Tell what is our own fault; why the miner is not observed."""
        self._telemetry.emit(AuditNotPossible(uid=self._uid, epoch=epoch, reason=reason))
        return f"the validator could not audit: {reason}"

    async def _replayed(
        self,
        desk: ReplayDesk,
        target: Target,
        report: Report,
        stretch: int | None,
        seen: EpochSeen,
        sample: Sequence[Target],
    ) -> tuple[tuple[AuditResult, ...], str]:
        """The same of a miner that makes steps of its own."""
        if target.uid not in seen.outcome.participants:
            return (), ""
        owed: list[AuditResult] = []
        try:
            owed = await desk.settled(target, seen, sample)
            results = await desk.audits(target, report, stretch, seen, sample) if report.records else []
        except Owing as error:
            return tuple(map(self._told, owed)), str(error)
        except (DataError, StateError) as error:
            return tuple(map(self._told, owed)), self._not_possible(seen.epoch, str(error))
        return tuple(map(self._told, (*owed, *results))), ""

    def _steps(self, uid: int, epoch: int, records: Sequence[Record], audits: Sequence[AuditResult]) -> Steps:
        failed = {audit.number for audit in audits if not audit.passed and audit.number is not None}
        return verified_samples(records, self._assigned(uid, epoch, records), failed)

    def _assigned(self, uid: int, epoch: int, records: Iterable[Record]) -> Mapping[int, MicroBatch]:
        """The assignment behind the reported numbers. What a page holds is checked where a record is recomputed."""
        return {
            record.number: MicroBatch(pages=self._loader.pages(epoch, uid, record.number), samples=record.samples)
            for record in records
            if record.number < self._loader.micro_batches_per_epoch
        }

    def _told(self, result: AuditResult) -> AuditResult:
        self._telemetry.emit(
            Audited(
                uid=self._uid,
                miner=result.uid,
                epoch=result.epoch,
                number=result.number,
                agreement=result.agreement,
                passed=result.passed,
                reason=str(result.finding),
                loss_difference=result.loss_difference,
                gradient_difference=result.gradient_difference,
                alignment=result.alignment,
                inflation=result.inflation,
                drift=result.drift,
                improvement=None if result.improvement is None else dataclasses.asdict(result.improvement),
            )
        )
        return result


def _measured(outcome: RoundOutcome, uid: int) -> tuple[Measured, ...]:
    return tuple(
        Measured(bytes=transfer.bytes_received, seconds=transfer.seconds_receiving)
        for transfer in outcome.transfers
        if transfer.uid == uid and transfer.bytes_received > 0
    )
