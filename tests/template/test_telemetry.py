"""Events and their sinks."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from template.clock import ManualClock
from template.config import Secret
from template.errors import ConfigurationError
from template.telemetry import (
    ConsoleSink,
    Event,
    JsonlSink,
    MemorySink,
    PrometheusSink,
    Record,
    Sink,
    Telemetry,
    TelemetryConfig,
    WandbSink,
    open_telemetry,
    read_jsonl,
)


@dataclass(frozen=True, kw_only=True)
class Trained(Event):
    uid: int
    loss: float
    note: str = ""


class Reading:
    """A sink with a way to see what arrived, as text."""

    def __init__(self, sink: Sink, read: Callable[[], str]) -> None:
        self.sink, self.read = sink, read


def scrape(sink: PrometheusSink) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{sink.port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


@pytest.fixture(params=["memory", "jsonl", "console", "prometheus", "wandb"])
def reading(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reading]:
    """Each sink that can run here."""
    if request.param == "memory":
        memory = MemorySink()
        made = Reading(memory, lambda: json.dumps(memory.records))
    elif request.param == "jsonl":
        made = Reading(JsonlSink(tmp_path / "deep" / "events.jsonl"), (tmp_path / "deep" / "events.jsonl").read_text)
    elif request.param == "console":
        text = io.StringIO()
        made = Reading(ConsoleSink(Console(file=text, width=200)), text.getvalue)
    elif request.param == "prometheus":
        pytest.importorskip("prometheus_client")
        prometheus = PrometheusSink(0)
        made = Reading(prometheus, lambda: scrape(prometheus))
    else:
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_DIR", str(tmp_path))
        wandb = WandbSink(project="test", name=None, api_key=None, mode="offline")
        made = Reading(wandb, lambda: str(dict(wandb._run.summary)))
    yield made
    made.sink.close()


def test_every_sink_takes_every_record_and_closes_twice(reading: Reading) -> None:
    """Numbers arrive; texts, nesting, None and unknown kinds are no reason to raise."""
    reading.sink.write({"kind": "Trained", "time": 1.0, "uid": 3, "loss": 0.25, "note": "a [b]\x1b[31m\n"})
    reading.sink.write({"kind": "Nested", "time": 2, "rows": [{"a": 1}], "none": None, "yes": True, "empty": {}})
    seen = reading.read()
    assert "Trained" in seen
    assert "0.25" in seen
    assert "\x1b[31m" not in seen
    reading.sink.close()


def test_events_are_stamped_with_kind_and_time() -> None:
    """The record is flat, with the clock's time."""
    sink = MemorySink()
    Telemetry([sink], ManualClock(start=50.0)).emit(Trained(uid=1, loss=2.0))
    assert sink.records == [{"kind": "Trained", "time": 50.0, "uid": 1, "loss": 2.0, "note": ""}]


class FullDisk:
    """A sink that fails as a full disk does."""

    def write(self, record: Record) -> None:
        raise OSError("no space left on device")

    def close(self) -> None:
        raise OSError("no space left on device")


