"""What a validator must not forget over a restart: scores, who is excluded or failed, and when it last set weights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distributed_training.events import NotSaved
from distributed_training.schedule import Exclusion
from distributed_training.scoring.combine import ScoreBook
from template.errors import CorruptState
from template.files import replace_file
from template.telemetry import Telemetry


@dataclass(frozen=True)
class Memory:
    """One validator's memory of one run.

    `exclusions` by hotkey; `failed`: hotkeys that did not deliver when they were last asked; `weights_block`: the block
    from which the interval to the next attempt at weights counts.
    """

    run_id: str
    book: ScoreBook = field(default_factory=ScoreBook)
    exclusions: Mapping[str, Exclusion] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()
    weights_block: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "run_id": self.run_id,
            "book": self.book.state_dict(),
            "exclusions": {hotkey: [e.spoiled, e.until_epoch] for hotkey, e in self.exclusions.items()},
            "failed": sorted(self.failed),
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
                failed=frozenset(map(str, state["failed"])),
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
            CorruptState: the file is damaged or cannot be read; the message names it.
        """
        try:
            memory = Memory.load_state_dict(json.loads(self._path.read_text()))
        except FileNotFoundError:
            return Memory(run_id)
        except (OSError, ValueError, RecursionError, CorruptState) as error:
            raise CorruptState(f"{self._path} is damaged ({error}); move it away to start without scores") from error
        return memory if memory.run_id == run_id else Memory(run_id)

    def save(self, memory: Memory) -> None:
        """Replace the file. Raises OSError; what was saved before is still there then."""
        replace_file(self._path, json.dumps(memory.state_dict()).encode())


class Remembered:
    """The memory as it is now, written to its file after each change, one after another and not in the event loop."""

    def __init__(self, file: MemoryFile, run_id: str, telemetry: Telemetry) -> None:
        """Raises CorruptState as `MemoryFile.load` does."""
        self.now = file.load(run_id)
        self._file = file
        self._telemetry = telemetry
        self._saving = asyncio.Lock()

    def note(self, **changes: Any) -> None:
        """Replace fields of the memory; written with the next `change`."""
        self.now = replace(self.now, **changes)

    async def change(self, **changes: Any) -> None:
        """Replace fields of the memory. A disk that does not take it is told; the change holds until the restart."""
        self.note(**changes)
        async with self._saving:
            try:
                await asyncio.to_thread(self._file.save, self.now)
            except OSError as error:
                self._telemetry.emit(NotSaved(what="memory", reason=str(error)))


def without_strangers(memory: Memory, hotkeys: frozenset[str]) -> dict[str, Any]:
    """The fields of the memory that name hotkeys, without those that have left the subnet."""
    kept = {hotkey: exclusion for hotkey, exclusion in memory.exclusions.items() if hotkey in hotkeys}
    return {"exclusions": kept, "failed": memory.failed & hotkeys}
