"""Finding a group that nobody leads: hivemind's matchmaking, over our own streams and a noticeboard.

hivemind's `Matchmaking` decides who follows whom; this module gives it what it needs and keeps it in bounds. Join
requests travel over a Transport, whose peers have proved who they are: who is not allowed is dropped before a byte is
read, frames are bounded, and each side's blob is judged before it counts. Notices only say whom to ask. A search is
used once and has one deadline; whatever hivemind raises ends it as an AveragingError.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from hivemind.averaging.group_info import GroupInfo
from hivemind.averaging.key_manager import GroupKeyManager
from hivemind.averaging.matchmaking import Matchmaking, MatchmakingException
from hivemind.p2p import P2PDaemonError, P2PHandlerError, PeerID, ServicerBase
from hivemind.proto import averaging_pb2

from distributed_training.averaging.frames import length_prefix, read_length
from distributed_training.averaging.noticeboard import Addresses, Noticeboard
from distributed_training.averaging.streams import Stream, Transport
from template.errors import AveragingError
from template.telemetry import Event, Telemetry

PROTOCOL = "dt-matchmaking/1"
MAX_BLOB = 8192  # bytes that one member tells the others
_MAX_MEMBER = MAX_BLOB + 256  # with its peer id
_MAX_OTHER = 1024  # bytes of a message beside its members
AT_ONCE = 4  # join requests of one peer
FOREIGN = (
    MatchmakingException,
    P2PDaemonError,
    P2PHandlerError,
    AssertionError,  # how it answers a leader that breaks its protocol
    StopAsyncIteration,
    asyncio.InvalidStateError,
    ValueError,
)

Admit = Callable[[str, bytes], str | None]


@dataclass(frozen=True, kw_only=True)
class JoinRefused(Event):
    """A peer that wanted to join our group was turned away."""

    peer_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MatchmakingLimits:
    """Seconds. A leader waits `wait` for more members; one peer has `request` to answer; a search may take `search`.

    Notices are read every `poll`; a leader stays `linger` for its followers to have heard it.
    """

    wait: float = 8.0
    request: float = 3.0
    search: float = 20.0
    poll: float = 0.25
    linger: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.request < self.wait < self.search:
            raise AveragingError("matchmaking needs 0 < request < wait < search: two peers may wait for each other")
        if min(self.poll, self.linger) <= 0:
            raise AveragingError("poll and linger must be positive")


@dataclass(frozen=True, kw_only=True)
class Search:
    """Which group is looked for. `key`: what all its members have in common; it must hold no dot.

    `blob`, at most MAX_BLOB bytes, is told to all members. `candidates` are the addresses of those who may lead, by
    peer id. A group of `most` is taken at once, one of at least `least` (this peer included) after a while. `admit`
    says of a peer and its blob why it must not be a member, or None.
    """

    key: str
    blob: bytes
    candidates: Mapping[str, Addresses]
    least: int
    most: int
    admit: Admit


@dataclass(frozen=True)
class FoundGroup:
    """Peer id and blob of each member, in no particular order; `group_id` was drawn by the one that the others joined.

    Each blob is as that one passed it on.
    """

    group_id: bytes
    members: tuple[tuple[str, bytes], ...]


class Matchmaker:
    """Looks for groups, one after another. `allow` says whether a peer id belongs to a neuron of the metagraph."""

    def __init__(
        self,
        transport: Transport,
        board: Noticeboard,
        *,
        allow: Callable[[str], bool],
        telemetry: Telemetry,
        limits: MatchmakingLimits | None = None,
    ) -> None:
        self._transport = transport
        self._board = board
        self._allow = allow
        self._telemetry = telemetry
        self._limits = limits or MatchmakingLimits()
        self._serving: dict[asyncio.Task[None], str] = {}  # peer id of each join request

    async def find(self, search: Search) -> FoundGroup:
        """A group with this peer in it, all of whose members are admitted.

        Raises:
            AveragingError: there is none in time, or the one that was found has a member that must not be in it.
        """
        if not 1 <= search.least <= search.most or len(search.blob) > MAX_BLOB:
            raise AveragingError(f"no group of {search.least} to {search.most} with {len(search.blob)} bytes each")
        me = self._transport.peer_id
        if search.most == 1:
            return FoundGroup(secrets.token_bytes(20), ((me, search.blob),))
        await self._board.meet(search.candidates)
        match = _OneSearch(_Place(me, self._transport, search, self._limits), self._board)
        await self._transport.serve(PROTOCOL, lambda stream: self._serve(match, stream))
        try:
            found = await self._look(match, search)
            await self._let_followers_hear()
        finally:
            match.finish()
            await self._transport.unserve(PROTOCOL)
        for peer_id, blob in found.members:
            reason = search.admit(peer_id, blob)
            if reason is not None:
                raise AveragingError(f"the group that was found has {peer_id} in it: {reason}")
        return found

    async def _look(self, match: _OneSearch, search: Search) -> FoundGroup:
        limits, now = self._limits, time.time()
        step = _Step(scheduled_time=now + limits.wait, deadline=now + limits.search, data_for_gather=search.blob)
        try:
            async with asyncio.timeout(limits.search + 2 * limits.request):  # it may wait for its followers at the end
                info = await match.look_for_group(step)
        except TimeoutError:
            raise AveragingError("matchmaking did not end in time") from None
        except FOREIGN as error:
            raise AveragingError(f"matchmaking failed: {error!r}") from error
        if info is None:
            trouble = f"; {match.keys.trouble}" if match.keys.trouble else ""
            raise AveragingError(f"no group of at least {search.least} in {limits.search:g} s{trouble}")
        return _found(info)

    async def _let_followers_hear(self) -> None:
        if self._serving:
            await asyncio.wait(self._serving, timeout=self._limits.linger)

    async def _serve(self, match: _OneSearch, stream: Stream) -> None:
        """One join request, from its first byte to the end of the stream."""
        task, peer_id = asyncio.current_task(), stream.peer_id
        assert task is not None
        if not self._allow(peer_id):
            self._refused(peer_id, "stranger")
            return
        if list(self._serving.values()).count(peer_id) >= AT_ONCE:
            self._refused(peer_id, "too many requests at once")
            return
        self._serving[task] = peer_id
        try:
            await self._serve_known(match, stream)
        except (AveragingError, TimeoutError, DecodeError) as error:
            self._refused(peer_id, f"lost: {error}")
        finally:
            del self._serving[task]

    async def _serve_known(self, match: _OneSearch, stream: Stream) -> None:
        async with asyncio.timeout(self._limits.request):
            request = averaging_pb2.JoinRequest.FromString(await _read_frame(stream, _MAX_MEMBER + _MAX_OTHER))
        reason = match.place.search.admit(stream.peer_id, request.gather)
        if reason is not None:
            self._refused(stream.peer_id, reason)
        gone = asyncio.create_task(stream.read(1))  # ends when the other side has left
        telling = asyncio.create_task(_tell(match, stream, request))
        try:
            await asyncio.wait({gone, telling}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():  # the asking side closes first: libp2p may drop the last bytes if we do
                await asyncio.wait({gone}, timeout=self._limits.linger)
        finally:
            gone.cancel()
            telling.cancel()
            await asyncio.gather(gone, telling, return_exceptions=True)

    def _refused(self, peer_id: str, reason: str) -> None:
        self._telemetry.emit(JoinRefused(peer_id=peer_id, reason=reason))


# What hivemind's matchmaking is given


@dataclass(frozen=True)
class _Place:
    """This peer, in the place of hivemind's P2P and DHT."""

    name: str
    transport: Transport
    search: Search
    limits: MatchmakingLimits

    @property
    def peer_id(self) -> PeerID:
        return _as_id(self.name)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """In the place of hivemind's StepControl, which takes shared memory and a thread."""

    scheduled_time: float
    deadline: float
    data_for_gather: bytes

    def get_timeout(self) -> float:
        return max(0.0, self.deadline - time.time())


