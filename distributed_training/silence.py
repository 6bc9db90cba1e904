"""For how long somebody was not heard of, in blocks."""

from __future__ import annotations

from typing import Protocol

from template.clock import Clock

FRESH_SECONDS = 10.0


class Blocks(Protocol):
    """The chain as of the last block that was seen."""

    @property
    def block(self) -> int: ...


class Silence:
    """Counts from its beginning, or from the last `heard`."""

    def __init__(self, chain: Blocks, clock: Clock) -> None:
        self._chain = chain
        self._clock = clock
        self.heard()

    def heard(self) -> None:
        """Somebody was heard just now."""
        self._since = self._chain.block
        self._at = self._clock.monotonic()

    @property
    def blocks(self) -> int:
        """How long it lasts. 0 in the first seconds: a chain that was silent itself shows many new blocks at once."""
        if self._clock.monotonic() - self._at < FRESH_SECONDS:
            return 0
        return self._chain.block - self._since
