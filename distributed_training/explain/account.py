"""How one miner's weight of one epoch came about, computed again from the log; pure.

`account` recomputes the whole chain of epochs up to the one that is asked for, and what was set on the chain from it:
what it returns was found again, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from distributed_training.events import (
    AttemptVoid,
    AuditNotPossible,
    Excluded,
    RoundFinished,
    RoundLed,
    Unseen,
    WeightsSet,
)
from distributed_training.explain.log import Log, Written
from distributed_training.scoring.combine import Row, Rules, ScoreBook
from distributed_training.scoring.explain import EpochScored, replay_epoch
from distributed_training.scoring.participation import Standing
from distributed_training.scoring.report import total_of
from distributed_training.validator.payment import Limits, shares
from template.chain.weights import WeightsStatus, quantised
from template.errors import ConfigurationError, StateError

TRAIN = "Train"


@dataclass(frozen=True, kw_only=True)
class RoundAccount:
    """What one round said of a miner, and why. `round_id` is None if the log does not hold the round itself."""

    standing: Standing
    attempt: int | None
    round_id: str | None
    completed: bool | None
    why: str


@dataclass(frozen=True, kw_only=True)
class ChainAccount:
    """One attempt to set weights from these scores. `share` was to be set; `stored` is the u16 that the chain holds."""

    time: float
    block: int
    outcome: str
    code: str | None
    detail: str
    set_in: int | None
    share: float
    stored: int | None
    largest: int | None


@dataclass(frozen=True, kw_only=True)
class Account:
    """All that made one weight. `total` is the sum of all averages, `silences` why the miner's work was not seen."""

    validator: int | None
    run_id: str | None
    epoch: int
    scored_at: float
    burn: bool
    total: float
    rules: Rules
    row: Row
    rounds: tuple[RoundAccount, ...]
    silences: tuple[str, ...]
    exclusions: tuple[str, ...]
    chain: tuple[ChainAccount, ...]


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a whole log was found to hold: how many epochs and payments led to the numbers in it."""

    epochs: int
    first_epoch: int
    last_epoch: int
    miners: int
    payments: int
    restarts: int


def account(log: Log, uid: int, epoch: int | None = None) -> Account:
    """The account of one miner; `epoch` None: the last one that was scored.

    Raises:
        ConfigurationError: the log has no such epoch, or the uid is not in it.
        StateError: the log's numbers are not what its evidence leads to; the message names the first one.
        CorruptState: the log contradicts itself.
    """
    at = _position(log, epoch)
    books = _books(log.events[: at + 1])
    event = log.events[at].event
    assert isinstance(event, EpochScored), "found as one"
    row = next((row for row in event.rows if row.evidence.uid == uid), None)
    if row is None:
        known = ", ".join(str(row.evidence.uid) for row in event.rows)
        raise ConfigurationError(f"uid {uid} was not scored in epoch {event.epoch} of {log.path}; scored: {known}")
    book = books[event.epoch]
    return Account(
        validator=log.validator,
        run_id=log.run_id,
        epoch=event.epoch,
        scored_at=log.events[at].time,
        burn=event.burn,
        total=total_of(book),
        rules=event.rules,
        row=row,
        rounds=tuple(_rounds(log, row, event.epoch)),
        silences=tuple(_silences(log.events[:at], uid)),
        exclusions=tuple(f"out of the rounds until epoch {e.until_epoch}" for e in _exclusions(log, uid, event.epoch)),
        chain=tuple(_payments(log.events[at:], book, uid)),
    )


def replay_log(log: Log) -> Replayed:
    """Compute every weight of a log again, those that were set on the chain included.

    Raises:
        StateError, CorruptState: as `account`.
    """
    books = _books(log.events)
    payments = [event for event in log.of(WeightsSet) if event.epoch in books]
    for event in payments:
        check_payment(event, books[event.epoch])
    events = log.scored
    return Replayed(
        epochs=len(events),
        first_epoch=events[0].epoch,
        last_epoch=events[-1].epoch,
        miners=len({row.evidence.hotkey for event in events for row in event.rows}),
        payments=len(payments),
        restarts=sum(event.previous_epoch is None for event in events[1:]),
    )


def check_payment(event: WeightsSet, book: ScoreBook) -> None:
    """Hold an attempt to set weights against the scores that it names.

    Raises:
        StateError: the weights are not those that the scores lead to, or the chain holds others.
    """
    limits = Limits(**event.limits)
    expected = {str(uid): share for uid, share in shares(book, event.departed, limits).items()}
    where = f"weights of block {event.block}"
    _require_equal(where, "share", expected, event.weights)
    if event.stored and event.outcome in (WeightsStatus.SET, WeightsStatus.REVEALED):
        values = quantised({int(uid): share for uid, share in event.weights.items()}, limits.max_limit)
        _require_equal(where, "u16 on the chain", {str(uid): value for uid, value in values.items()}, event.stored)


def _require_equal(where: str, what: str, computed: dict[str, float] | dict[str, int], logged: object) -> None:
    assert isinstance(logged, dict), "an event's field"
    for uid in sorted(computed.keys() | logged.keys(), key=int):
        ours, theirs = computed.get(uid), logged.get(uid)
        if ours != theirs:
            raise StateError(f"{where}, uid {uid}: the scores give {what} {ours!r}, the log says {theirs!r}")


def _position(log: Log, epoch: int | None) -> int:
    """Where in the log the epoch was scored; the last time, if the validator's memory was lost in between."""
    places = [at for at, written in enumerate(log.events) if isinstance(written.event, EpochScored)]
    wanted = [at for at in places if epoch is None or _epoch_at(log, at) == epoch]
    if wanted:
        return wanted[-1]
    held = [_epoch_at(log, at) for at in places]
    torn = "; its last line is torn, and may be that epoch: try again when it is complete" if log.torn else ""
    reasons = "".join(f"; {event.reason}" for event in log.of(AuditNotPossible) if event.epoch == epoch)
    raise ConfigurationError(
        f"epoch {epoch} was not scored in {log.path}, which holds epochs {min(held)} to {max(held)}{reasons}{torn}"
    )


