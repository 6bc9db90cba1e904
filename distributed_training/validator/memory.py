"""What a validator must not forget over a restart: score book, exclusions, and when it last set weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distributed_training.schedule import Exclusion
from distributed_training.scoring.combine import ScoreBook
from template.errors import CorruptState


@dataclass(frozen=True)
class Memory:
    """One validator's memory of one run; `exclusions` by hotkey, `weights_block` the block of the last weights set."""

    run_id: str
    book: ScoreBook = field(default_factory=ScoreBook)
    exclusions: Mapping[str, Exclusion] = field(default_factory=dict)
    weights_block: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "run_id": self.run_id,
            "book": self.book.state_dict(),
            "exclusions": {hotkey: [e.spoiled, e.until_epoch] for hotkey, e in self.exclusions.items()},
            "weights_block": self.weights_block,
        }

    @staticmethod
    def load_state_dict(state: Mapping[str, Any]) -> Memory:
        """The memory that `state_dict` gave.

        Raises:
            CorruptState: it is not one.
        """
        try:
            return Memory(
                run_id=str(state["run_id"]),
                book=ScoreBook.load_state_dict(state["book"]),
                exclusions={str(h): Exclusion(int(s), int(u)) for h, (s, u) in state["exclusions"].items()},
                weights_block=None if state["weights_block"] is None else int(state["weights_block"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptState(f"not a validator's memory: {error!r}") from error


class MemoryFile:
    """Keeps a `Memory` in one JSON file that is replaced whole, so a kill leaves the old or the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, run_id: str) -> Memory:
        """The stored memory, or an empty one if there is none yet or it is of another run.

        Raises:
            CorruptState: the file is damaged; the message names it.
        """
        if not self._path.exists():
            return Memory(run_id)
        try:
            memory = Memory.load_state_dict(json.loads(self._path.read_text()))
        except (ValueError, CorruptState) as error:
            raise CorruptState(f"{self._path} is damaged ({error}); move it away to start without scores") from error
        return memory if memory.run_id == run_id else Memory(run_id)

    def save(self, memory: Memory) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump(memory.state_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)


def without_old_exclusions(memory: Memory, hotkeys: frozenset[str]) -> Memory:
    """The memory without exclusions of hotkeys that have left the subnet."""
    kept = {hotkey: exclusion for hotkey, exclusion in memory.exclusions.items() if hotkey in hotkeys}
    return replace(memory, exclusions=kept)