@dataclass(frozen=True)
class _Context:
    remote_id: PeerID


class _Keys(GroupKeyManager):  # type: ignore[misc]  # hivemind ships no types
    """Notices instead of DHT records. What cannot be read or written is noted in `trouble` and tried again."""

    def __init__(self, place: _Place, board: Noticeboard) -> None:
        super().__init__(place, place.search.key, "", None)
        self._place = place
        self._board = board
        self._read_before = False
        self.trouble = ""

    async def declare_averager(
        self, group_key: str, peer_id: PeerID, expiration_time: float, looking_for_group: bool = True
    ) -> bool:
        """A notice that is not needed any more stays until its time is over: whoever comes then is told."""
        if not looking_for_group:
            return True
        try:
            await self._board.declare(group_key, expiration_time)
        except AveragingError as error:
            self.trouble = str(error)
            return False
        return True

    async def get_averagers(self, group_key: str, only_active: bool) -> list[tuple[PeerID, float]]:
        """The candidates that left a notice. Others, and times that nobody honest would choose, are left out."""
        if self._read_before:
            await asyncio.sleep(self._place.limits.poll)  # hivemind reads again at once, as often as it can
        self._read_before = True
        try:
            notices = await self._board.declared(group_key)
        except AveragingError as error:
            self.trouble = str(error)
            return []
        now, candidates = time.time(), self._place.search.candidates
        return [
            (_as_id(peer_id), until)
            for peer_id, until in notices.items()
            if peer_id in candidates and now <= until <= now + self._place.limits.search
        ]

    async def update_key_on_group_assembled(self, group_info: GroupInfo) -> None:
        """There is one group a key."""


