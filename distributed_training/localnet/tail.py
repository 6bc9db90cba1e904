"""Reading the event files of several processes while they are being written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Tail:
    """The records that were added to each file since the last `read`. A line is taken once it is complete."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._offsets = dict.fromkeys(files, 0)

    def skip_existing(self) -> None:
        """Begin at the present end of each file: what earlier runs wrote is not told again."""
        for name, path in self._files.items():
            self._offsets[name] = path.stat().st_size if path.exists() else 0

    def read(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """New records as (neuron, record), in order within each neuron."""
        for name, path in self._files.items():
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._offsets[name])
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offsets[name] += len(line)
                    yield name, json.loads(line)
