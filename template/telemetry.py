"""Typed events for everything that is measured or refused, written to any number of sinks. No sink, no cost.

An event is a frozen dataclass; its class name is its kind. A sink receives the flat record
`{"kind": ..., "time": ..., **fields}` and must not raise for a well-formed record. If it does all the same (a full
disk, a bug), the neuron goes on: the log says so once, and how many records were lost is said at the end.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.text import Text

from template.clock import Clock, SystemClock
from template.config import Secret, option
from template.errors import ConfigurationError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events. Fields are plain JSON values: numbers, strings, booleans, None, lists and dicts of these."""


Record = Mapping[str, Any]


class Sink(Protocol):
    """Where records go. `Telemetry` calls it from one thread at a time."""

    def write(self, record: Record) -> None:
        """Take one record, now or soon."""

    def close(self) -> None:
        """Flush and release; `write` must not be called afterwards. Closing twice is allowed."""


class Telemetry:
    """Stamps events with the clock and hands them to the sinks. May be used from any thread."""

    def __init__(self, sinks: Iterable[Sink] = (), clock: Clock | None = None) -> None:
        self._sinks = tuple(sinks)
        self._lost = [0 for _ in self._sinks]
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        if not self._sinks:
            return
        record = {"kind": type(event).__name__, "time": self._clock.time(), **dataclasses.asdict(event)}
        with self._lock:
            for index, sink in enumerate(self._sinks):
                self._write(index, sink, record)

    def close(self) -> None:
        """Close every sink, also if one of them cannot be closed."""
        with self._lock:
            for index, sink in enumerate(self._sinks):
                self._close(index, sink)

    def _write(self, index: int, sink: Sink, record: Record) -> None:
        try:
            sink.write(record)
        except Exception:  # a sink's failure is not the neuron's; said once, with its traceback
            self._lost[index] += 1
            if self._lost[index] == 1:
                log.exception("%s does not take records; going on without it", type(sink).__name__)

    def _close(self, index: int, sink: Sink) -> None:
        if self._lost[index]:
            log.error("%s: %d records were lost", type(sink).__name__, self._lost[index])
        try:
            sink.close()
        except Exception:  # as above; the next sink must be closed too
            log.exception("%s cannot be closed", type(sink).__name__)


