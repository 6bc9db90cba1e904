"""Reproduce weights from the log, to the bit.

`EpochScored` is the event that a validator writes after each epoch. It holds the evidence, the rules and every number
in between, so `replay` can start at any event: it computes each epoch again from the evidence and refuses a log whose
numbers it does not find again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distributed_training.scoring.combine import Entry, Row, Rules, ScoreBook, advance, weights
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


def scored_epoch(record: Mapping[str, Any]) -> EpochScored:
    """The event in a record of its kind.

    Raises:
        CorruptState: the record does not have its shape.
    """
    fields = {key: value for key, value in record.items() if key not in ("kind", "time")}
    try:
        return _EVENT.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CorruptState(f"not a score of an epoch in the log: {where}: {first['msg']}") from error
    except ConfigurationError as error:
        raise CorruptState(f"impossible rules in the log: {error}") from error


def scored_epochs(records: Iterable[Mapping[str, Any]]) -> Iterator[EpochScored]:
    """The `EpochScored` events among the records of a log, in the order of the log; raises as `scored_epoch` does."""
    return (scored_epoch(record) for record in records if record.get("kind") == EpochScored.__name__)


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
        book = replay_epoch(book, event)
    if book is None:
        raise CorruptState("the log holds no scored epoch" + ("" if until is None else f" up to epoch {until}"))
    return weights(book)


def replay_epoch(book: ScoreBook | None, event: EpochScored) -> ScoreBook:
    """The book after an epoch, computed from its evidence. `book` is the one before; None: take it from the event.

    A validator whose memory was lost starts from an empty book again, which its log shows by `previous_epoch` None.

    Raises:
        CorruptState: the event contradicts itself.
        StateError: the evidence does not lead to the numbers that were logged; the message names the first one.
    """
    if book is None:
        book = book_before(event)
    elif event.previous_epoch is None:
        book = ScoreBook()
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
            raise StateError(f"epoch {event.epoch}, uid {logged.evidence.uid}: {differences(logged, computed)}")
    if event.burn != (weights(after) is None):
        raise StateError(f"epoch {event.epoch}: burn is logged as {event.burn}")
    return after


def book_before(event: EpochScored) -> ScoreBook:
    """What the event says was remembered of its miners before it."""
    entries = tuple(row.before for row in event.rows if row.before != blank(row.before))
    return ScoreBook(epoch=event.previous_epoch, entries=entries)


def blank(entry: Entry) -> Entry:
    """The entry of a hotkey that nothing is remembered of."""
    return Entry(uid=entry.uid, hotkey=entry.hotkey)


def differences(logged: Any, computed: Any, name: str = "") -> str:
    """The first number that differs, by its name."""
    if not dataclasses.is_dataclass(computed):
        return f"the evidence gives {name} {computed!r}, the log says {logged!r}"
    for field in dataclasses.fields(computed):
        ours, theirs = getattr(computed, field.name), getattr(logged, field.name)
        if ours != theirs:
            return differences(theirs, ours, f"{name}.{field.name}".lstrip("."))
    raise AssertionError("the rows are equal")
