"""Starting, watching and stopping real processes, each by its own id."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

from distributed_training.localnet.processes import Command, Processes

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def command(folder: Path, name: str, code: str) -> Command:
    return Command(name, [sys.executable, "-c", code], folder / name)


def wait_for(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_ends_is_told_once_with_its_status_and_its_log(tmp_path: Path) -> None:
    """Exit status and output are kept."""
    with Processes(ENVIRONMENT, tmp_path) as processes:
        processes.start(command(tmp_path, "a", "print('hello'); raise SystemExit(3)"))
        ended: dict[str, int] = {}
        wait_for(lambda: ended.update({n: s for n, (_, s) in processes.ended().items()}) or ended)
        assert ended == {"a": 3}
        assert processes.ended() == {}
    assert "hello" in (tmp_path / "a" / "log.txt").read_text()


def test_leaving_stops_what_a_process_started_too(tmp_path: Path) -> None:
    """A grandchild in the same group does not outlive the localnet, even if its parent ignores SIGTERM."""
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0));"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)']); print(p.pid, flush=True);"
        "time.sleep(100)"
    )
    with Processes(ENVIRONMENT, tmp_path) as processes:
        processes.start(command(tmp_path, "a", code))
        log = tmp_path / "a" / "log.txt"
        wait_for(lambda: log.exists() and log.read_text().strip())
        grandchild = int(log.read_text())
        assert processes.stop_all() == []
    wait_for(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie")


def test_kill_is_immediate(tmp_path: Path) -> None:
    """A killed process is gone and may be started again under its name."""
    with Processes(ENVIRONMENT, tmp_path) as processes:
        sleeper = command(tmp_path, "a", "import time; time.sleep(100)")
        processes.start(sleeper)
        pid = processes.pid("a")
        processes.kill("a")
        assert not psutil.pid_exists(pid)
        processes.start(sleeper)
        assert processes.ended() == {}
