"""What a miner is told of its scores: complete, found again to the bit, and false if it was changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

from distributed_training.scoring.combine import Evidence, ScoreBook, advance
from distributed_training.scoring.explain import score_epoch
from distributed_training.scoring.report import ReportedEpoch, ReportResponse, checked, reported, total_of
from template.errors import BadResponse, StateError
from tests.scoring.evidence import FAILED, RULES, epochs_of, evidence, silent


def reports(epochs: list[list[Evidence]], uid: int = 0) -> tuple[ReportedEpoch, ...]:
    """What `uid` is told of these epochs, as it comes out of the wire."""
    book, told = ScoreBook(), []
    for epoch, items in enumerate(epochs):
        after, rows = advance(book, epoch, {item.uid: item.hotkey for item in items}, items, RULES)
        row = next(row for row in rows if row.evidence.uid == uid)
        told.append(reported(score_epoch(book, after, rows, RULES), row, total_of(after)))
        book = after
    answer = ReportResponse(validator=9, first=0, last=len(epochs) - 1, epochs=tuple(told))
    return ReportResponse.model_validate_json(answer.model_dump_json()).epochs


STORY = [[evidence(0, 30), evidence(1, 71)], [evidence(0, audits=(FAILED,)), silent(1)], [evidence(0), evidence(1)]]


@given(epochs_of())
def test_any_history_is_found_again(epochs: list[list[Evidence]]) -> None:
    """Every number of the miner's rows, over the wire and to the bit, the weight included."""
    told = reports(epochs)
    assert [event.epoch for event, _ in checked(told, "hot0")] == list(range(len(epochs)))


def test_a_report_holds_the_caller_s_row_only() -> None:
    """And says what the others' averages sum to."""
    (event, total), *_ = checked(reports(STORY), "hot0")
    assert [row.evidence.uid for row in event.rows] == [0]
    assert event.rows[0].weight == event.rows[0].after.ema / total == pytest.approx(30 / 101)


Change = Callable[[dict[str, Any]], object]


def raised(field: str) -> Change:
    """That number of the row, by the smallest amount there is."""

    def change(item: dict[str, Any]) -> None:
        target = item["scored"]["rows"][0]
        *path, last = field.split(".")
        for name in path:
            target = target[name]
        target[last] = math.nextafter(target[last], 1e9)

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (raised("after.ema"), StateError, r"epoch 0, uid 0: the evidence gives after\.ema 6\.0"),
        (raised("weight"), StateError, r"the evidence gives weight"),
        (raised("score.score"), StateError, r"the evidence gives score\.score 30\.0"),
        (lambda item: item.update(total=50.0), StateError, r"the evidence gives weight 0\.12"),
        (lambda item: item["scored"]["rows"][0].update(outcome="well done"), BadResponse, "the report is not one"),
        (lambda item: item["scored"].update(rows=[]), BadResponse, "epoch 0 of the report is not of hotkey hot0"),
        (lambda item: item["scored"].update(epoch=1), BadResponse, "the report goes from epoch 1 to 1"),
    ],
)
def test_a_false_report_is_found_out(change: Change, error: type[Exception], message: str) -> None:
    """By the first number that does not follow."""
    first, *others = (item.model_dump() for item in reports(STORY))
    change(first)
    with pytest.raises(error, match=message):
        checked([ReportedEpoch(**item) for item in (first, *others)], "hot0")


def test_an_average_that_changes_between_epochs_is_found_out() -> None:
    """Each epoch of the report may be right in itself, and yet not follow the one before."""
    told = reports(STORY)
    other = reports([[evidence(0, 90), evidence(1, 71)], *STORY[1:]])
    with pytest.raises(StateError, match=r"it begins with an average of 6\.0, and the epoch before ended with 18\.0"):
        checked((other[0], told[1]), "hot0")


def test_another_s_report_is_refused() -> None:
    """A validator cannot pass off one miner's scores as another's."""
    with pytest.raises(BadResponse, match="is not of hotkey hot1"):
        checked(reports(STORY), "hot1")