def _epoch_at(log: Log, at: int) -> int:
    event = log.events[at].event
    assert isinstance(event, EpochScored), "found as one"
    return event.epoch


def _books(events: Sequence[Written]) -> dict[int, ScoreBook]:
    """The book after each scored epoch, each computed from the one before."""
    books: dict[int, ScoreBook] = {}
    book: ScoreBook | None = None
    for written in events:
        if isinstance(written.event, EpochScored):
            book = replay_epoch(book, written.event)
            books[written.event.epoch] = book
    return books


def _rounds(log: Log, row: Row, epoch: int) -> Iterator[RoundAccount]:
    """The standings beside the rounds of the log. They are matched from the last one on, which ended the epoch."""
    standings = row.evidence.standings
    finished = [event for event in log.of(RoundFinished) if event.epoch == epoch]
    led = {event.round_id: event for event in log.of(RoundLed)}
    void = {event.round_id: event for event in log.of(AttemptVoid)}
    missing = len(standings) - len(finished)
    for number, standing in enumerate(standings):
        at = number - missing
        seen = finished[at] if at >= 0 else None
        yield RoundAccount(
            standing=standing,
            attempt=seen.attempt if seen else None,
            round_id=seen.round_id if seen else None,
            completed=seen.completed if seen else None,
            why=_why(standing, row.evidence.uid, seen, led, void),
        )


def _why(
    standing: Standing,
    uid: int,
    seen: RoundFinished | None,
    led: Mapping[str, RoundLed],
    void: Mapping[str, AttemptVoid],
) -> str:
    """What the validator saw of the miner in this round."""
    if seen is None:
        return _WHY[standing]
    if standing is Standing.VOID and seen.round_id in void:
        verdict = void[seen.round_id]
        return f"the fault of the {verdict.fault}: {verdict.reason}"
    reasons = [f"{f['role']} in {f['state']}: {f['reason']}" for f in seen.failures if f["uid"] == uid]
    leading = led.get(seen.round_id)
    if leading is not None and str(uid) in leading.refusals:
        reasons.append(f"refused: {leading.refusals[str(uid)]}")
    elif leading is not None and uid in leading.silent:
        reasons.append("never answered")
    if standing is Standing.LEFT_OUT and not seen.completed:
        reasons.append("the attempt failed, and counts against nobody else")
    return "; ".join(reasons) or _WHY[standing]


_WHY = {
    Standing.DELIVERED: "its part is in the average",
    Standing.FAILED: "its part did not come, or one before it did not and it has not made up for that yet",
    Standing.ABSENT: "it did not say that it is alive before the round",
    Standing.LEFT_OUT: "alive, and not asked by the leader: it had nothing to give, or spoiled rounds before",
    Standing.VOID: "it counts for nobody and against nobody",
}


def _silences(before: Sequence[Written], uid: int) -> Iterator[str]:
    """Why the records of the epoch were not seen: what was told since the epoch before was scored."""
    last = max((at for at, written in enumerate(before) if isinstance(written.event, EpochScored)), default=-1)
    for written in before[last + 1 :]:
        if isinstance(written.event, Unseen) and (written.event.miner, written.event.synapse) == (uid, TRAIN):
            yield written.event.reason


def _exclusions(log: Log, uid: int, epoch: int) -> Iterator[Excluded]:
    return (event for event in log.of(Excluded) if event.miner == uid and event.epoch <= epoch < event.until_epoch)


def _payments(events: Sequence[Written], book: ScoreBook, uid: int) -> Iterator[ChainAccount]:
    """The attempts to set weights from this book, each of them checked; one may end after the next epoch was scored."""
    for written in events:
        event = written.event
        if isinstance(event, WeightsSet) and event.epoch == book.epoch:
            check_payment(event, book)
            yield ChainAccount(
                time=written.time,
                block=event.block,
                outcome=event.outcome,
                code=event.code,
                detail=event.detail,
                set_in=event.set_in,
                share=event.weights.get(str(uid), 0.0),
                stored=event.stored.get(str(uid), 0) if event.stored else None,
                largest=max(event.stored.values()) if event.stored else None,
            )
