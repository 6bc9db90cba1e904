"""The neurons of a localnet as real processes: start, watch, stop, each by its own id.

Every process leads a group of its own, so stopping one also stops what it started (its libp2p daemon), and none of
them outlives this process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Command:
    """How to start one neuron: its name, its arguments, and the folder for its log and state."""

    name: str
    arguments: Sequence[str]
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"


class Processes:
    """The running neurons by name. Use as a context manager: leaving it stops them all."""

    def __init__(self, environment: Mapping[str, str], cwd: Path) -> None:
        self._environment = dict(environment)
        self._cwd = cwd
        self._running: dict[str, tuple[Command, subprocess.Popen[bytes]]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    def start(self, command: Command) -> None:
        """Start a neuron; its output is appended to its log."""
        command.folder.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as log:
            process = subprocess.Popen(
                command.arguments,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running[command.name] = (command, process)

    def pid(self, name: str) -> int:
        return self._running[name][1].pid

    def ended(self) -> dict[str, tuple[Command, int]]:
        """The neurons that have ended by themselves since the last call, with their exit status."""
        gone = {name: (c, p.returncode) for name, (c, p) in self._running.items() if p.poll() is not None}
        for name in gone:
            del self._running[name]
        return gone

    def kill(self, name: str) -> None:
        """SIGKILL a neuron, as a crash would; its daemon goes with it."""
        _, process = self._running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)

    def stop_all(self) -> list[str]:
        """Ask all to stop, wait, then kill what is left. Returns the names of those that had to be killed."""
        for _, process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        stubborn = []
        for name, (_, process) in self._running.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                stubborn.append(name)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the neuron itself, or what it left behind
            process.wait(STOP_SECONDS)
        self._running.clear()
        return stubborn
