"""Where peers that look for a group say so: the seam between matchmaking and the DHT (peer.py), and one in memory.

What it says is unsigned hearsay. A reader asks only peers that it knows by other means, and proves who they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

Addresses = tuple[str, ...]


class Noticeboard(Protocol):
    """Notices of peers, by key. All methods end in bounded time and raise AveragingError if the board does not work."""

    async def meet(self, others: Mapping[str, Addresses]) -> None:
        """Make sure that notices of these peers (addresses by peer id) can be seen here, as far as they answer."""

    async def declare(self, key: str, until: float) -> None:
        """Leave this peer's notice under `key` until that time (seconds since 1970)."""

    async def declared(self, key: str) -> Mapping[str, float]:
        """Whose notices are said to be under `key`: until when, by peer id."""


class MemoryNotices:
    """What all MemoryNoticeboards of a process show."""

    def __init__(self) -> None:
        self.by_key: dict[str, dict[str, float]] = {}

    def board(self, peer_id: str) -> MemoryNoticeboard:
        """The board as that peer uses it."""
        return MemoryNoticeboard(peer_id, self)


class MemoryNoticeboard:
    """A Noticeboard inside one process."""

    def __init__(self, peer_id: str, notices: MemoryNotices) -> None:
        self._peer_id = peer_id
        self._notices = notices

    async def meet(self, others: Mapping[str, Addresses]) -> None:
        return

    async def declare(self, key: str, until: float) -> None:
        self._notices.by_key.setdefault(key, {})[self._peer_id] = until

    async def declared(self, key: str) -> Mapping[str, float]:
        return dict(self._notices.by_key.get(key, {}))
