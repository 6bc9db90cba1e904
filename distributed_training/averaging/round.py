"""One round as one member runs it: PREPARE, CONNECT, EXCHANGE, COMMIT, then DONE or ABORTED, each with its deadline.

Between each two members stand two control streams, each opened by the one that will vote on it: they prove that the
other side is in the same round, carry its one vote, and end when the process behind them does. They also carry where
each member takes direct connections; those are made in CONNECT, and a reducer that cannot be reached so gets its data
over libp2p. In EXCHANGE each member opens a data stream to each reducer (exchange.py). In COMMIT everybody votes; a
member commits when enough of the contributors' weight voted for the bytes that it holds itself (vote.py).

The round's own coroutine waits in one place (`Board.until`) for a condition, a fault or the deadline; all else happens
in tasks. When it ends, every task is cancelled and every stream dropped: no wait outlives the round.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from distributed_training.averaging.board import Board, Fault, Link, Plane
from distributed_training.averaging.buffers import Buffers
from distributed_training.averaging.codec import Floats, pair_named, within
from distributed_training.averaging.direct import DirectTransport, direct_addresses
from distributed_training.averaging.exchange import Exchange
from distributed_training.averaging.feedback import Attempt
from distributed_training.averaging.frames import Answer, DirectOffer, Hello, Vote, read_message, write_message
from distributed_training.averaging.outcome import RoundOutcome, RoundResult, RoundState, Work
from distributed_training.averaging.packing import Packing
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.plan import Participant, RoundPlan
from distributed_training.averaging.streams import Stream, Transport
from distributed_training.averaging.vote import Decision, decide, disagreements
from distributed_training.averaging.wire_exhibits import Showcase
from distributed_training.averaging.witness import Watch
from distributed_training.protocol import Failure
from template.errors import AveragingError

log = logging.getLogger(__name__)

PROTOCOL = "dt-round/4"


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """`retry_seconds` between attempts to connect; `settle_seconds` to hear the others' reasons when a round fails.

    Who was lost in CONNECT is asked again for up to `ask_seconds`, and in EXCHANGE streams stay open as long for those
    who have not seen yet what another one saw: a busy machine may need it. What somebody sent before it was lost has
    half of `settle_seconds` to arrive.
    A direct connection may take `direct_seconds` and at most `direct_share` of CONNECT; libp2p takes over then.
    """

    retry_seconds: float = 0.2
    settle_seconds: float = 0.5
    ask_seconds: float = 1.5
    direct_seconds: float = 2.0
    direct_share: float = 0.25

    def __post_init__(self) -> None:
        if min(self.retry_seconds, self.settle_seconds, self.ask_seconds, self.direct_seconds) <= 0:
            raise AveragingError("retry_seconds, settle_seconds, ask_seconds and direct_seconds must be positive")
        if not 0 < self.direct_share < 1:
            raise AveragingError("direct_share must lie in (0, 1)")


class Round:
    """One round of one member. `run` once; `accept` for each stream that another member opens to it."""

    def __init__(
        self,
        plan: RoundPlan,
        uid: int,
        transport: Transport,
        direct: DirectTransport | None,
        config: RoundConfig,
        contribution: Floats | None,
        weight: float,
        buffers: Buffers,
        attempt: Attempt | None = None,
        records: str | None = None,
        watch: Watch | None = None,
        showcase: Showcase | None = None,
    ) -> None:
        self.plan = plan
        self._digest = plan.digest()
        self._hurried = False  # our EXCHANGE may end while others give up in CONNECT
        self._followed: tuple[int, ...] = ()  # who had given the round up when we did
        self._suspicions: tuple[Failure, ...] = ()  # and whom we suspected then
        self._uid = uid
        self._transport = transport
        self._direct = direct
        self._config = config
        self._codecs = pair_named(plan.codec)
        self._attempt = attempt
        self._contribution = contribution
        self._weight = weight
        self._records = records
        self._board = Board(plan, uid)
        self._exchange = Exchange(plan, uid, self._board, self._codecs, buffers, watch)
        self._packing: Packing | None = None
        self._showcase = showcase
        self._reaching: dict[int, asyncio.Task[None]] = {}  # our control streams, as they are opened
        self._average_hash: str | None = None
        self._began = time.monotonic()

    async def run(self) -> RoundResult:
        """Take part until the round is done or aborted; never longer than the sum of the deadlines and the settling.

        Raises:
            AveragingError: our own contribution is not fit to be sent; the others see us leave.
        """
        try:
            self._began = time.monotonic()
            connect_end = self._began + self.plan.deadlines.connect
            await self._prepare()
            if not await self._connect(connect_end):
                return await self._abort(connect_end)
            # Who is still in CONNECT may stay there until its end, and tell us then that it gave up.
            all_connected = connect_end + self._config.settle_seconds / 2
            exchange_end = max(time.monotonic() + self.plan.deadlines.exchange, all_connected)
            self._hurried = exchange_end == all_connected
            if not await self._move_data(exchange_end):
                return await self._abort(exchange_end)
            return await self._commit(exchange_end)
        finally:
            await self._board.close()
            self._exchange.release()

    async def accept(self, stream: Stream, hello: Hello) -> None:
        """Serve a stream of a member whose identity was checked, until it ends or the round does."""
        if self._board.closed:
            return  # the opener comes again and is told that the round has ended
        link = self._board.links[hello.uid]
        serve = self._accept_control if hello.kind == "control" else self._exchange.accept
        task = self._board.spawn(serve(link, stream, hello))
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()

    def why(self) -> Answer:
        """For who asks after we gave the round up: what we saw, whom we suspect, whom we followed."""
        failures = tuple(self._board.failures.values())
        return Answer(code="ended", failures=failures, suspicions=self._suspicions, followed=self._followed)

    # The states

    async def _prepare(self) -> None:
        me = next(m for m in self.plan.members if m.uid == self._uid)
        if me.contributes != (self._contribution is not None):
            raise AveragingError("the plan and the contribution disagree on whether this member contributes")
        reason = _weight_fault(me, self._weight, self.plan.max_weight)
        if reason is not None:
            raise AveragingError(reason)
        if self._contribution is not None:
            await asyncio.to_thread(
                _require_fit, self._contribution, self.plan.size, self._codecs.largest, self._attempt
            )
            self._packing = await asyncio.to_thread(self._pack, self._contribution)
            if self._showcase is not None:
                self._showcase.add(self._packing)

    def _pack(self, contribution: Floats) -> Packing:
        effort = self._exchange.effort
        return Packing(self.plan, self._uid, self._codecs, contribution, self._attempt, effort)

    async def _connect(self, deadline: float) -> bool:
        self._board.enter(RoundState.CONNECT)
        links = self._board.links
        for uid, link in links.items():
            self._reaching[uid] = self._board.spawn(self._reach(link))
            self._board.spawn(self._greet(link))
        return await self._board.until(lambda: all(x.connected for x in links.values()), deadline, self._hopeless)

    async def _move_data(self, deadline: float) -> bool:
        self._board.enter(RoundState.EXCHANGE)
        roots = self._roots()
        self._exchange.begin(self._weights(), roots, self._packing, lambda link: self._open(link, "data"))
        return await self._board.until(self._exchange.complete, deadline, self._hopeless)

    async def _commit(self, exchange_end: float) -> RoundResult:
        """Vote and count. Members may be in EXCHANGE until its very end, so nobody is given up before."""
        self._board.enter(RoundState.COMMIT)
        deadline = self._commit_end(exchange_end)
        self._average_hash = self._exchange.average_hash()
        vote = Vote(average_hash=self._average_hash, digests=tuple(self._exchange.digests().items()))
        ballots = self._cast(vote)
        await self._board.until(lambda: self._decision() is not Decision.WAIT, deadline, _never)
        if self._decision() is not Decision.COMMIT:
            late = time.monotonic() >= deadline
            # Our vote still has to arrive, and the others' to tell who sent whom what; a deadline was time enough.
            settled = deadline if late else time.monotonic() + self._config.settle_seconds
            await self._board.until(lambda: self._nobody_needs_us(ballots), settled, _never)
            self._blame_for_the_vote(late=late)
            return self._result(RoundState.ABORTED)
        if not await self._board.until(lambda: self._nobody_needs_us(ballots), exchange_end, _never):
            self._name_the_silent("no vote by the end of EXCHANGE")
        return self._result(RoundState.DONE)

    def _commit_end(self, exchange_end: float) -> float:
        """The others have until the end of EXCHANGE to get there, and their votes the time of COMMIT to arrive.

        Who hangs costs so no more than the longer one of the two.
        """
        commit = self.plan.deadlines.commit
        arrived = exchange_end + min(commit, self._config.settle_seconds)
        return min(exchange_end + commit, max(arrived, time.monotonic() + commit))

    async def _abort(self, deadline: float) -> RoundResult:
        """Tell everybody what we saw, hear for a moment what others saw, name those who neither work nor explain.

        In EXCHANGE streams stay open for that moment, so that all can see for themselves what the first one saw.
        """
        if time.monotonic() >= deadline:
            self._name_the_late()
        self._board.name_the_mute()
        self._followed = self._board.give_up()
        self._suspicions = self._board.suspicions()
        ballots = self._cast(Vote.giving_up(self.why()))
        now = time.monotonic()
        moving = self._board.state is RoundState.EXCHANGE
        settled = now + self._config.settle_seconds
        await self._board.until(lambda: _all_done(ballots) and self._board.settled() and not moving, settled, _never)

        def heard() -> bool:
            return self._board.settled() if moving else self._board.explained() and _all_done(ballots)

        await self._board.until(heard, min(now + self._config.ask_seconds, deadline), _never)
        if time.monotonic() >= deadline:  # the others' clocks are a little apart: their deadline may have come first
            self._name_the_late(all_heard=True)
        self._board.name_unexplained()
        return self._result(RoundState.ABORTED)

    def _hopeless(self) -> bool:
        """Whether the round cannot succeed any more for us, before COMMIT."""
        if self._board.suspects or any(self._matters(failed) for failed in self._board.failures.values()):
            return True
        if any(link.useless for link in self._board.links.values()):
            return True
        return self._board.state is RoundState.EXCHANGE and self._decision() is Decision.ABORT

    def _matters(self, failed: Failure) -> bool:
        """Whether a failure leaves us without something. Who is lost after it delivered costs its vote, no more; what
        it delivered may come a moment after the news of its end. (That its data streams broke is told by a suspicion.)
        """
        link = self._board.links[failed.uid]
        if failed.uid in self._board.harmless:
            return False
        if failed.role != "voter" or not link.connected:
            return True
        on_its_way = link.lost_at is not None and time.monotonic() - link.lost_at < self._config.settle_seconds / 2
        return not (link.part_done and link.average_done) and not on_its_way

    def _name_the_late(self, *, all_heard: bool = False) -> None:
        """Once all were heard, who owes us its part must have had a better reason to give up than its own word."""
        connecting = self._board.state is RoundState.CONNECT
        for uid, link in self._board.links.items():
            in_connect = connecting or (self._hurried and not link.data_open)  # it may be there, for all we know
            owing = all_heard and not link.part_done and not in_connect
            if link.gave_up and not (owing and not self._board.excused(uid)):
                continue
            if in_connect and not (connecting or all_heard):
                continue
            if connecting:
                if not link.connected:
                    self._board.fail(uid, "voter", f"not connected in {self.plan.deadlines.connect:g} s")
            elif not link.part_done:
                self._board.fail(uid, "sender", f"no complete part in {self.plan.deadlines.exchange:g} s")
            elif not link.average_done:
                self._board.suspect(uid, "reducer", f"no complete average in {self.plan.deadlines.exchange:g} s")

    # The vote

    def _cast(self, vote: Vote) -> list[asyncio.Task[None]]:
        return [self._board.spawn(self._send_vote(link, vote)) for link in self._board.links.values()]

    async def _send_vote(self, link: Link, vote: Vote) -> None:
        """Also on a stream that is not open yet: who cannot hear us would wait for us, or take us for lost."""
        if link.voting is None and not self._board.blames(link.member.uid):
            await asyncio.wait({self._reaching[link.member.uid]})
        if link.voting is None:
            return
        try:
            await write_message(link.voting, vote)
            await read_message(link.voting, Answer)
            await link.voting.close()
        except AveragingError:
            return  # whether it lives shows on its own control stream

    def _decision(self) -> Decision:
        links = self._board.links.items()
        votes = {uid: link.vote.average_hash for uid, link in links if link.vote is not None}
        if self._average_hash is not None:
            votes[self._uid] = self._average_hash
        silent = [uid for uid, link in links if link.lost and link.vote is None]
        return decide(self._weights(), votes, silent, self._average_hash, self.plan.quorum)

    def _nobody_needs_us(self, ballots: list[asyncio.Task[None]]) -> bool:
        """Whether our vote has arrived everywhere and everybody has what we reduced.

        Who voted has everything, and closed its data stream before; when we have seen that too, all is counted.
        """
        links = self._board.links.values()
        return _all_done(ballots) and all(x.lost or (x.vote is not None and not x.data_live) for x in links)

    def _blame_for_the_vote(self, *, late: bool) -> None:
        links = self._board.links
        if late:
            self._name_the_silent(f"no vote in {self.plan.deadlines.commit:g} s")
        seen = {uid: dict(x.vote.digests) for uid, x in links.items() if x.vote is not None and not x.gave_up}
        for named in disagreements(seen | {self._uid: self._exchange.digests()}):
            if named.uid != self._uid:
                self._board.fail(named.uid, named.role, named.reason)

    def _name_the_silent(self, reason: str) -> None:
        for uid, link in self._board.links.items():
            if not link.voted_or_lost:
                self._board.fail(uid, "voter", reason)

    def _weights(self) -> dict[int, float]:
        """The weight of each contributor, ascending by uid, as told by itself."""
        weights = {uid: link.weight for uid, link in self._board.links.items()} | {self._uid: self._weight}
        return {uid: weights[uid] for uid in self.plan.contributors}

    @property
    def _root(self) -> str | None:
        """What binds us to our parts; None if we send none."""
        return None if self._packing is None else self._packing.root

    def _roots(self) -> dict[int, str]:
        """What binds each contributor to its parts, ascending by uid, as told by itself."""
        roots = {uid: link.parts for uid, link in self._board.links.items()}
        roots[self._uid] = self._root
        return {uid: root for uid in self.plan.contributors if (root := roots[uid]) is not None}

    # Streams

    async def _greet(self, link: Link) -> None:
        """Open both streams that we need to a member: on which we vote, and on which it gets our data."""
        await asyncio.wait({self._reaching[link.member.uid]})
        if link.voting is None:
            return
        link.plane = await self._plane_to(link)
        self._board.ring()

    async def _reach(self, link: Link) -> None:
        """Open our control stream to a member; try again until it stands, for as long as CONNECT lasts."""
        while link.voting is None and not link.gave_up:
            try:
                link.voting = await self._open(link, "control")
            except AveragingError:
                await asyncio.sleep(self._config.retry_seconds)
            except Fault as fault:
                self._board.fail(link.member.uid, "voter", str(fault))
                return

    async def _plane_to(self, link: Link) -> Plane:
        """Make the direct connection that our data stream to a member needs, if that is possible."""
        if self._direct is None or not link.direct or link.average_done:
            return "libp2p"
        limit = min(self._config.direct_seconds, self._config.direct_share * self.plan.deadlines.connect)
        try:
            await self._direct.prepare(link.member.peer_id, link.direct, limit)
        except AveragingError as error:
            log.info("uid %d gets its data over libp2p: %s", link.member.uid, error)
            return "libp2p"
        return "direct"

    async def _open(self, link: Link, kind: str) -> Stream | None:
        """A stream that the member answered with "ready"; None if it has given the round up, and said why."""
        peer_id = link.member.peer_id
        if kind == "data" and link.plane == "direct" and self._direct is not None:
            try:
                return await self._greeted(link, kind, await self._direct.open(peer_id, link.direct, PROTOCOL))
            except AveragingError as error:
                log.info("uid %d gets its data over libp2p: %s", link.member.uid, error)
                link.plane = "libp2p"
        return await self._greeted(link, kind, await self._transport.open(peer_id, link.member.addresses, PROTOCOL))

    async def _greeted(self, link: Link, kind: str, stream: Stream) -> Stream | None:
        code = ""
        try:
            hello: dict[str, Any] = {"run_id": self.plan.run_id, "round_id": self.plan.round_id, "uid": self._uid}
            hello |= {"kind": kind, "weight": self._weight}
            if kind == "control":
                hello |= {"direct": self._offer(), "plan": self._digest}
                hello |= {"records": self._records, "parts": self._root}
            await write_message(stream, Hello.model_validate(hello))
            answer = await read_message(stream, Answer)
            code = answer.code
        finally:
            if code != "ready":
                stream.abort()
        if code == "ended":
            self._board.hear(link.member.uid, Vote.giving_up(answer))
            return None
        if code == "busy":
            raise AveragingError("the member has no room for our stream now")
        if code != "ready":
            raise Fault(f"refused us: {code}")
        if answer.direct is not None:
            self._learn(link, answer.direct)
        return stream

    def _offer(self) -> DirectOffer | None:
        if self._direct is None:
            return None
        certificate = base64.b64encode(self._direct.certificate).decode()
        return DirectOffer(port=self._direct.port, certificate=certificate)

    def _learn(self, link: Link, offer: DirectOffer) -> None:
        """Take a member's offer, which it made over an authenticated stream; one that proves nothing is no offer."""
        if self._direct is None:
            return
        try:
            self._direct.trust(link.member.peer_id, base64.b64decode(offer.certificate, validate=True))
        except (AveragingError, binascii.Error) as error:
            log.warning("uid %d offers a direct connection that it cannot prove: %s", link.member.uid, error)
            return
        link.direct = direct_addresses(link.member.addresses, offer.port)

    async def _accept_control(self, link: Link, stream: Stream, hello: Hello) -> None:
        if self._board.given_up:  # who could not be told before comes and asks
            await _answered(stream, self.why())
            return
        if link.greeting is not None:
            if self._board.state is not RoundState.CONNECT:
                return  # it is connected; nothing may replace that now
            link.greeting.abort()
        if hello.plan != self._digest:
            self._board.fail(link.member.uid, "voter", "has another plan of this round")
            await _answered(stream, Answer(code="other plan"))
            return
        reason = _hello_fault(link.member, hello, self.plan.max_weight)
        if reason is not None:
            self._board.fail(link.member.uid, "sender", reason)
            return
        link.weight, link.records, link.parts, link.greeting = hello.weight, hello.records, hello.parts, stream
        if hello.direct is not None:
            self._learn(link, hello.direct)
        try:
            await write_message(stream, Answer(code="ready", direct=self._offer()))
            self._board.ring()
            vote = await read_message(stream, Vote)
        except AveragingError as error:
            self._lose(link, stream, error)
            return
        self._board.hear(link.member.uid, vote)
        await _answered(stream, Answer(code="ready"))

    def _lose(self, link: Link, stream: Stream, error: AveragingError) -> None:
        if link.greeting is not stream:  # it came back on a newer one
            return
        reason = f"connection lost: {error}"
        if self._board.state in (RoundState.PREPARE, RoundState.CONNECT):
            # It may have given up before it had a way to tell us; then it says so when it is asked again.
            self._board.suspect(link.member.uid, "voter", reason)
            self._board.spawn(self._ask_again(link))
            return
        link.lost_at = time.monotonic()
        self._board.fail(link.member.uid, "voter", reason)
        self._board.spawn(asyncio.sleep(self._config.settle_seconds / 2))  # its end rings, as that of any task

    async def _ask_again(self, link: Link) -> None:
        """Hear why it left, if it still runs; the round's end ends this, and the suspicion stands."""
        while not link.gave_up:
            try:
                stream = await self._open(link, "control")
            except AveragingError:
                stream = None
            except Fault:
                return
            if stream is not None:  # it is still about to give up
                stream.abort()
            await asyncio.sleep(self._config.retry_seconds / 4)

    # The end

    def _result(self, state: RoundState) -> RoundResult:
        board = self._board
        board.enter(state)
        completed = state is RoundState.DONE
        if completed:
            self._exchange.average.flags.writeable = False
        outcome = RoundOutcome(
            round_id=self.plan.round_id,
            state=state,
            participants=self.plan.contributors if completed else (),
            agreed=self._agreed() if completed else (),
            failures=tuple(board.failures[uid] for uid in sorted(board.failures)),
            accusations=board.accusations(),
            transfers=board.transfers(),
            average_hash=self._average_hash,
            total_weight=math.fsum(self._weights().values()) if completed else None,
            seconds=dict(board.seconds),
            work=self._work(),
            first_byte=None if board.moving.first is None else board.moving.first - self._began,
            restrained=self._exchange.restraints(),
            weights=self._weights(),
            records={uid: link.records for uid, link in board.links.items() if link.records is not None},
            parts=self._roots(),
            sightings=self._exchange.sightings(),
            bits_per_parameter=board.moving.bits_per_value,
            planes={uid: link.plane for uid, link in board.links.items() if link.plane is not None and link.reduces},
        )
        return RoundResult(outcome=outcome, average=self._exchange.average if completed else None)

    def _work(self) -> Work:
        effort, moving = self._exchange.effort, self._board.moving.seconds
        return Work(
            encode=effort.seconds("encode"),
            decode=effort.seconds("decode"),
            reduce=effort.seconds("reduce"),
            hash=effort.seconds("hash"),
            wait=max(0.0, self._board.seconds.get(RoundState.EXCHANGE, 0.0) - moving),
        )

    def _agreed(self) -> tuple[int, ...]:
        links = self._board.links.items()
        same = {uid for uid, x in links if x.vote is not None and x.vote.average_hash == self._average_hash}
        return tuple(sorted(same | {self._uid}))


