"""Which chunk is asked of which source, and of whom else if it does not come: no I/O, no clock."""

from __future__ import annotations

from collections import deque


class ChunkPlan:
    """The chunks of one download, from the first request to the last arrival.

    Each chunk is asked of one source. When none is left to ask for, those that have been under way for `patience`
    seconds are asked of another source as well: the slowest source then holds up nobody.
    """

    def __init__(self, count: int, patience: float) -> None:
        self._patience = patience
        self._left = deque(range(count))
        self._asked: dict[int, dict[str, float]] = {}  # chunk -> source -> when

    @property
    def complete(self) -> bool:
        return not self._left and not self._asked

    @property
    def missing(self) -> int:
        """How many have not arrived."""
        return len(self._left) + len(self._asked)

    def next(self, source: str, now: float) -> int | None:
        """What to ask `source` for; None if there is nothing for it at the moment."""
        number = self._left.popleft() if self._left else self._overdue(source, now)
        if number is not None:
            self._asked.setdefault(number, {})[source] = now
        return number

    def _overdue(self, source: str, now: float) -> int | None:
        """The chunk that has been under way longest, and long enough, at others."""
        waiting = [
            (max(asked.values()), number)
            for number, asked in self._asked.items()
            if source not in asked and now - max(asked.values()) >= self._patience
        ]
        return min(waiting)[1] if waiting else None

    def arrived(self, number: int) -> bool:
        """Note a chunk that came and is right; whether it is the first time."""
        return self._asked.pop(number, None) is not None

    def lost(self, source: str) -> None:
        """Nothing more comes from `source`: what was asked of nobody else is asked again, and before the rest."""
        for number in [number for number, asked in self._asked.items() if source in asked]:
            del self._asked[number][source]
            if not self._asked[number]:
                del self._asked[number]
                self._left.appendleft(number)
