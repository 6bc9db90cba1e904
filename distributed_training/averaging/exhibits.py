"""What each contributor sent, shown again after the round: the seam between who looks at a reducer and who sent to it.

Every contributor binds itself, before anything moves, to the bytes of all its parts by one hash (packing.py), keeps
them until the next round completes, and shows single chunks of them to validators that ask. What is shown is held
against the hash, so nobody can show anything but what it stood by; and a reducer that took other bytes from it would
have had to refuse the round. wire_exhibits.py shows over streams; the simulation of `tests/adversaries` has one in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from distributed_training.averaging.codec import Floats
from distributed_training.averaging.plan import RoundPlan
from distributed_training.protocol import Hash


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The chunk number `chunk` of what contributor `uid`, bound by `root`, put into the share of `reducer`."""

    plan: RoundPlan
    uid: int
    root: Hash
    reducer: int
    chunk: int


class Exhibits(Protocol):
    """Where a validator sees what others sent."""

    async def show(self, wanted: Wanted) -> Floats | None:
        """The chunk as the reducer decoded it, float32 [n]; None if it is not shown, or is not what it is bound to.

        Returns within a bounded time, and never raises for what the other side does.
        """
        ...
