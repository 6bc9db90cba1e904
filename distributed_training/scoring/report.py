"""What a validator tells a miner of its own scores: the synapse `Report`, and how the miner checks the answer.

The answer is signed by the validator's hotkey like every other, so a miner can keep it and show it to others.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

from pydantic import Field, JsonValue

from distributed_training.protocol import Epoch, Uid
from distributed_training.scoring.combine import Row, ScoreBook, score_miner
from distributed_training.scoring.explain import EpochScored, differences, scored_epoch
from template.errors import BadResponse, CorruptState, StateError
from template.transport.synapse import Message, Request, Response

MAX_REPORTED = 16  # epochs in one answer


class ReportedEpoch(Message):
    """One scored epoch. `scored` is the `EpochScored` event with the caller's row only.

    `total` is the sum of the averages of all miners, which the caller's average is divided by.
    """

    total: Annotated[float, Field(ge=0)]
    scored: dict[str, JsonValue]


class ReportResponse(Response):
    """The caller's epochs, oldest first. `first` and `last` are the epochs that the validator still has in all."""

    validator: Uid
    first: Epoch | None
    last: Epoch | None
    epochs: Annotated[tuple[ReportedEpoch, ...], Field(max_length=MAX_REPORTED)]


class Report(Request):
    """Asks a validator for the caller's own scores: the last `limit` epochs, up to and with `until` if it is given."""

    Answer: ClassVar[type[Response]] = ReportResponse

    until: Epoch | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_REPORTED)] = MAX_REPORTED


def total_of(book: ScoreBook) -> float:
    """The sum that the averages are divided by."""
    return math.fsum(entry.ema for entry in book.entries)


def reported(event: EpochScored, row: Row, total: float) -> ReportedEpoch:
    """What the miner of `row` is told of an epoch."""
    own: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(event, rows=(row,)))))
    return ReportedEpoch(total=total, scored=own)


def checked(epochs: Iterable[ReportedEpoch], hotkey: str) -> tuple[tuple[EpochScored, float], ...]:
    """The events in a report and their totals, each computed again from its evidence.

    Raises:
        BadResponse: not the rows of `hotkey`, or not in order.
        StateError: the evidence does not lead to the numbers that are reported; the message names the first one.
    """
    found: list[tuple[EpochScored, float]] = []
    for item in epochs:
        try:
            event = scored_epoch(item.scored)
        except CorruptState as error:
            raise BadResponse(f"the report is not one: {error}") from error
        if [row.evidence.hotkey for row in event.rows] != [hotkey]:
            raise BadResponse(f"epoch {event.epoch} of the report is not of hotkey {hotkey}")
        if found and found[-1][0].epoch >= event.epoch:
            raise BadResponse(f"the report goes from epoch {found[-1][0].epoch} to {event.epoch}")
        check_row(event, item.total)
        if found and found[-1][0].epoch == event.previous_epoch:
            _require_continued(found[-1][0].rows[0], event.rows[0], event.epoch)
        found.append((event, item.total))
    return tuple(found)


def check_row(event: EpochScored, total: float) -> None:
    """Compute the only row of an event again.

    Raises:
        StateError: it is another one; the message names the first number.
    """
    (row,) = event.rows
    weight = row.after.ema / total if total > 0 else 0.0
    computed = dataclasses.replace(score_miner(row.before, row.evidence, event.epoch, event.rules), weight=weight)
    if computed != row:
        raise StateError(f"epoch {event.epoch}, uid {row.evidence.uid}: {differences(row, computed)}")


def _require_continued(before: Row, after: Row, epoch: int) -> None:
    if before.after != after.before:
        raise StateError(
            f"epoch {epoch}, uid {after.evidence.uid}: it begins with an average of {after.before.ema!r}, and the "
            f"epoch before ended with {before.after.ema!r}"
        )