def test_a_failing_sink_is_said_once_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The other sinks get every record; the log has one traceback, and at the end the number of lost records."""
    memory = MemorySink()
    telemetry = Telemetry([FullDisk(), memory])
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            telemetry.emit(Trained(uid=1, loss=1.0))
        assert [record.getMessage() for record in caplog.records] == [
            "FullDisk does not take records; going on without it"
        ]
        telemetry.close()
    assert len(memory.records) == 3
    assert [r.getMessage() for r in caplog.records[1:]] == [
        "FullDisk: 3 records were lost",
        "FullDisk cannot be closed",
    ]


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    """A training thread and the event loop may emit at once."""
    telemetry = Telemetry([JsonlSink(tmp_path / "events.jsonl")])
    threads = [
        threading.Thread(target=lambda n=n: [telemetry.emit(Trained(uid=n, loss=i)) for i in range(100)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    telemetry.close()
    assert len(list(read_jsonl(tmp_path / "events.jsonl"))) == 400


@pytest.mark.parametrize("partial", ['{"kind":"B', "x" * 200_000])
def test_a_line_cut_short_by_a_crash_is_removed(tmp_path: Path, partial: str) -> None:
    """The next record does not merge with half a one; whole lines stay."""
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind":"A"}\n' + partial)
    assert [record["kind"] for record in read_jsonl(path)] == ["A"]
    sink = JsonlSink(path)
    sink.write({"kind": "C"})
    sink.close()
    assert [record["kind"] for record in read_jsonl(path)] == ["A", "C"]


def test_a_file_of_half_a_line_becomes_empty(tmp_path: Path) -> None:
    """Nothing whole, nothing kept."""
    (tmp_path / "events.jsonl").write_text('{"kind"')
    JsonlSink(tmp_path / "events.jsonl").close()
    assert (tmp_path / "events.jsonl").read_text() == ""


def test_console_shows_one_short_line_an_event() -> None:
    """Markup and control characters are shown, not obeyed; long values are cut."""
    text = io.StringIO()
    sink = ConsoleSink(Console(file=text, width=40))
    sink.write({"kind": "K", "time": 0.0, "loss": 1 / 3, "note": "[red]\n" + "y" * 500, "rows": [1, 2]})
    line = text.getvalue()
    assert line.count("\n") == 1
    assert ' K loss=0.333333 note="[red]\\n' in line
    assert line.endswith("... rows=(2 items)\n")


def test_prometheus_serves_the_last_value_by_uid() -> None:
    """Gauges carry the uid of the event, the counter the kind."""
    pytest.importorskip("prometheus_client")
    sink = PrometheusSink(0)
    for uid, loss in ((1, 5.0), (2, 6.0), (1, 4.5)):
        sink.write({"kind": "Trained", "time": 0.0, "uid": uid, "loss": loss})
    sink.write({"kind": "Trained", "time": 0.0, "loss": 7.0})
    text = scrape(sink)
    sink.close()
    assert 'dt_Trained_loss{uid="1"} 4.5' in text
    assert 'dt_Trained_loss{uid="2"} 6.0' in text
    assert 'dt_Trained_loss{uid=""} 7.0' in text
    assert 'dt_events_total{kind="Trained"} 4.0' in text


def test_a_taken_port_is_a_configuration_error() -> None:
    """The message names the setting."""
    pytest.importorskip("prometheus_client")
    first = PrometheusSink(0)
    with pytest.raises(ConfigurationError, match=f"telemetry.prometheus_port {first.port} on 127.0.0.1"):
        PrometheusSink(first.port)
    first.close()


@pytest.mark.parametrize(
    ("package", "setting"),
    [("prometheus_client", {"prometheus_port": 0}), ("wandb", {"wandb_project": "p", "wandb_api_key": Secret("k")})],
)
def test_a_missing_package_is_named(
    package: str, setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message says which setting needs which package; sinks opened before are closed."""
    monkeypatch.setitem(sys.modules, package, None)
    config = TelemetryConfig(jsonl=tmp_path / "events.jsonl", **setting)
    with pytest.raises(ConfigurationError, match=f"telemetry.* needs the package {package}: pip install {package}"):
        open_telemetry(config)


def test_an_unwritable_file_is_a_configuration_error(tmp_path: Path) -> None:
    """A folder in the way is said with its path."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigurationError, match="events cannot be written to"):
        JsonlSink(tmp_path / "taken" / "events.jsonl")


def test_configured_sinks_are_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Console and file both get the event."""
    telemetry = open_telemetry(TelemetryConfig(console=True, jsonl=tmp_path / "e.jsonl"), ManualClock())
    telemetry.emit(Trained(uid=1, loss=2.0))
    telemetry.close()
    assert "Trained uid=1 loss=2" in capsys.readouterr().out
    assert [record["loss"] for record in read_jsonl(tmp_path / "e.jsonl")] == [2.0]
