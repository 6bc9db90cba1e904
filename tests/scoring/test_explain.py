"""Weights from the log, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from distributed_training.scoring.combine import Evidence, ScoreBook, advance, weights
from distributed_training.scoring.explain import replay, score_epoch
from template.errors import CorruptState, StateError
from template.telemetry import JsonlSink, MemorySink, Telemetry, read_jsonl
from tests.scoring.evidence import FAILED, RULES, epochs_of, evidence, silent

Log = list[dict[str, Any]]


def logged(epochs: list[list[Evidence]]) -> tuple[Log, ScoreBook]:
    """The records of a validator's run, as they come back from JSON, and the book it ended with."""
    sink, book = MemorySink(), ScoreBook()
    telemetry = Telemetry([sink])
    for epoch, items in enumerate(epochs):
        after, rows = advance(book, epoch, {item.uid: item.hotkey for item in items}, items, RULES)
        telemetry.emit(score_epoch(book, after, rows, RULES))
        book = after
    return [json.loads(json.dumps(record)) for record in sink.records], book


HONEST = [[evidence(0, 30), evidence(1, 71), silent(2)]] * 3


@given(epochs_of())
def test_replay_gives_the_weights_to_the_bit(epochs: list[list[Evidence]]) -> None:
    """Any history's log leads to exactly the weights that were set."""
    log, book = logged(epochs)
    assert replay(log) == weights(book)


@given(epochs_of(max_epochs=3))
def test_replay_can_start_anywhere(epochs: list[list[Evidence]]) -> None:
    """A log whose beginning was rotated away still leads to the weights."""
    log, book = logged(epochs)
    assert replay(log[-1:]) == weights(book)


def test_replay_from_a_file_among_other_events(tmp_path: Path) -> None:
    """The JSONL file of a validator is enough; other kinds of events are passed over."""
    log, book = logged(HONEST)
    sink = JsonlSink(tmp_path / "events.jsonl")
    for record in log:
        sink.write({"kind": "Other", "time": 1.0})
        sink.write(record)
    sink.close()
    assert replay(read_jsonl(tmp_path / "events.jsonl")) == weights(book)


def test_replay_until_an_epoch() -> None:
    """The weights of an earlier epoch can be asked for."""
    log, _ = logged([[evidence(0, 1), evidence(1, 3)], [evidence(0, 3), evidence(1, 1)]])
    assert replay(log, until=0) == pytest.approx({0: 0.25, 1: 0.75})


def test_burn_is_replayed_as_burn() -> None:
    """A log of nobody earning leads to None."""
    log, _ = logged([[silent(0), evidence(1, audits=(FAILED,))]])
    assert log[0]["burn"] is True
    assert replay(log) is None


def edited(log: Log, *path: Any, value: Any) -> Log:
    """The log with one number changed."""
    target: Any = log
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return log


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((1, "rows", 0, "after", "ema"), 99.0, "uid 0: the evidence gives after.ema"),
        ((1, "rows", 1, "weight"), 0.5, "uid 1: the evidence gives weight"),
        ((1, "rows", 0, "before", "ema"), 0.0, "uid 0: the evidence gives before.ema"),
        ((0, "rows", 0, "evidence", "steps", "samples"), 31, "epoch 0, uid 0"),
        ((0, "rows", 0, "evidence", "audits", 0, "agreement"), 0.95, "epoch 0, uid 0"),
        ((2, "rules", "scoring", "ema"), 0.3, "epoch 2, uid 0"),
        ((2, "burn"), True, "burn is logged as True"),
        ((1, "previous_epoch"), None, "epoch 1, uid 0: the evidence gives before.ema 0.0"),
        ((2, "previous_epoch"), 0, "goes from epoch 1 to 2, which follows 0"),
    ],
)
def test_an_edited_log_is_found_out(path: tuple[Any, ...], value: Any, message: str) -> None:
    """A changed number, in the evidence or in what follows from it, is named."""
    log, _ = logged(HONEST)
    with pytest.raises(StateError, match=message):
        replay(edited(log, *path, value=value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((0, "rows", 0, "outcome"), "fine", "outcome"),
        ((0, "rows"), "none", "rows"),
        ((0, "rules", "scoring", "ema"), 7.0, "impossible rules"),
        ((0, "rows", 1, "evidence", "uid"), 0, "scores a uid twice"),
        ((0, "previous_epoch"), 5, "logged after epoch 5"),
    ],
)
def test_a_malformed_log_is_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    """A record of the wrong shape is an error that names the place."""
    log, _ = logged(HONEST)
    with pytest.raises(CorruptState, match=message):
        replay(edited(log, *path, value=value))


def test_an_empty_log_is_not_burn() -> None:
    """No scored epoch is an error; burning is a decision."""
    with pytest.raises(CorruptState, match="no scored epoch"):
        replay([])
    with pytest.raises(CorruptState, match="up to epoch -1"):
        replay(logged(HONEST)[0], until=-1)
