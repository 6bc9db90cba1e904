"""Who wins a round: pure, from the trials of all entries on the same seeds.

An entry's standing follows from its own trials, those of the references and those of the champion; what else takes part
changes none of it. It must pass the gate: train as DDP does, communicate, and gain by it. It must be new, by its code
and by what it does. Then it takes the throne if it beats who sits there: entries come in the order of their
commitments, so that who came later must beat who came before as if that one had been champion, and a tie goes to the
first.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from distributed_training.arena.contest.fingerprint import Fingerprint, similarity
from distributed_training.arena.contest.interval import Interval, interval
from distributed_training.arena.contest.spec import APART, DDP, RuleSpec
from distributed_training.arena.trial import Trial, metric
from template.errors import ContestError

SAME_CURVE = 1e-4  # relative difference of losses, in all evaluations of all seeds, below which two entries are one

AT_LEAST = 0.5  # of the earlier one must be in the later: who commits a heap of known code has not taken it from all

Trials = Mapping[int, Trial]  # by seed


class Status(StrEnum):
    """What became of an entry."""

    CHAMPION = "champion"  # holds the throne after the round
    SURPASSED = "surpassed"  # would have taken the throne, but another did
    BEATEN = "beaten"  # did not beat who was on the throne
    DUPLICATE = "duplicate"
    NO_TRAINING = "no_training"
    NO_COMMUNICATION = "no_communication"
    NO_GAIN = "no_gain_by_communicating"
    FAILED = "failed"  # it broke off, or broke a rule of the sandbox
    REFUSED = "refused"  # before it was run


SOUND = (Status.CHAMPION, Status.SURPASSED, Status.BEATEN)  # nothing but the throne was in their way


@dataclass(frozen=True)
class Entry:
    """What took part: `order` of its commitment (block, then hotkey), its source and trials.

    `problem`: why there are no trials, as a status and a line.
    """

    hotkey: str
    order: tuple[int, str]
    source: str
    fingerprint: Fingerprint
    trials: Trials
    problem: tuple[Status, str] | None = None


@dataclass(frozen=True)
class Known:
    """What an entry may not be a copy of: a reference, or an earlier submission."""

    name: str
    fingerprint: Fingerprint
    trials: Trials = field(default_factory=dict)
    hotkey: str | None = None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """An entry's result. `metric`: mean over the seeds of the loss reached within the budget; `gains`: relative, paired
    by seed, over each reference and over who held the throne when it was its turn."""

    hotkey: str
    source: str
    status: Status
    reason: str
    metric: float | None = None
    gains: Mapping[str, Interval] = field(default_factory=dict)
    over_throne: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Throne:
    """Who is to be beaten; `hotkey` and `source` None: a reference, nobody is paid."""

    name: str
    trials: Trials
    hotkey: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Judgement:
    """Who holds the throne now, and how all entries stand, in the order of their commitments."""

    throne: Throne
    standings: tuple[Standing, ...]


def judge(
    entries: Sequence[Entry],
    champion: Throne | None,
    references: Mapping[str, Trials],
    known: Sequence[Known],
    rules: RuleSpec,
    budget: float,
) -> Judgement:
    """The round's result. `references` are by name, `known` in the order in which they came; all trials have the same
    seeds."""
    throne = champion or strongest(references, budget)
    standings: list[Standing] = []
    seen = [*known]
    for entry in sorted(entries, key=lambda entry: entry.order):
        standing = _standing(entry, throne, references, seen, rules, budget)
        if standing.status is Status.CHAMPION:
            standings = [_overtaken(s, entry.hotkey) for s in standings]
            throne = Throne(name=entry.hotkey, trials=entry.trials, hotkey=entry.hotkey, source=entry.source)
        standings.append(standing)
        if standing.status in SOUND:
            seen.append(Known(entry.hotkey, entry.fingerprint, entry.trials, entry.hotkey))
    return Judgement(throne, tuple(standings))


def strongest(references: Mapping[str, Trials], budget: float) -> Throne:
    """The reference that is to be beaten while there is no champion; not the one that does not communicate."""
    candidates = {name: trials for name, trials in references.items() if name != APART}
    name = min(candidates, key=lambda name: (mean_metric(candidates[name], budget), name))
    return Throne(name=name, trials=candidates[name])


def mean_metric(trials: Trials, budget: float) -> float:
    """Over the seeds."""
    return statistics.fmean(metric(trial, budget) for trial in trials.values())


def gain(entry: Trials, other: Trials, budget: float, confidence: float) -> Interval:
    """How much lower the entry's loss is, as a share of the other's, paired by seed."""
    pairs = ((metric(entry[seed], budget), metric(other[seed], budget)) for seed in sorted(other))
    return interval([(theirs - mine) / theirs for mine, theirs in pairs], confidence)


def beats(found: Interval, rules: RuleSpec) -> bool:
    """Whether such a gain dethrones."""
    return found.low > 0 and found.mean > rules.epsilon


def gate(trials: Trials, references: Mapping[str, Trials], quality: float) -> tuple[Status, str] | None:
    """Why an entry cannot win, if it cannot: it does not train, does not communicate, or gains nothing by it.

    Raises:
        ContestError: DDP itself does not train.
    """
    if any(0 in t.sent or 0 in t.received for t in trials.values()):
        return Status.NO_COMMUNICATION, "a node sent or received nothing"
    ddp, apart = ({seed: references[name][seed] for seed in trials} for name in (DDP, APART))
    if any(t.loss >= t.curve[0].loss for t in ddp.values()):
        raise ContestError("DDP does not train in this contest: nothing can be measured against it")
    shares = [(t.curve[0].loss - t.loss) / (t.curve[0].loss - ddp[seed].loss) for seed, t in trials.items()]
    share = statistics.fmean(shares)
    if not share >= quality:
        return Status.NO_TRAINING, f"it gained {share:.1%} of what DDP gains in these steps; {quality:.0%} are needed"
    mine, alone = (statistics.fmean(t.loss for t in found.values()) for found in (trials, apart))
    if not mine < alone:
        return Status.NO_GAIN, f"nodes that train apart end at {alone:.4f}, these at {mine:.4f}"
    return None


def duplicate_of(entry: Entry, known: Sequence[Known], limit: float) -> str | None:
    """What the entry is a copy of, and by what. A hotkey may submit its own source again."""
    for other in known:
        if other.hotkey == entry.hotkey:
            continue
        share = similarity(entry.fingerprint, other.fingerprint)
        if share >= limit and similarity(other.fingerprint, entry.fingerprint) >= AT_LEAST:
            return f"{share:.0%} of its code is that of {other.name}"
        if other.trials and same_behaviour(entry.trials, other.trials):
            return f"it does what {other.name} does"
    return None


def same_behaviour(mine: Trials, other: Trials) -> bool:
    """Whether parameters end the same to the bit, or all curves lie upon each other, with the same bytes sent."""
    if not mine or mine.keys() != other.keys():
        return False
    return all(_same(mine[seed], other[seed]) for seed in mine)


def _same(mine: Trial, other: Trial) -> bool:
    if mine.params_sha256 == other.params_sha256:
        return True
    pairs = zip(mine.curve, other.curve, strict=True)
    return mine.sent == other.sent and all(abs(a.loss - b.loss) <= SAME_CURVE * b.loss for a, b in pairs)


def _standing(
    entry: Entry,
    throne: Throne,
    references: Mapping[str, Trials],
    known: Sequence[Known],
    rules: RuleSpec,
    budget: float,
) -> Standing:
    problem = entry.problem
    copied = duplicate_of(entry, known, rules.similarity)
    if problem is None and copied is not None:
        problem = Status.DUPLICATE, copied
    if not entry.trials:
        assert problem is not None, "an entry without trials has a reason for it"
        return Standing(hotkey=entry.hotkey, source=entry.source, status=problem[0], reason=problem[1])
    over = gain(entry.trials, throne.trials, budget, rules.confidence)
    problem = problem or gate(entry.trials, references, rules.quality)
    if problem is None:
        won = beats(over, rules)
        text = f"gain over {throne.name}: {over.mean:+.2%}, between {over.low:+.2%} and {over.high:+.2%}"
        problem = (Status.CHAMPION if won else Status.BEATEN), text
    return Standing(
        hotkey=entry.hotkey,
        source=entry.source,
        status=problem[0],
        reason=problem[1],
        metric=mean_metric(entry.trials, budget),
        gains={name: gain(entry.trials, other, budget, rules.confidence) for name, other in references.items()},
        over_throne=over,
    )


def _overtaken(standing: Standing, hotkey: str) -> Standing:
    if standing.status is not Status.CHAMPION:
        return standing
    reason = f"{standing.reason}; then surpassed by {hotkey}"
    return Standing(**{**vars(standing), "status": Status.SURPASSED, "reason": reason})
