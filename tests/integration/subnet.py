"""A localnet under a test's control: real neurons as processes, watched through what they write, killed at will."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from distributed_training.localnet.network import Network, open_network
from distributed_training.localnet.processes import Command, Processes
from distributed_training.localnet.story import Story
from distributed_training.localnet.tail import Tail

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny.toml"


def told(folder: Path, kind: str) -> list[dict[str, Any]]:
    """All events of a kind in the neurons' logs."""
    logs = [path.read_text().splitlines() for path in sorted(folder.glob("*/events.jsonl"))]
    return [event for log in logs for event in map(json.loads, log) if event["kind"] == kind]


def failed_audits(folder: Path) -> list[dict[str, Any]]:
    """In a subnet of honest miners there is none."""
    return [event for event in told(folder, "Audited") if not event["passed"]]


class Subnet:
    """Use as a context manager; leaving it stops every process. `story` is what was told so far."""

    def __init__(
        self, folder: Path, *, miners: int, validators: int, adversaries: tuple[str, ...] = (), run: Path = TINY
    ) -> None:
        self.network: Network = open_network(folder, run, miners, validators, adversaries)
        self.network.prepare()
        self.story = Story()
        self.commands = {c.name: c for c in self.network.commands(until_epoch=10_000)}
        self._tail = Tail({name: command.events for name, command in self.commands.items()})
        self._processes = Processes({**os.environ, "OMP_NUM_THREADS": "1"}, ROOT)

    def __enter__(self) -> Subnet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stubborn = self._processes.stop_all()
        if error is None:
            assert not stubborn, f"{stubborn} had to be killed"

    def start(self, *names: str, instead: Callable[[Command], Command] | None = None) -> None:
        """Start these neurons, or all of them."""
        for name in names or self.commands:
            command = self.commands[name]
            self._processes.start(instead(command) if instead else command)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self._processes.kill(name)

    def died(self) -> dict[str, int]:
        """Who ended by itself since the last look, with its status."""
        return {name: status for name, (_, status) in self._processes.ended().items()}

    def look(self) -> None:
        """Take in what was told since the last look."""
        for name, record in self._tail.read():
            self.story.take(name, record)

    def wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Look until the condition holds; fail with the logs' tails otherwise."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.look()
            if condition():
                return
            time.sleep(0.2)
        raise AssertionError(f"not in {seconds:g} s: {what}\n{self.state()}")

    def wait_for_epoch(self, epoch: int, *names: str, seconds: float = 60.0) -> None:
        """Until these neurons (default: all) are at that epoch or later."""
        chosen = names or tuple(self.commands)
        self.wait(
            f"{', '.join(chosen)} at epoch {epoch}",
            lambda: all(n in self.story.neurons and self.story.neurons[n].epoch >= epoch for n in chosen),
            seconds,
        )

    def state(self) -> str:
        """What is known, for a failure's message."""
        lines = [f"failed rounds: {self.story.failed}", f"faults: {self.story.faults}"]
        for name, command in self.commands.items():
            neuron = self.story.neurons.get(name)
            log = command.log.read_text()[-600:] if command.log.exists() else "no log"
            lines.append(f"{name}: {neuron}\n  {log}")
        return "\n".join(lines)