class MemorySink:
    """Keeps the records in `records`; for tests."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        return


class JsonlSink:
    """One JSON object a line, flushed at once, so that a reader or a crash loses nothing. One writer a file.

    A last line that a crash cut short is removed when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut_partial_line(path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"events cannot be written to {path}: {error.strerror}") from error

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _cut_partial_line(path: Path, block: int = 65536) -> None:
    """Truncate the file after its last newline."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file; a last line that a crash cut short is left out."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


class ConsoleSink:
    """One line an event for a person: time, kind, fields. Long values are shortened.

    Texts are shown as JSON strings, so a stranger's text cannot move the cursor or paint the terminal.
    """

    LONGEST_VALUE = 60

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()

    def write(self, record: Record) -> None:
        line = Text(time.strftime("%H:%M:%S", time.localtime(record["time"])), style="dim")
        line.append(f" {record['kind']}", style="bold")
        for name, value in record.items():
            if name not in ("kind", "time"):
                line.append(f" {name}=", style="dim").append(self._shown(value))
        self._console.print(line, soft_wrap=True, highlight=False)

    def close(self) -> None:
        return

    def _shown(self, value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.6g}"
        if isinstance(value, list | tuple | dict) and value:
            return f"({len(value)} {'entries' if isinstance(value, dict) else 'items'})"
        text = json.dumps(value)
        return text if len(text) <= self.LONGEST_VALUE else text[: self.LONGEST_VALUE] + "..."


class PrometheusSink:
    """The last value of every numeric field as a gauge, for a Prometheus server to scrape from `/metrics`.

    `dt_<kind>_<field>`, labelled with the event's `uid` if it has one; `dt_events_total{kind}` counts the events.
    Needs the package prometheus_client.
    """

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self._prometheus = _optional("prometheus_client", "telemetry.prometheus_port")
        self._registry = self._prometheus.CollectorRegistry()
        self._gauges: dict[str, Any] = {}
        self._events = self._prometheus.Counter("dt_events", "Events by kind", ["kind"], registry=self._registry)
        try:
            self._server, self._thread = self._prometheus.start_http_server(port, address, self._registry)
        except OSError as error:
            raise ConfigurationError(
                f"telemetry.prometheus_port {port} on {address} cannot be used: {error.strerror}"
            ) from error
        self.port: int = self._server.server_port
        self._closed = False

    def write(self, record: Record) -> None:
        self._events.labels(record["kind"]).inc()
        uid = record.get("uid", "")  # an empty label is no label to Prometheus
        for name, value in _numbers(record):
            self._gauge(f"dt_{record['kind']}_{name}").labels(uid).set(value)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            self._gauges[name] = self._prometheus.Gauge(name, name, ["uid"], registry=self._registry)
        return self._gauges[name]


class WandbSink:
    """Numeric fields as `<kind>/<field>` in a Weights & Biases run. Needs the package wandb.

    `api_key` None uses the login of the machine; `mode` is wandb's: "online", or "offline" to sync later.
    """

    def __init__(
        self, *, project: str, name: str | None, api_key: Secret | None, mode: Literal["online", "offline"]
    ) -> None:
        wandb = _optional("wandb", "telemetry.wandb_project")
        try:
            if api_key is not None:
                wandb.login(key=api_key.reveal(), verify=False)
            self._run = wandb.init(project=project, name=name, mode=mode)
        except wandb.Error as error:
            raise ConfigurationError(f"Weights & Biases: {error}; see telemetry.wandb_api_key") from error

    def write(self, record: Record) -> None:
        values = {f"{record['kind']}/{name}": value for name, value in _numbers(record) if name != "uid"}
        if "uid" in record:
            values = {f"{name}/{record['uid']}": value for name, value in values.items()}
        if values:
            self._run.log(values)

    def close(self) -> None:
        self._run.finish()


def _numbers(record: Record) -> Iterator[tuple[str, float]]:
    """The fields that can be drawn as a curve."""
    for name, value in record.items():
        if name not in ("time", "uid") and isinstance(value, int | float):
            yield name, float(value)


def _optional(package: str, setting: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigurationError(f"{setting} needs the package {package}: pip install {package}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """Where events go. Several sinks may be on at once."""

    console: bool = option("show events on standard output", default=False)
    jsonl: Path | None = option("append events to this file, one JSON object a line", default=None)
    prometheus_port: int | None = option("serve the numbers to Prometheus on this port", default=None)
    prometheus_address: str = option("address that Prometheus is served on", default="127.0.0.1")
    wandb_project: str | None = option("send the numbers to this Weights & Biases project", default=None)
    wandb_name: str | None = option("name of the Weights & Biases run", default=None)
    wandb_api_key: Secret | None = option("key for Weights & Biases, if this machine is not logged in", default=None)
    wandb_mode: Literal["online", "offline"] = option("offline: to sync later", default="online")


def open_telemetry(config: TelemetryConfig, clock: Clock | None = None) -> Telemetry:
    """Open the configured sinks; none opened stays open if a later one cannot be.

    Raises:
        ConfigurationError: a package is missing, or a file or port cannot be used.
    """
    sinks: list[Sink] = []
    try:
        if config.console:
            sinks.append(ConsoleSink())
        if config.jsonl is not None:
            sinks.append(JsonlSink(config.jsonl))
        if config.prometheus_port is not None:
            sinks.append(PrometheusSink(config.prometheus_port, config.prometheus_address))
        if config.wandb_project is not None:
            sinks.append(
                WandbSink(
                    project=config.wandb_project,
                    name=config.wandb_name,
                    api_key=config.wandb_api_key,
                    mode=config.wandb_mode,
                )
            )
    except ConfigurationError:
        for sink in sinks:
            sink.close()
        raise
    return Telemetry(sinks, clock)
