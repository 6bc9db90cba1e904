"""The last scored epochs on disk, so that a validator that was started again can still answer for them.

One line of JSON an epoch is appended; when there are twice as many as are wanted, the file is replaced by the newest. A
line that a kill cut off is dropped, and so is what follows it. No pickle, nothing that is not computed again by whom it
is told to (`scoring/report.py`).
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from distributed_training.scoring.explain import EpochScored, scored_epoch
from template.errors import CorruptState
from template.files import replace_file


class ReportFile:
    """Keeps the newest `kept` epochs of one run, each with the total of all averages after it."""

    def __init__(self, path: Path, run_id: str, kept: int) -> None:
        self._path = path
        self._run_id = run_id
        self._kept = kept
        self._lines: int | None = None  # in the file, once that is known

    def load(self) -> tuple[tuple[EpochScored, float], ...]:
        """What is there, oldest first; nothing if there is no file yet or it is of another run.

        Raises:
            OSError: it cannot be read.
        """
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        found: list[tuple[EpochScored, float]] = []
        for line in lines:
            item = _parsed(line, self._run_id)
            if item is None:
                break
            found.append(item)
        self._lines = len(found) if len(found) == len(lines) else None  # what is damaged is written anew
        return tuple(found[-self._kept :])

    def append(self, event: EpochScored, total: float, newest: tuple[tuple[EpochScored, float], ...]) -> None:
        """Add an epoch, the last one of the `newest`. Raises OSError; what was there before is still there then."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._lines is None or self._lines >= 2 * self._kept:
            self._replace(newest)
            return
        with self._path.open("a") as file:
            file.write(_line(event, total, self._run_id))
            file.flush()
            os.fsync(file.fileno())
        self._lines += 1

    def _replace(self, newest: tuple[tuple[EpochScored, float], ...]) -> None:
        replace_file(self._path, "".join(_line(event, total, self._run_id) for event, total in newest).encode())
        self._lines = len(newest)


def _line(event: EpochScored, total: float, run_id: str) -> str:
    return json.dumps({"run_id": run_id, "total": total, "scored": dataclasses.asdict(event)}) + "\n"


def _parsed(line: str, run_id: str) -> tuple[EpochScored, float] | None:
    """The epoch of a line; None if it is none, or of another run."""
    try:
        record: dict[str, Any] = json.loads(line)
        return (scored_epoch(record["scored"]), float(record["total"])) if record["run_id"] == run_id else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, CorruptState):
        return None
