"""Groups for the tests: plans, contributions, and a whole group run inside one process on any transport."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

import numpy as np

from distributed_training.averaging.averager import Averager, AveragerConfig
from distributed_training.averaging.codec import Floats
from distributed_training.averaging.memory import MemoryNetwork
from distributed_training.averaging.outcome import RoundResult
from distributed_training.averaging.plan import Participant, RoundPlan, StateDeadlines
from distributed_training.averaging.streams import Transport

RUN_ID = "test-000000000000"
DEADLINES = StateDeadlines(connect=5.0, exchange=5.0, commit=5.0)
_numbers = itertools.count(1)


def make_plan(
    members: Sequence[Participant],
    size: int,
    *,
    codec: str = "none",
    deadlines: StateDeadlines = DEADLINES,
    quorum: float = 0.67,
    chunk: int = 1000,
    reduction: str = "mean",
) -> RoundPlan:
    """A round with a fresh id."""
    number = next(_numbers)
    return RoundPlan(
        round_id=f"{number:032x}",
        run_id=RUN_ID,
        epoch=3,
        attempt=number,
        members=tuple(members),
        size=size,
        codec=codec,
        deadlines=deadlines,
        quorum=quorum,
        max_weight=1e6,
        reduction=reduction,
        chunk=chunk,
    )


def member(uid: int, transport: Transport, share: float = 1.0, *, contributes: bool = True) -> Participant:
    """The member `uid` on a transport; a Peer tells where it is."""
    addresses = getattr(transport, "addresses", ())
    return Participant(uid=uid, peer_id=transport.peer_id, addresses=addresses, share=share, contributes=contributes)


def contributions(plan: RoundPlan, seed: int = 0) -> dict[int, Floats | None]:
    """Random values for each contributor, None for the others."""
    random = np.random.default_rng(seed)
    return {
        m.uid: random.standard_normal(plan.size, dtype=np.float32) if m.contributes else None
        for m in sorted(plan.members, key=lambda m: m.uid)
    }


def weights(plan: RoundPlan) -> dict[int, float]:
    return {m.uid: 1 / 3 + m.uid / 7 if m.contributes else 0.0 for m in plan.members}


def exact_mean(values: Mapping[int, Floats | None], by: Mapping[int, float]) -> np.ndarray:
    """The weighted mean by numpy in float64: what the round is measured against."""
    given = [uid for uid, value in values.items() if value is not None]
    stacked = np.stack([np.asarray(values[uid], dtype=np.float64) for uid in given])
    return np.average(stacked, axis=0, weights=[by[uid] for uid in given])


class Group:
    """Averagers by uid, and the plans for them."""

    def __init__(self, transports: Mapping[int, Transport], averagers: Mapping[int, Averager]) -> None:
        self.transports = transports
        self.averagers = averagers

    def members(self, *, auxiliary: Sequence[int] = (), idle: Sequence[int] = ()) -> list[Participant]:
        """All members; `auxiliary` ones do not contribute, `idle` ones do not reduce."""
        return [
            member(uid, transport, 0.0 if uid in idle else 1.0, contributes=uid not in auxiliary)
            for uid, transport in self.transports.items()
        ]

    async def run(
        self, plan: RoundPlan, values: Mapping[int, Floats | None], *, without: Sequence[int] = ()
    ) -> dict[int, RoundResult]:
        """One round of all members that are not left out."""
        uids = [m.uid for m in plan.members if m.uid not in without]
        by = weights(plan)
        results = await asyncio.gather(*(self.averagers[uid].run(plan, values[uid], by[uid]) for uid in uids))
        return dict(zip(uids, results, strict=True))


@contextlib.asynccontextmanager
async def group_on(
    transports: Mapping[int, Transport], config: AveragerConfig | None = None, *, libp2p_only: Collection[int] = ()
) -> AsyncIterator[Group]:
    """Averagers on given transports, which allow each other and nobody else; direct where a transport has that."""
    known = {transport.peer_id for transport in transports.values()}
    async with contextlib.AsyncExitStack() as stack:
        averagers = {}
        for uid, transport in transports.items():
            direct = getattr(transport, "direct", None) if uid not in libp2p_only else None
            averager = Averager(
                transport, uid=uid, run_id=RUN_ID, allow=known.__contains__, direct=direct, config=config
            )
            averagers[uid] = await stack.enter_async_context(averager)
        yield Group(transports, averagers)


@contextlib.asynccontextmanager
async def memory_group(n: int, config: AveragerConfig | None = None) -> AsyncIterator[tuple[Group, MemoryNetwork]]:
    """`n` members in memory; peer-<uid> is the name of each."""
    network = MemoryNetwork()
    async with group_on({uid: network.transport(f"peer-{uid}") for uid in range(n)}, config) as group:
        yield group, network
