"""A validator's event log, read for what bears on scores and weights. Other kinds of events are passed over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from distributed_training.events import (
    AttemptVoid,
    AuditNotPossible,
    Excluded,
    NeuronStarted,
    RoundFinished,
    RoundLed,
    Unseen,
    WeightsSet,
)
from distributed_training.scoring.explain import EpochScored, scored_epoch
from template.errors import ConfigurationError, CorruptState
from template.telemetry import Event

AnyEvent = TypeVar("AnyEvent", bound=Event)
VALIDATOR = "validator"


@dataclass(frozen=True)
class Written:
    """One event and when it was written (seconds since the Unix epoch)."""

    time: float
    event: Event


@dataclass(frozen=True, kw_only=True)
class Log:
    """One validator's log of one run, in the order of the file.

    `run_id` and `validator` (uid) are None if the beginning is missing, as after a rotation. `torn`: the last line is
    not complete, because the validator is writing it or was killed.
    """

    path: Path
    run_id: str | None
    validator: int | None
    events: tuple[Written, ...] = field(repr=False)
    torn: bool

    @property
    def scored(self) -> tuple[EpochScored, ...]:
        return tuple(self.of(EpochScored))

    def of(self, kind: type[AnyEvent]) -> Iterator[AnyEvent]:
        """The events of one kind."""
        return (written.event for written in self.events if isinstance(written.event, kind))


def read_log(path: Path, run_id: str | None = None) -> Log:
    """Read a log; of several runs, the one that is asked for.

    Raises:
        ConfigurationError: no such file, not a validator's, nothing scored in it, or not the run that was asked for.
        CorruptState: a line is no event; the message names it.
    """
    lines, torn = _lines(path)
    runs: dict[str | None, list[Written]] = {}
    starts: dict[str | None, NeuronStarted] = {}
    current: str | None = None
    for number, line in enumerate(lines, start=1):
        written = _event(path, number, line)
        if written is None:
            continue
        if isinstance(written.event, NeuronStarted):
            current = written.event.run_id
            starts[current] = written.event
        runs.setdefault(current, []).append(written)
    chosen = _chosen(path, set(runs), run_id)
    start = starts.get(chosen)
    if start is not None and start.role != VALIDATOR:
        raise ConfigurationError(
            f"{path} is the log of a {start.role}: give a validator's, or use --mine to ask the validators"
        )
    # a beginning that was rotated away took its run's name along
    events = [*runs.get(None, ()), *(runs[chosen] if chosen is not None else ())]
    if not any(isinstance(written.event, EpochScored) for written in events):
        what = "the torn last line, and no scored epoch" if torn else "no scored epoch"
        raise ConfigurationError(
            f"{path} holds {what}: give the file that a validator writes by --telemetry.jsonl, once it has scored"
        )
    uid = start.uid if start is not None else None
    return Log(path=path, run_id=chosen, validator=uid, events=tuple(events), torn=torn)


def _chosen(path: Path, runs: set[str | None], wanted: str | None) -> str | None:
    named = {run for run in runs if run is not None}
    if wanted is not None:
        if wanted not in named:
            known = ", ".join(sorted(named)) or "no run by name"
            raise ConfigurationError(f"{path} is the log of another run than {wanted}: it holds {known}")
        return wanted
    if len(named) > 1:
        raise ConfigurationError(f"{path} holds several runs: choose one with --run_id, of {', '.join(sorted(named))}")
    return next(iter(named), None)


def _lines(path: Path) -> tuple[list[str], bool]:
    """The whole lines, and whether one more was begun."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as a log: {error}; give a validator's events.jsonl") from error
    *lines, rest = text.split("\n")
    return lines, bool(rest)


def _event(path: Path, number: int, line: str) -> Written | None:
    """The event on one line, or None if it is of no kind that matters here."""
    try:
        record = json.loads(line)
        kind, time = record["kind"], float(record["time"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptState(
            f"{path}, line {number} is no event: the file is damaged there, or is not an event log; remove the line to "
            "see the rest"
        ) from error
    if kind == EpochScored.__name__:
        return Written(time, scored_epoch(record))
    cls = _KINDS.get(kind)
    return None if cls is None else Written(time, _parsed(cls, record, f"{path}, line {number}"))


def _parsed(cls: type[AnyEvent], record: Mapping[str, Any], where: str) -> AnyEvent:
    fields = {key: value for key, value in record.items() if key not in ("kind", "time")}
    try:
        event: AnyEvent = _ADAPTERS[cls].validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise CorruptState(
            f"{where}: {cls.__name__}.{name}: {first['msg']}; was it written by another version of this software?"
        ) from error
    return event


_KINDS: dict[str, type[Event]] = {
    cls.__name__: cls
    for cls in (NeuronStarted, RoundFinished, RoundLed, AttemptVoid, Excluded, Unseen, AuditNotPossible, WeightsSet)
}
_ADAPTERS: dict[type[Event], TypeAdapter[Any]] = {cls: TypeAdapter(cls) for cls in _KINDS.values()}