class _Joining(ServicerBase):  # type: ignore[misc]  # hivemind ships no types
    @classmethod
    def get_stub(cls, p2p: _Place, peer: PeerID, *, namespace: str | None = None) -> _Stub:
        return _Stub(p2p, _as_name(peer))


@dataclass(frozen=True)
class _Stub:
    """Asks one peer to lead us."""

    place: _Place
    leader: str

    async def rpc_join_group(self, request: averaging_pb2.JoinRequest) -> _Messages:
        place = self.place
        addresses = place.search.candidates.get(self.leader)
        if addresses is None:
            raise P2PHandlerError(f"{self.leader} is no candidate")
        stream: Stream | None = None
        try:
            async with asyncio.timeout(place.limits.request):
                stream = await place.transport.open(self.leader, addresses, PROTOCOL)
                await _write_frame(stream, request)
        except (AveragingError, TimeoutError) as error:
            if stream is not None:
                stream.abort()
            raise P2PHandlerError(f"{self.leader} cannot be asked: {error}") from error
        return _Messages(stream, (len(place.search.candidates) + 1) * _MAX_MEMBER + _MAX_OTHER)


@dataclass
class _Messages:
    """What a leader says, as an asynchronous iterator. One that hangs up has said all."""

    stream: Stream
    limit: int

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> averaging_pb2.MessageFromLeader:
        try:
            return averaging_pb2.MessageFromLeader.FromString(await _read_frame(self.stream, self.limit))
        except AveragingError:
            raise StopAsyncIteration from None
        except DecodeError as error:
            raise P2PHandlerError(f"{self.stream.peer_id} says what is no message: {error}") from error

    async def aclose(self) -> None:
        self.stream.abort()


class _OneSearch(Matchmaking):  # type: ignore[misc]  # hivemind ships no types
    """hivemind's matchmaking for one search."""

    def __init__(self, place: _Place, board: Noticeboard) -> None:
        search, limits = place.search, place.limits
        super().__init__(
            place,
            search.key.encode(),
            place,
            servicer_type=_Joining,
            prefix=search.key,
            target_group_size=None,  # given below: hivemind warns of sizes that are no power of two
            min_group_size=search.least,
            min_matchmaking_time=limits.wait,
            request_timeout=limits.request,
            client_mode=False,
        )
        self.target_group_size = search.most
        self.potential_leaders.target_group_size = search.most
        self.place = place
        self.keys = self.group_key_manager = _Keys(place, board)
        self._assembled = self.assembled_group

    def _check_reasons_to_reject(
        self, request: averaging_pb2.JoinRequest, context: _Context
    ) -> averaging_pb2.MessageFromLeader | None:
        if self.place.search.admit(_as_name(context.remote_id), request.gather) is not None:
            return averaging_pb2.MessageFromLeader(code=averaging_pb2.PROTOCOL_VIOLATION)
        return super()._check_reasons_to_reject(request, context)

    def finish(self) -> None:
        """End what hivemind leaves behind: tasks that wait for an event, an error that nobody looked at."""
        leaders = self.potential_leaders
        for event in (
            self.was_accepted_to_group,
            self.follower_was_discarded,
            leaders.running,
            leaders.update_triggered,
            leaders.update_finished,
            leaders.declared_expiration,
        ):
            event.set()
        if self._assembled.done() and not self._assembled.cancelled():
            self._assembled.exception()


async def _tell(match: _OneSearch, stream: Stream, request: averaging_pb2.JoinRequest) -> None:
    """What we say to one who wants to join."""
    context = _Context(_as_id(stream.peer_id))
    async with contextlib.aclosing(match.rpc_join_group(request, context)) as messages:
        async for message in messages:
            await _write_frame(stream, message)


def _found(info: GroupInfo) -> FoundGroup:
    names = tuple(_as_name(peer) for peer in info.peer_ids)
    if len(set(names)) != len(names):
        raise AveragingError("the group that was found has a member twice")
    return FoundGroup(info.group_id, tuple(zip(names, info.gathered, strict=True)))


def _as_id(name: str) -> PeerID:
    """Our peer ids are text, for any transport; hivemind compares and passes them on as bytes."""
    return PeerID(name.encode())


def _as_name(peer: PeerID) -> str:
    return str(peer.to_bytes().decode(errors="replace"))  # what is no text of ours is nobody's name


async def _write_frame(stream: Stream, message: Any) -> None:
    data: bytes = message.SerializeToString()
    await stream.write(length_prefix(len(data)) + data)


async def _read_frame(stream: Stream, limit: int) -> bytes:
    length = await read_length(stream)
    if length > limit:
        raise AveragingError(f"a frame of {length} bytes where at most {limit} are taken")
    return await stream.readexactly(length)
