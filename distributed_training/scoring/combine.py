"""From the evidence of one epoch to scores, and from scores to weights.

    score  = g * s * (1 - beta + beta * b) * p          g gradient, s samples, b bandwidth, p participation
    ema    = (1 - alpha) * ema + alpha * score          one per (uid, hotkey), over the epochs it was observed in
    weight = ema / sum of all ema                       all zero: no weights, the caller burns

The moving average runs over scores and not over shares of one epoch: a share depends on who else was sampled in that
epoch, which would pay a machine for splitting itself over several uids whenever only a part of the miners is sampled.

It begins at zero and is not corrected for that. Summed over time an average is then exactly the scores that went into
it: each sample is paid once, sooner or later. What a newcomer is not paid in its first epochs (`epochs_to_fair_share`)
it is paid afterwards, and coming and going, or coming back under another hotkey, earns nothing. A correction would pay
the first epoch in full and then once more while the average fades. For the same reason epochs in which a miner was not
sampled change nothing: were the next sample to count for them too, work would pay best where one was not seen for long.

A score is held back for `held_epochs` epochs in which the miner was observed before it enters the average, and is lost
if an audit fails meanwhile. Chance alone decides when a cheat is caught for the first time, and what it was paid by
then it keeps; so nothing is paid before audits have had that many chances. Honest work is paid later and not less.

A miner that the leader left out of the round could deliver nothing, and one whose work nobody looked at has proved
nothing: each keeps what it has, as far as this epoch's work bears it out. So neither harms anybody who works as before,
and neither pays anybody who does not.

`advance` is pure: the next `ScoreBook` and one `Row` a miner that holds everything that entered its weight.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distributed_training.run import AuditSpec, ScoringSpec
from distributed_training.scoring.bandwidth import Measured, bandwidth_score
from distributed_training.scoring.gradient import AuditResult, Finding, gradient_score
from distributed_training.scoring.participation import Standing, participation_score
from distributed_training.scoring.steps import NO_STEPS, Steps
from template.errors import CorruptState


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The sections of the run spec that decide what is paid."""

    audit: AuditSpec
    scoring: ScoringSpec


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that this validator saw of one miner in one epoch.

    `unobserved` says why the validator could not observe it, if that was not the miner's doing; empty otherwise. A
    miner that did not answer was observed: it has no steps. `unshown` says what it kept to itself of what it put into
    the average; then its steps do not count.
    """

    uid: int
    hotkey: str
    audits: tuple[AuditResult, ...] = ()
    steps: Steps = NO_STEPS
    transfers: tuple[Measured, ...] = ()
    standings: tuple[Standing, ...] = ()
    unobserved: str = ""
    unshown: str = ""


class Outcome(StrEnum):
    """What happened to a miner's moving average in one epoch."""

    SCORED = "scored"
    FAILED_AUDIT = "failed an audit: set to zero"
    PENALTY = "unpaid after a failed audit"
    LEFT_OUT = "left out by the leader: no more than before"
    UNAUDITED = "not audited: no more than before"
    KEPT = "kept: not observed"


# Epochs in which what a contributor keeps to itself a second time is no broken line any more: it hides what it sent, or
# helps a reducer to hide what that made of it. An honest miner whose line breaks at that moment once in a thousand
# epochs is taken for one once in fifty thousand.
AGAIN = 20
CAPPED = frozenset((Outcome.LEFT_OUT, Outcome.UNAUDITED))


class Source(StrEnum):
    """Where a number of the formula comes from."""

    MEASURED = "measured this epoch"
    LAST_KNOWN = "last known"
    LEFT_OUT = "never measured: the term is left out"
    EXCUSED = "no round it could deliver in"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is remembered of one miner. `unpaid_through` is the last epoch of its penalty, None without one.

    `held`: scores that are not paid for yet, oldest first. `unshown`: the last epoch in which it kept its part to
    itself.
    """

    uid: int
    hotkey: str
    ema: float = 0.0
    bandwidth: float | None = None
    unpaid_through: int | None = None
    held: tuple[float, ...] = ()
    unshown: int | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """The factors of one miner's score and where they come from. `gradient` is None if no record was audited."""

    gradient: float | None
    samples: int
    bandwidth: float | None
    bandwidth_source: Source
    participation: float | None
    participation_source: Source
    score: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """Everything that made one miner's weight in one epoch. `reason` is for a person."""

    evidence: Evidence
    before: Entry
    outcome: Outcome
    reason: str
    score: Score
    after: Entry
    weight: float