async def _answered(stream: Stream, answer: Answer) -> None:
    """Say the last word to a stream's opener, who has said all that matters to us."""
    try:
        await write_message(stream, answer)
        await stream.read(1)  # the opener closes first: libp2p may drop the last bytes if we do
    except AveragingError:
        return  # it left before


def _never() -> bool:
    return False


def _all_done(tasks: list[asyncio.Task[None]]) -> bool:
    return all(task.done() for task in tasks)


def _require_fit(contribution: Floats, size: int, largest: float, attempt: Attempt | None) -> None:
    """Refuse a contribution that the others would have to refuse."""
    if contribution.dtype != np.float32 or contribution.shape != (size,):
        raise AveragingError(f"a contribution is float32 [{size}], not {contribution.dtype} {contribution.shape}")
    for start, stop in chunks(size, 1 << 16):  # small enough to stay in cache between the two
        values = contribution[start:stop]
        if not within(attempt.owed(start, values) if attempt else values, largest):
            raise AveragingError(f"the contribution holds NaN or values beyond the codec's {largest:g}")


def _hello_fault(member: Participant, hello: Hello, max_weight: float) -> str | None:
    if member.contributes != (hello.parts is not None):
        return "binds itself to no parts" if member.contributes else "binds itself to parts that it is not to send"
    return _weight_fault(member, hello.weight, max_weight)


def _weight_fault(member: Participant, weight: float, max_weight: float) -> str | None:
    if not member.contributes:
        return None if weight == 0 else f"weight {weight:g} of a member that does not contribute"
    return None if 0 < weight <= max_weight else f"weight {weight:g} outside (0, {max_weight:g}]"
