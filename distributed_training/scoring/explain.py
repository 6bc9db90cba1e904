"""Reproduce weights from the log, to the bit, and say for a person where they come from.

`EpochScored` is the event that a validator writes after each epoch. It holds the evidence, the rules and every number
in between, so `replay` can start at any event: it computes each epoch again from the evidence and refuses a log whose
numbers it does not find again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distributed_training.scoring.combine import Row, Rules, ScoreBook, advance, weights
from template.errors import ConfigurationError, CorruptState, StateError
from template.telemetry import Event


@dataclass(frozen=True, kw_only=True)
class EpochScored(Event):
    """The scores of one epoch. `previous_epoch` is the last one scored before; `burn`: nobody earned anything."""

    epoch: int
    previous_epoch: int | None
    burn: bool
    rules: Rules
    rows: tuple[Row, ...]


_EVENT = TypeAdapter(EpochScored)


def score_epoch(before: ScoreBook, after: ScoreBook, rows: tuple[Row, ...], rules: Rules) -> EpochScored:
    """The event of what `advance` returned."""
    assert after.epoch is not None, "a book that was advanced has an epoch"
    return EpochScored(
        epoch=after.epoch, previous_epoch=before.epoch, burn=weights(after) is None, rules=rules, rows=rows
    )


def scored_epochs(records: Iterable[Mapping[str, Any]]) -> Iterable[EpochScored]:
    """The `EpochScored` events among the records of a log, in the order of the log.

    Raises:
        CorruptState: a record of that kind does not have its shape.
    """
    for record in records:
        if record.get("kind") != EpochScored.__name__:
            continue
        fields = {key: value for key, value in record.items() if key not in ("kind", "time")}
        try:
            yield _EVENT.validate_python(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CorruptState(f"not a score of an epoch in the log: {where}: {first['msg']}") from error
        except ConfigurationError as error:
            raise CorruptState(f"impossible rules in the log: {error}") from error


def replay(records: Iterable[Mapping[str, Any]], *, until: int | None = None) -> dict[int, float] | None:
    """Compute the weights again from the evidence in the log, up to and with epoch `until` (default: the last).

    Returns:
        Weight by uid as `combine.weights` gave it, or None for burn.

    Raises:
        CorruptState: the log has no scored epoch, or a record does not have its shape.
        StateError: the evidence does not lead to the numbers that were logged; the message names the first one.
    """
    book: ScoreBook | None = None
    for event in scored_epochs(records):
        if until is not None and event.epoch > until:
            break
        book = _replay_epoch(book if book is not None else _book_before(event), event)
    if book is None:
        raise CorruptState("the log holds no scored epoch" + ("" if until is None else f" up to epoch {until}"))
    return weights(book)


def render(event: EpochScored, uid: int) -> str:
    """The weight of one miner in one epoch, for a person, with every number in full precision.

    Raises:
        StateError: the uid was not scored in that epoch.
    """
    row = next((row for row in event.rows if row.evidence.uid == uid), None)
    if row is None:
        raise StateError(f"uid {uid} was not scored in epoch {event.epoch}")
    total = "burned: nobody earned anything" if event.burn else f"{row.weight!r} = {row.after.ema!r} / sum of all"
    lines = [
        f"epoch {event.epoch}, uid {uid}, hotkey {row.evidence.hotkey}",
        f"  weight        {total}",
        f"  average       {_average(row, event.rules)}",
        f"  outcome       {row.outcome}" + (f" ({row.reason})" if row.reason else ""),
        *_factors(row, event.rules),
        *(f"  audit         record {a.number}: {a.finding}, agreement {a.agreement!r}" for a in row.evidence.audits),
        *(f"  round         {standing}" for standing in row.evidence.standings),
    ]
    return "\n".join(lines)


def _average(row: Row, rules: Rules) -> str:
    alpha = rules.scoring.ema
    if row.outcome == "scored":
        return f"{row.after.ema!r} = (1 - {alpha!r}) * {row.before.ema!r} + {alpha!r} * {row.score.score!r}"
    return f"{row.after.ema!r} (was {row.before.ema!r})"


def _factors(row: Row, rules: Rules) -> list[str]:
    score, steps, beta = row.score, row.evidence.steps, rules.scoring.bandwidth_share
    return [
        f"  score         {score.score!r} = g * s * (1 - {beta!r} + {beta!r} * b) * p",
        f"  g gradient    {_number(score.gradient)} (worst of {len(row.evidence.audits)} audits)",
        f"  s samples     {score.samples} in {steps.counted} records; {steps.off_assignment} off assignment, "
        f"{steps.duplicate} duplicate, {steps.failed} failed",
        f"  b bandwidth   {_number(score.bandwidth)} ({score.bandwidth_source}; "
        f"{len(row.evidence.transfers)} transfers)",
        f"  p part        {_number(score.participation)} ({score.participation_source})",
    ]


def _number(value: float | None) -> str:
    return "none" if value is None else repr(value)


def _book_before(event: EpochScored) -> ScoreBook:
    return ScoreBook(epoch=event.previous_epoch, entries=tuple(row.before for row in event.rows))


def _replay_epoch(book: ScoreBook, event: EpochScored) -> ScoreBook:
    if book.epoch != event.previous_epoch:
        raise StateError(f"the log goes from epoch {book.epoch} to {event.epoch}, which follows {event.previous_epoch}")
    miners = {row.evidence.uid: row.evidence.hotkey for row in event.rows}
    if len(miners) != len(event.rows):
        raise CorruptState(f"epoch {event.epoch} scores a uid twice")
    if event.previous_epoch is not None and event.previous_epoch >= event.epoch:
        raise CorruptState(f"epoch {event.epoch} is logged after epoch {event.previous_epoch}")
    after, rows = advance(book, event.epoch, miners, [row.evidence for row in event.rows], event.rules)
    for logged, computed in zip(event.rows, rows, strict=True):
        if logged != computed:
            raise StateError(f"epoch {event.epoch}, uid {logged.evidence.uid}: {_difference(logged, computed)}")
    if event.burn != (weights(after) is None):
        raise StateError(f"epoch {event.epoch}: burn is logged as {event.burn}")
    return after


def _difference(logged: Row, computed: Row) -> str:
    """The first field that differs, by its name."""
    for field in dataclasses.fields(Row):
        ours, theirs = getattr(computed, field.name), getattr(logged, field.name)
        if ours != theirs:
            return f"the evidence gives {field.name} {ours!r}, the log says {theirs!r}"
    raise AssertionError("the rows are equal")
