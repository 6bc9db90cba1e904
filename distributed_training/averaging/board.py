"""What one member knows of the others during a round: a link each, the faults seen, and a bell for each change.

Blame. A fault seen with certainty (wrong bytes, a dead control stream, a part that did not come) is a Failure at once.
A data stream that merely ended, or an average that did not come, may be a third member's doing: its peer is
*suspected*, and named only if it does not explain itself soon by a vote that the round failed. Who gives the round up,
names nobody and follows nobody that did is at fault itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal

from distributed_training.averaging.frames import Vote
from distributed_training.averaging.outcome import RoundState
from distributed_training.averaging.plan import Participant, RoundPlan
from distributed_training.averaging.streams import Stream
from distributed_training.averaging.traffic import Meter
from distributed_training.averaging.vote import failure
from distributed_training.protocol import Failure, Transfer

Plane = Literal["direct", "libp2p"]


class Fault(Exception):
    """The other side did what is forbidden: certain, and its own doing."""


class Link:
    """One other member."""

    def __init__(self, member: Participant, moving: Meter, *, part_due: bool, average_due: bool) -> None:
        self.member = member
        self.voting: Stream | None = None  # our control stream to it, answered "ready"
        self.greeting: Stream | None = None  # its control stream to us
        self.weight = 0.0  # of its contribution, as it told us
        self.records: str | None = None  # the hash of the records that its contribution is made of, as it told us
        self.parts: str | None = None  # the hash of all that it sends, as it told us
        self.vote: Vote | None = None
        self.lost_at: float | None = None  # time.monotonic() at which its control stream ended
        self.data_open = False  # it opened its one data stream
        self.data_live = False  # which has not ended yet
        self.part_done = not part_due  # its part of our share is here, or none is due
        self.average_done = not average_due  # its share's average is here, or none is due
        self.reduces = average_due
        self.digest: str | None = None  # of its share's average, as received
        self.plane: Plane | None = None  # on which our data stream to it runs; None until that is known
        self.direct: tuple[str, ...] = ()  # its addresses for direct connections
        self.sending = Meter(moving)  # at the data streams, both of them
        self.receiving = Meter(moving)

    @property
    def connected(self) -> bool:
        return self.voting is not None and self.greeting is not None and self.plane is not None

    @property
    def lost(self) -> bool:
        return self.lost_at is not None

    @property
    def gave_up(self) -> bool:
        return self.vote is not None and self.vote.average_hash is None

    @property
    def voted_or_lost(self) -> bool:
        return self.vote is not None or self.lost

    @property
    def useless(self) -> bool:
        """It gave the round up while we still need something from it."""
        return self.gave_up and not (self.connected and self.part_done and self.average_done)


class Board:
    """The links by uid, the first failure seen of each, the suspects, and the tasks that change them."""

    def __init__(self, plan: RoundPlan, uid: int) -> None:
        ranges = plan.ranges()
        start, stop = ranges[uid]
        self.moving = Meter()  # all transfers together
        self.links = {
            m.uid: Link(
                m,
                self.moving,
                part_due=m.contributes and stop > start,
                average_due=ranges[m.uid][1] > ranges[m.uid][0],
            )
            for m in sorted(plan.members, key=lambda m: m.uid)
            if m.uid != uid
        }
        self.state = RoundState.PREPARE
        self.seconds: dict[RoundState, float] = {}
        self.failures: dict[int, Failure] = {}
        self.harmless: set[int] = set()  # whose failure does not spoil the round
        self.suspects: dict[int, tuple[str, str]] = {}  # uid -> role, reason
        self.uid = uid
        self.given_up = False  # by ourselves
        self.closed = False
        self._entered = time.monotonic()
        self._bell = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._crash: BaseException | None = None

    def enter(self, state: RoundState) -> None:
        now = time.monotonic()
        self.seconds[self.state] = now - self._entered
        self.state, self._entered = state, now

    def fail(self, uid: int, role: str, reason: str) -> None:
        """Name a member; only the first reason counts."""
        if self.state in (RoundState.DONE, RoundState.ABORTED):
            return  # the report is written
        self.harmless.discard(uid)
        self.failures.setdefault(uid, failure(uid, self.state.value, role, reason))
        self._bell.set()

    def note(self, uid: int, role: str, reason: str) -> None:
        """Name a member for what does the round no harm."""
        if uid not in self.failures:
            self.fail(uid, role, reason)
            self.harmless.add(uid)

    def suspect(self, uid: int, role: str, reason: str) -> None:
        self.suspects.setdefault(uid, (role, reason))
        self._bell.set()

    def hear(self, uid: int, vote: Vote) -> None:
        """Take a member's vote; its first word stands."""
        if self.links[uid].vote is None:
            self.links[uid].vote = vote
            if self.uid in vote.followed and not self.given_up:
                self.fail(uid, "voter", "says that it gave the round up because we did")
        self._bell.set()

    def give_up(self) -> tuple[int, ...]:
        """Note that we give the round up now; who did so before us."""
        self.given_up = True
        return tuple(uid for uid, link in self.links.items() if link.gave_up)

    def name_unexplained(self) -> None:
        """Turn those suspects into failures that have not given the round up themselves.

        In CONNECT there may be no stream yet to tell us by: who left there while another one failed, left for that.
        """
        left = [u for u in self.suspects if self.state is RoundState.CONNECT and self._another_failed(u)]
        for uid, (role, reason) in self.suspects.items():
            if not self.links[uid].gave_up and uid not in left:
                self.fail(uid, role, reason)

    def name_the_mute(self) -> None:
        """Name those who gave the round up for no reason that they tell, be it only that somebody else did."""
        for uid, link in self.links.items():
            vote = link.vote
            if vote is not None and link.gave_up and not (vote.failures or vote.suspicions or vote.followed):
                self.fail(uid, "voter", "gave the round up and named nobody")

    def blames(self, uid: int) -> bool:
        """Whether that member failed, is suspected, or gave the round up: nothing that it lacks is due to it."""
        return uid in self.failures or uid in self.suspects or self.links[uid].gave_up

    def suspicions(self) -> tuple[Failure, ...]:
        """Whom we suspect and have not seen fail."""
        return tuple(
            failure(uid, self.state.value, role, f"suspected: {reason}")
            for uid, (role, reason) in self.suspects.items()
            if uid not in self.failures
        )

    def excused(self, uid: int) -> bool:
        """Whether it gave the round up and somebody else saw somebody else fail: what it owed, it need not deliver."""
        return self.links[uid].gave_up and self._another_failed(uid)

    def _another_failed(self, uid: int) -> bool:
        """Whether we, or a third member, saw another one than `uid` fail."""
        seen = {other.uid for other in self.failures.values()}
        for witness, link in self.links.items():
            if witness != uid and link.vote is not None:
                seen |= {accused.uid for accused in link.vote.failures}
        return bool(seen - {uid, self.uid})

    def settled(self) -> bool:
        """Whether every suspect has explained itself and everybody accused was tried by all who can, ourselves too."""
        return self.explained() and not any(
            self._untried(accusation) for accusations in self.accusations().values() for accusation in accusations
        )

    def explained(self) -> bool:
        """Whether every suspect has said why it left."""
        return all(self.links[uid].gave_up for uid in self.suspects)

    def _untried(self, accusation: Failure) -> bool:
        link = self.links.get(accusation.uid)  # None: we are accused ourselves
        if link is None:
            return True  # stay, so that others can see for themselves
        if accusation.uid in self.failures or link.lost or (link.gave_up and link.data_open and not link.data_live):
            return False
        done = {"sender": link.part_done, "reducer": link.average_done, "voter": link.voted_or_lost}
        return not done[accusation.role]

    def accusations(self) -> Mapping[int, tuple[Failure, ...]]:
        """What the others say that they saw."""
        told = {uid: x.vote.failures + x.vote.suspicions for uid, x in self.links.items() if x.vote is not None}
        return {uid: failures for uid, failures in told.items() if failures}

    def transfers(self) -> tuple[Transfer, ...]:
        return tuple(
            Transfer(
                uid=uid,
                bytes_sent=x.sending.bytes,
                bytes_received=x.receiving.bytes,
                seconds_sending=x.sending.seconds,
                seconds_receiving=x.receiving.seconds,
            )
            for uid, x in self.links.items()
        )

    def ring(self) -> None:
        self._bell.set()

    async def until(self, done: Callable[[], bool], deadline: float, hopeless: Callable[[], bool]) -> bool:
        """Wait for `done`; False once the deadline (of time.monotonic) has passed or `hopeless` holds.

        The one place where a round's own coroutine waits.
        """
        while True:
            self._bell.clear()
            if self._crash is not None:
                raise self._crash
            if done():
                return True
            left = deadline - time.monotonic()
            if left <= 0 or hopeless():
                return False
            try:
                async with asyncio.timeout(left):
                    await self._bell.wait()
            except TimeoutError:
                return done()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a part of the round beside it. What others do wrong is noted where it shows; raising is a bug."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self._crash is None:
            self._crash = task.exception()
        self._bell.set()

    async def close(self) -> None:
        """Cancel everything that still runs and drop the control streams; a blocked write ends here too."""
        self.closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in self.links.values():
            if link.voting is not None:
                link.voting.abort()
