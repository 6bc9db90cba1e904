"""Block time: which block is the head, and which one takes the next extrinsic. Pure arithmetic over the chain's row.

Wall clock: block b begins at genesis + b * block_seconds and is the head from then on. Manual clock: the head moves
only by `advance`, and every extrinsic seals its own block.
"""

from __future__ import annotations

from dataclasses import dataclass

MARGIN = 0.05  # seconds before a block begins in which nothing more is put into it
MARGIN_FRACTION = 0.25  # of a block, if that is less


@dataclass(frozen=True)
class BlockClock:
    """`genesis` in Unix seconds; `manual_head` is None on the wall clock; `last_written`: newest block with content."""

    genesis: float
    block_seconds: float
    manual_head: int | None
    last_written: int

    @property
    def manual(self) -> bool:
        return self.manual_head is not None

    def head(self, now: float) -> int:
        """The newest readable block. Never goes back, even if the machine's clock does."""
        if self.manual_head is not None:
            return self.manual_head
        return max(self._wall(now), self.last_written - 1)

    def open_block(self, now: float) -> int:
        """The block that takes an extrinsic now: always after the head."""
        if self.manual_head is not None:
            return self.manual_head + 1
        margin = min(MARGIN, MARGIN_FRACTION * self.block_seconds)
        return max(self._wall(now + margin) + 1, self.last_written)

    def seconds_until(self, block: int, now: float) -> float:
        """Seconds until `block` is the head; 0 if it is or, on the manual clock, always."""
        if self.manual or self.head(now) >= block:
            return 0.0
        return max(0.0, self.genesis + block * self.block_seconds - now)

    def timestamp_ms(self, block: int) -> int:
        """`Timestamp.Now` of a block: nominal milliseconds since the Unix epoch."""
        return int((self.genesis + block * self.block_seconds) * 1000)

    def _wall(self, now: float) -> int:
        return max(0, int((now - self.genesis) // self.block_seconds))
