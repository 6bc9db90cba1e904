"""Asking miners for the records of an epoch, and taking only those that they bound themselves to in its round.

In the round that ended the epoch each contributor told all members a hash of its records before anything moved, and no
miner shows records before that. So whoever hands in another's records has to have had them before anybody could read
them. Records that are not the bound ones count nothing; they are no fraud either, because a miner that was restarted in
between may have lost some. Who was in no round could bind itself to nothing; its records are looked at as they are, for
they can keep what it has at most (scoring/combine.py).

What keeps a validator from asking is not held against those that it asked: a request that never left, a state that it
does not have, its own coming late, or most of those who had just taken part in the round being silent at once, which
one broken line of its own explains better than many of theirs.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distributed_training.averaging.outcome import RoundOutcome
from distributed_training.engine.records import records_hash
from distributed_training.events import AuditNotPossible, Unseen
from distributed_training.model.layout import Vector
from distributed_training.protocol import (
    MAX_RECORDS_PER_PAGE,
    NO_SUCH_EPOCH,
    NOT_YET,
    Mark,
    PeerBinding,
    Record,
    Train,
    TrainResponse,
)
from distributed_training.run import RunSpec
from distributed_training.scoring.participation import RoundSeen
from distributed_training.validator.reductions import Reduction
from template.clock import Clock
from template.telemetry import Telemetry
from template.transport.dendrite import DEADLINE, NOT_SENT, UNREACHABLE, Dendrite, Outcome, Target

TRAIN_SECONDS = 10.0
TRIES = 2  # a line that breaks for a moment is no reason to go unpaid
PAUSE_SECONDS = 0.5
PATIENCE_SECONDS = 60.0  # with who has not applied the average yet, or is just catching up


@dataclass(frozen=True)
class EpochSeen:
    """What this validator saw of an epoch that was averaged: its own outcome, and the rounds by uid.

    `bases`: the parameters [P], by state hash, that the epoch may have been trained at: θₑ and, in a run with overlap,
    θₑ₋₁ if this validator was there already. `reduction`: what was kept to look at reducers, None for nothing.
    `peers`: how the members of the round are reached.
    """

    epoch: int
    state_hash: str
    bases: Mapping[str, Vector]
    outcome: RoundOutcome
    rounds: tuple[RoundSeen, ...]
    reduction: Reduction | None = None
    peers: Mapping[int, PeerBinding] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What one miner reported, and the hash of the state that its records were computed at or its steps began at.

    `unobserved`: why it could not be asked or looked at, which is not its fault.
    """

    records: tuple[Record, ...] = ()
    base_hash: str = ""
    unobserved: str = ""
    marks: tuple[Mark, ...] = ()


class Inquiry:
    """Asks on behalf of one validator. `most`: micro-batches that an epoch gives to one uid."""

    def __init__(
        self, *, uid: int, spec: RunSpec, most: int, dendrite: Dendrite, telemetry: Telemetry, clock: Clock
    ) -> None:
        self._uid = uid
        self._spec = spec
        self._most = most
        self._dendrite = dendrite
        self._telemetry = telemetry
        self._clock = clock

    async def reports(self, sample: Sequence[Target], seen: EpochSeen, *, late: bool) -> dict[int, Report]:
        """The bound records of each miner. `late`: so long after the epoch that who kept none is not to blame."""
        gathered, silent = await self._gather(sample, seen, late)
        ours = _our_silence(silent, frozenset(gathered.keys() & set(seen.outcome.participants)))
        if ours:
            why = f"{len(silent)} of {len(gathered)} miners are silent at once, more likely a failure of our own line"
            self._telemetry.emit(AuditNotPossible(uid=self._uid, epoch=seen.epoch, reason=why))
            gathered |= {uid: Report(unobserved=why) for uid in silent}
        return {uid: await self._bound(uid, report, seen) for uid, report in gathered.items()}

    async def _gather(
        self, sample: Sequence[Target], seen: EpochSeen, late: bool
    ) -> tuple[dict[int, Report], frozenset[int]]:
        """All pages of each miner, and who was not reached; asked for until the number that it stated is there."""
        reports = {target.uid: Report() for target in sample}
        waiting = {target.uid: target for target in sample}
        silent: set[int] = set()
        for offset in range(0, self._most, MAX_RECORDS_PER_PAGE):
            request = Train(run_id=self._spec.run_id, epoch=seen.epoch, offset=offset)
            for uid, outcome in (await self._ask(tuple(waiting.values()), request)).items():
                answer, problem = outcome.response, _problem(outcome, seen)
                if problem is not None:
                    self._telemetry.emit(Unseen(uid=self._uid, miner=uid, synapse="Train", reason=problem))
                    if outcome.reason in (UNREACHABLE, DEADLINE):
                        silent.add(uid)
                if self._is_ours(outcome, seen, late):
                    reports[uid] = Report(unobserved=f"the validator could not ask or look: {problem}")
                if problem is not None or not isinstance(answer, TrainResponse):
                    del waiting[uid]
                    continue
                marks = reports[uid].marks if offset else answer.marks
                reports[uid] = Report((*reports[uid].records, *answer.records), answer.base_hash, marks=marks)
                if not answer.records or answer.total_records <= offset + MAX_RECORDS_PER_PAGE:
                    del waiting[uid]
            if not waiting:
                break
        return reports, frozenset(silent)

    async def _ask(self, targets: tuple[Target, ...], request: Train) -> dict[int, Outcome]:
        """One page of each; who cannot be reached is asked once more, who says "not yet" for a while."""
        outcomes = dict(await self._dendrite.broadcast(targets, request, TRAIN_SECONDS))
        until = self._clock.monotonic() + PATIENCE_SECONDS
        for attempt in itertools.count(1):
            again = {NOT_YET, UNREACHABLE} if attempt < TRIES else {NOT_YET}
            missing = tuple(t for t in targets if outcomes[t.uid].reason in again)
            if not missing or self._clock.monotonic() >= until:
                break
            await self._clock.sleep(PAUSE_SECONDS)
            outcomes |= await self._dendrite.broadcast(missing, request, TRAIN_SECONDS)
        return outcomes

    def _is_ours(self, outcome: Outcome, seen: EpochSeen, late: bool) -> bool:
        """Whether it is our own doing, or our coming late, that this answer cannot be examined."""
        if isinstance(outcome.response, TrainResponse):
            came_later = self._spec.epoch.overlap and seen.epoch > 0 and len(seen.bases) == 1
            return came_later and _at_epoch(outcome.response, seen) and outcome.response.base_hash not in seen.bases
        return outcome.reason == NOT_SENT or (late and outcome.reason == NO_SUCH_EPOCH)

    async def _bound(self, uid: int, report: Report, seen: EpochSeen) -> Report:
        """The report if its records are those that a participant is bound to, else one without records."""
        if report.unobserved or not report.records or uid not in seen.outcome.participants:
            return report
        stated = seen.outcome.records.get(uid)
        if stated is None:
            problem = "it bound itself to no records in the epoch's round"
        elif await asyncio.to_thread(records_hash, report.records, report.marks) != stated:
            problem = "its records are not those that it bound itself to in the epoch's round"
        else:
            return report
        self._telemetry.emit(Unseen(uid=self._uid, miner=uid, synapse="Train", reason=problem))
        return Report(base_hash=report.base_hash)


def _our_silence(silent: frozenset[int], took_part: frozenset[int]) -> bool:
    """Whether more than half of those who took part in the round a moment ago cannot be reached, two at least."""
    gone = len(silent & took_part)
    return gone >= 2 and 2 * gone > len(took_part)


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