@dataclass(frozen=True, kw_only=True)
class ScoreBook:
    """What a validator remembers between epochs: one entry a uid, in order of uid; `epoch` is the last one scored."""

    epoch: int | None = None
    entries: tuple[Entry, ...] = ()

    def unpaid(self, epoch: int) -> frozenset[str]:
        """The hotkeys that earn nothing in `epoch` because an audit failed."""
        entries = self.entries
        return frozenset(e.hotkey for e in entries if e.unpaid_through is not None and epoch <= e.unpaid_through)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values; `load_state_dict` gives back an equal book."""
        return dataclasses.asdict(self)

    @staticmethod
    def load_state_dict(state: Mapping[str, Any]) -> ScoreBook:
        """The book of a state dict.

        Raises:
            CorruptState: it is not one.
        """
        try:
            book = _BOOK.validate_python(dict(state))
        except ValidationError as error:
            raise CorruptState(f"not the state of a score book: {error.errors()[0]['msg']}") from error
        uids = [entry.uid for entry in book.entries]
        numbers = (number for entry in book.entries for number in (entry.ema, *entry.held))
        if uids != sorted(set(uids)) or not all(0 <= number < math.inf for number in numbers):
            raise CorruptState("not the state of a score book: uids out of order, or an average that is not a number")
        return book


_BOOK = TypeAdapter(ScoreBook)


def advance(
    book: ScoreBook, epoch: int, miners: Mapping[int, str], evidence: Iterable[Evidence], rules: Rules
) -> tuple[ScoreBook, tuple[Row, ...]]:
    """Score one epoch.

    Args:
        book: what was remembered before.
        epoch: the epoch that the evidence is of; later than `book.epoch`. Epochs in between change nothing.
        miners: hotkey by uid, as the metagraph has them now. Who is not in it, or was replaced, is forgotten.
        evidence: at most one a miner; evidence of a hotkey that has left is not used. A miner without any is kept.
        rules: the run's numbers.

    Raises:
        ValueError: the epoch was scored before, or a miner has two pieces of evidence.
    """
    if book.epoch is not None and epoch <= book.epoch:
        raise ValueError(f"epoch {epoch} cannot be scored after epoch {book.epoch}")
    remembered = {(entry.uid, entry.hotkey): entry for entry in book.entries}
    seen: dict[tuple[int, str], Evidence] = {}
    for item in evidence:
        if (item.uid, item.hotkey) in seen:
            raise ValueError(f"two pieces of evidence of uid {item.uid}")
        seen[item.uid, item.hotkey] = item
    rows = []
    for key in sorted(miners.items()):
        before = remembered.get(key) or Entry(uid=key[0], hotkey=key[1])
        item = seen.get(key) or Evidence(uid=key[0], hotkey=key[1], unobserved="not sampled")
        rows.append(score_miner(before, item, epoch, rules))
    after = ScoreBook(epoch=epoch, entries=tuple(row.after for row in rows))
    shares = weights(after) or {}
    return after, tuple(dataclasses.replace(row, weight=shares.get(row.after.uid, 0.0)) for row in rows)


def absent(book: ScoreBook, miners: Collection[int], hotkeys: Sequence[str]) -> tuple[Evidence, ...]:
    """Evidence of who is remembered, still holds its uid (`hotkeys` by uid), and is not among the `miners` any more.

    Who hides its address is silent, and not forgotten: it would come back without its penalty.
    """
    return tuple(
        Evidence(uid=entry.uid, hotkey=entry.hotkey, standings=(Standing.ABSENT,))
        for entry in book.entries
        if entry.uid not in miners and entry.uid < len(hotkeys) and hotkeys[entry.uid] == entry.hotkey
    )


def weights(book: ScoreBook) -> dict[int, float] | None:
    """Share of the pay by uid, summing to 1; None if nobody earned anything, which means burn."""
    total = math.fsum(entry.ema for entry in book.entries)
    if total <= 0:
        return None
    return {entry.uid: entry.ema / total for entry in book.entries}


def combine(evidence: Evidence, last_bandwidth: float | None, rules: Rules) -> Score:
    """The score of one miner from what was seen of it alone: nothing that another miner does can change it."""
    gradient = gradient_score(evidence.audits, rules.audit.threshold)
    bandwidth, bandwidth_source = _bandwidth(evidence, last_bandwidth, rules)
    participation = participation_score(evidence.standings)
    found = Score(
        gradient=gradient,
        samples=0 if evidence.unshown else evidence.steps.samples,
        bandwidth=bandwidth,
        bandwidth_source=bandwidth_source,
        participation=participation,
        participation_source=Source.EXCUSED if participation is None else Source.MEASURED,
        score=0.0,
    )
    return found if gradient is None else dataclasses.replace(found, score=_product(gradient, found, rules))


def _product(gradient: float, found: Score, rules: Rules) -> float:
    beta, bandwidth = rules.scoring.bandwidth_share, found.bandwidth
    line = 1.0 if bandwidth is None else 1.0 - beta + beta * bandwidth
    presence = 1.0 if found.participation is None else found.participation
    return gradient * found.samples * line * presence


def _claimed(found: Score, rules: Rules) -> float:
    """The score, if what nobody looked at is as it was reported: good enough for what can only be lowered by it."""
    return found.score if found.gradient is not None else _product(1.0, found, rules)


def _bandwidth(evidence: Evidence, last: float | None, rules: Rules) -> tuple[float | None, Source]:
    measured = bandwidth_score(evidence.transfers, rules.scoring.reference_rate)
    if measured is not None:
        return measured, Source.MEASURED
    return last, Source.LEFT_OUT if last is None else Source.LAST_KNOWN


def score_miner(before: Entry, evidence: Evidence, epoch: int, rules: Rules) -> Row:
    """One miner's row from what was seen of it alone; its weight, which takes all rows, is left at zero."""
    score = combine(evidence, before.bandwidth, rules)
    outcome, reason = _outcome(before, evidence, score, epoch)
    ema, unpaid_through, held = before.ema, before.unpaid_through, before.held
    if outcome is Outcome.FAILED_AUDIT:
        ema, unpaid_through, held = 0.0, epoch + rules.scoring.penalty_epochs, ()
    elif outcome is Outcome.PENALTY:
        ema, held = 0.0, ()
    elif outcome is Outcome.SCORED:
        due, held = _due((*before.held, score.score), rules.scoring.held_epochs)
        ema = _averaged(before.ema, due, rules.scoring.ema)
    elif outcome in CAPPED:
        ema = min(before.ema, _averaged(before.ema, _claimed(score, rules), rules.scoring.ema))
    after = dataclasses.replace(before, ema=ema, bandwidth=score.bandwidth, unpaid_through=unpaid_through, held=held)
    if evidence.unshown:
        after = dataclasses.replace(after, unshown=epoch)
    return Row(evidence=evidence, before=before, outcome=outcome, reason=reason, score=score, after=after, weight=0.0)


