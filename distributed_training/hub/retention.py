"""Which epochs a hub keeps: all of the last ones, then every so many. Pure; `remove` of a hub carries it out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from template.errors import ConfigurationError

LEAST_KEPT = 2  # while an epoch is being published, peers are still told to fetch the one before it


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Keep the newest `keep_last` releases (0: keep everything) and those whose epoch `keep_every` divides (0: none).

    Raises:
        ConfigurationError: a number that would remove what peers fetch.
    """

    keep_last: int
    keep_every: int

    def __post_init__(self) -> None:
        if self.keep_last < 0 or 0 < self.keep_last < LEAST_KEPT:
            raise ConfigurationError(f"hub keep_last must be at least {LEAST_KEPT}, or 0 to keep every epoch")
        if self.keep_every < 0:
            raise ConfigurationError("hub keep_every must not be negative; 0 keeps none but the last ones")

    def surplus(self, epochs: Collection[int], spare: Collection[int] = ()) -> tuple[int, ...]:
        """The epochs to remove, ascending: never the newest ones, none of `spare`, and none after the oldest of it
        that is there (whoever was told to fetch that may be told the next one by now).
        """
        if not self.keep_last:
            return ()
        old = sorted(set(epochs))[: -self.keep_last]
        wanted = min((epoch for epoch in spare if epoch in epochs), default=None)
        return tuple(epoch for epoch in old if not self._is_landmark(epoch) and (wanted is None or epoch < wanted))

    def _is_landmark(self, epoch: int) -> bool:
        return self.keep_every > 0 and epoch % self.keep_every == 0
