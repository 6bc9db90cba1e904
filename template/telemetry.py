"""Typed events for everything that is measured or refused, written to any number of sinks. No sink, no cost.

An event is a frozen dataclass; its class name is its kind. A sink receives the flat record
`{"kind": ..., "time": ..., **fields}` and must not raise for a well-formed record.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from template.clock import Clock, SystemClock


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events. Fields are plain JSON values: numbers, strings, booleans, None, lists and dicts of these."""


Record = Mapping[str, Any]


class Sink(Protocol):
    """Where records go."""

    def write(self, record: Record) -> None:
        """Take one record, now or soon."""

    def close(self) -> None:
        """Flush and release; `write` must not be called afterwards."""


class Telemetry:
    """Stamps events with the clock and hands them to the sinks."""

    def __init__(self, sinks: Iterable[Sink] = (), clock: Clock | None = None) -> None:
        self._sinks = tuple(sinks)
        self._clock = clock or SystemClock()

    def emit(self, event: Event) -> None:
        if not self._sinks:
            return
        record = {"kind": type(event).__name__, "time": self._clock.time(), **dataclasses.asdict(event)}
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


class MemorySink:
    """Keeps the records in `records`; for tests."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        return


class JsonlSink:
    """One JSON object a line, flushed at once, so that a reader or a crash loses nothing."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file; a last line that a crash cut short is left out."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