def _due(scores: tuple[float, ...], held_epochs: int) -> tuple[float, tuple[float, ...]]:
    """The score that is paid for now, 0 if none has been held for long enough, and those that are held on."""
    return (scores[0], scores[1:]) if len(scores) > held_epochs else (0.0, scores)


def _averaged(before: float, score: float, alpha: float) -> float:
    return (1.0 - alpha) * before + alpha * score


def _outcome(before: Entry, evidence: Evidence, score: Score, epoch: int) -> tuple[Outcome, str]:
    """A failed audit is evidence even if the rest of the epoch was not observed; so it is asked first."""
    failed = [audit for audit in evidence.audits if not audit.passed]
    if failed or score.gradient == 0:
        return Outcome.FAILED_AUDIT, "; ".join(f"{subject(audit)}: {audit.finding}" for audit in failed)
    if evidence.unshown and before.unshown is not None and epoch - before.unshown <= AGAIN:
        return Outcome.FAILED_AUDIT, f"{evidence.unshown}, as in epoch {before.unshown}"
    if before.unpaid_through is not None and epoch <= before.unpaid_through:
        return Outcome.PENALTY, f"through epoch {before.unpaid_through}"
    if evidence.unobserved:
        return Outcome.KEPT, evidence.unobserved
    if score.participation is None and evidence.standings:
        return _not_in_any_round(evidence.standings)
    if evidence.unshown:
        return Outcome.SCORED, evidence.unshown
    if score.gradient is None and evidence.steps.samples > 0 and score.participation != 0:
        return Outcome.UNAUDITED, "none of its records was audited"
    if score.score == 0:
        return Outcome.SCORED, "no verified samples" if evidence.steps.samples == 0 else "delivered in no round"
    return Outcome.SCORED, ""


def subject(audit: AuditResult) -> str:
    """What was audited, for a person: one record, all that went into the average, or what it made of others' parts."""
    if audit.finding is Finding.NOT_REDUCED:
        return "reduction"
    return "contribution" if audit.number is None else f"record {audit.number}"


def _not_in_any_round(standings: Iterable[Standing]) -> tuple[Outcome, str]:
    if Standing.LEFT_OUT in standings:
        return Outcome.LEFT_OUT, "in no round that counts; its work of this epoch went into no average"
    return Outcome.KEPT, "in no round that counts, through no doing of its own"


def epochs_to_fair_share(alpha: float, within: float = 0.05, held_epochs: int = 0) -> int:
    """R: after so many epochs in which a newcomer was observed, its average is at most `within` short of its score."""
    return held_epochs + (1 if alpha == 1 else math.ceil(math.log(within) / math.log(1 - alpha)))
