"""Groups that nobody leads: who finds whom, who is kept out, and that every search ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hivemind.proto import averaging_pb2

from distributed_training.averaging.frames import length_prefix
from distributed_training.averaging.matchmaking import (
    MAX_BLOB,
    PROTOCOL,
    Admit,
    FoundGroup,
    Matchmaker,
    MatchmakingLimits,
    Search,
)
from distributed_training.averaging.memory import MemoryNetwork, MemoryTransport
from distributed_training.averaging.noticeboard import MemoryNotices, Noticeboard
from distributed_training.averaging.streams import Stream
from template.errors import AveragingError
from template.telemetry import MemorySink, Telemetry

LIMITS = MatchmakingLimits(request=0.5, wait=1.0, search=4.0, poll=0.02, linger=0.5)


def anybody(peer_id: str, blob: bytes) -> str | None:
    return None


class Crowd:
    """Peers a, b, c, ... in memory, that all know each other."""

    def __init__(self, names: str) -> None:
        self.network, self.notices = MemoryNetwork(), MemoryNotices()
        self.sink = MemorySink()
        self.transports = {name: self.network.transport(name) for name in names}

    def matchmaker(self, name: str, **changes: Any) -> Matchmaker:
        fields: dict[str, Any] = {
            "allow": self.transports.__contains__,
            "telemetry": Telemetry([self.sink]),
            "limits": LIMITS,
            **changes,
        }
        return Matchmaker(self.transports[name], self.notices.board(name), **fields)

    def search(
        self, name: str, *, least: int, most: int, key: str = "run-3-abc", admit: Admit = anybody, blob: bytes = b""
    ) -> Search:
        others = {other: ("/memory",) for other in self.transports if other != name}
        return Search(
            key=key, blob=blob or name.upper().encode(), candidates=others, least=least, most=most, admit=admit
        )

    async def find(self, name: str, **fields: Any) -> FoundGroup | AveragingError:
        try:
            return await self.matchmaker(name).find(self.search(name, **fields))
        except AveragingError as error:
            return error

    async def all_find(self, **fields: Any) -> dict[str, FoundGroup | AveragingError]:
        results = await asyncio.gather(*(self.find(name, **fields) for name in self.transports))
        return dict(zip(self.transports, results, strict=True))

    def refusals(self) -> set[tuple[str, str]]:
        return {(record["peer_id"], record["reason"]) for record in self.sink.records}


def the_group(results: Mapping[str, FoundGroup | AveragingError]) -> FoundGroup:
    """The one that all of them found."""
    groups = [result for result in results.values() if isinstance(result, FoundGroup)]
    assert len(groups) == len(results), results
    assert {group == groups[0] for group in groups} == {True}
    return groups[0]


@pytest.mark.parametrize("names", ["ab", "abcd", "abcdefghijkl"])
async def test_all_find_one_group_with_everybody_s_blob(names: str) -> None:
    """At once when all are there, whatever their number; nothing is left running."""
    crowd, before = Crowd(names), len(asyncio.all_tasks())
    began = time.monotonic()
    group = the_group(await crowd.all_find(least=len(names), most=len(names)))
    assert dict(group.members) == {name: name.upper().encode() for name in names}
    assert time.monotonic() - began < LIMITS.search
    await asyncio.sleep(0.05)
    assert len(asyncio.all_tasks()) == before


async def test_a_group_that_is_large_enough_does_not_wait_for_ever() -> None:
    """One of four never comes: the others go when the wait is over."""
    crowd = Crowd("abcd")
    results = await asyncio.gather(*(crowd.find(name, least=3, most=4) for name in "abc"))
    assert len(the_group(dict(zip("abc", results, strict=True))).members) == 3


async def test_too_few_find_no_group() -> None:
    """In bounded time, and as an error that says how many were wanted."""
    crowd, began = Crowd("abcd"), time.monotonic()
    results = await asyncio.gather(*(crowd.find(name, least=3, most=4) for name in "ab"))
    assert [str(result) for result in results] == ["no group of at least 3 in 4 s"] * 2
    assert time.monotonic() - began < LIMITS.search + 2 * LIMITS.request + 1


async def test_one_that_needs_nobody_is_a_group() -> None:
    """A lone miner is a majority of itself; each group has an id of its own."""
    crowd = Crowd("a")
    one, two = [await crowd.matchmaker("a").find(crowd.search("a", least=1, most=1)) for _ in range(2)]
    assert one.members == (("a", b"A"),)
    assert one.group_id != two.group_id


async def test_groups_at_different_states_do_not_mix() -> None:
    """The key holds the state; both pairs find their own."""
    crowd = Crowd("abcd")
    results = await asyncio.gather(
        *(crowd.find(name, least=2, most=2, key=f"run-3-{'x' if name in 'ab' else 'y'}") for name in "abcd")
    )
    found = dict(zip("abcd", results, strict=True))
    assert set(dict(the_group({n: found[n] for n in "ab"}).members)) == {"a", "b"}
    assert set(dict(the_group({n: found[n] for n in "cd"}).members)) == {"c", "d"}


async def test_who_is_not_admitted_stays_out() -> None:
    """The others find their group without it, and each that it asked has told why."""
    crowd = Crowd("abcd")

    def not_d(peer_id: str, blob: bytes) -> str | None:
        return "bad blob" if blob == b"D" else None

    results = await crowd.all_find(least=3, most=4, admit=not_d)
    assert isinstance(results.pop("d"), AveragingError)
    assert set(dict(the_group(results).members)) == {"a", "b", "c"}
    assert crowd.refusals() <= {("d", "bad blob")}


async def test_a_group_with_somebody_who_must_not_be_in_it_is_refused_by_its_followers() -> None:
    """Its leader let it in; who checks does not take part."""
    crowd = Crowd("abc")

    def strict(peer_id: str, blob: bytes) -> str | None:
        return "bad blob" if blob == b"C" else None

    async def find(name: str) -> FoundGroup | AveragingError:
        return await crowd.find(name, least=3, most=3, admit=strict if name == "b" else anybody)

    results = dict(zip("abc", await asyncio.gather(*map(find, "abc")), strict=True))
    assert isinstance(results["b"], AveragingError)


async def frames_to(stream: Stream, *frames: bytes) -> None:
    for frame in frames:
        await stream.write(frame)


def join_request(key: str = "run-3-abc", gather: bytes = b"E", expiration: float = 1e12) -> bytes:
    message = averaging_pb2.JoinRequest(
        schema_hash=key.encode(), expiration=expiration, client_mode=False, gather=gather, group_key=f"{key}.0b"
    )
    data: bytes = message.SerializeToString()
    return length_prefix(len(data)) + data


async def intrude(crowd: Crowd, transport: MemoryTransport, *frames: bytes) -> bytes:
    """Ask `a`, which looks for a group of two, to join; what it answers."""
    looking = asyncio.create_task(crowd.find("a", least=2, most=2))
    await asyncio.sleep(0.2)
    stream = await transport.open("a", (), PROTOCOL)
    try:
        await frames_to(stream, *frames)
        return await stream.read(1 << 16)
    except AveragingError:
        return b""
    finally:
        stream.abort()
        looking.cancel()
        await asyncio.wait({looking})


async def test_a_stranger_is_dropped_before_it_is_read() -> None:
    """A peer id that no registered hotkey has signed for gets no answer, whatever it sends."""
    crowd = Crowd("ab")
    assert await intrude(crowd, crowd.network.transport("mallory"), join_request()) == b""
    assert ("mallory", "stranger") in crowd.refusals()


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([(1 << 30).to_bytes(4, "big")], "lost: a frame of 1073741824 bytes"),
        ([(4).to_bytes(4, "big"), b"\xff\xff\xff\xff"], "lost: "),
        ([(4).to_bytes(4, "big")], "lost: "),  # and nothing more
    ],
)
async def test_what_is_no_request_is_dropped(frames: list[bytes], reason: str) -> None:
    """Too large, not protobuf, never complete: told, and without a trace otherwise."""
    crowd = Crowd("ab")
    assert await intrude(crowd, crowd.transports["b"], *frames) == b""
    assert [told for peer, told in crowd.refusals() if peer == "b" and told.startswith(reason)]


def leader_that(crowd: Crowd, name: str, says: Callable[[Stream], Any]) -> None:
    """Let `name` be the first of all to leave a notice, and answer who asks it in its own way."""

    async def handle(stream: Stream) -> None:
        await stream.readexactly(int.from_bytes(await stream.readexactly(4), "big"))
        await says(stream)

    crowd.transports[name]._handlers[PROTOCOL] = handle
    crowd.notices.by_key["run-3-abc.0b"] = {name: time.time() + 0.8}


def message(**fields: Any) -> bytes:
    data: bytes = averaging_pb2.MessageFromLeader(**fields).SerializeToString()
    return length_prefix(len(data)) + data


ACCEPTED = message(code=averaging_pb2.ACCEPTED)


@pytest.mark.parametrize(
    "answers",
    [
        [],  # hangs
        [ACCEPTED],  # and then hangs
        [b"\xff\xff\xff\xff"],
        [(2).to_bytes(4, "big") + b"\xff\xff"],
        [ACCEPTED, message(code=averaging_pb2.GROUP_DISBANDED, suggested_leader=b"nobody")],
        [ACCEPTED, message(code=averaging_pb2.GROUP_DISBANDED, suggested_leader=b"\xff\xfe")],
    ],
)
async def test_a_leader_that_fails_is_left_for_another(answers: list[bytes]) -> None:
    """It hangs, talks nonsense or sends us nowhere: the others find each other in the same search."""
    crowd = Crowd("abz")

    async def says(stream: Stream) -> None:
        await frames_to(stream, *answers)
        await asyncio.sleep(30)

    leader_that(crowd, "z", says)
    limits = MatchmakingLimits(request=0.3, wait=0.8, search=8.0, poll=0.02)
    searches = (crowd.matchmaker(name, limits=limits).find(crowd.search(name, least=2, most=2)) for name in "ab")
    group = the_group(dict(zip("ab", await asyncio.gather(*searches), strict=True)))
    assert set(dict(group.members)) == {"a", "b"}


@pytest.mark.parametrize(
    "begin",
    [
        {"ordered_peer_ids": [b"z", b"b"], "gathered": [b"Z", b"B"]},  # without us
        {"ordered_peer_ids": [b"z", b"a"], "gathered": [b"Z"]},
        {"ordered_peer_ids": [b"z", b"a", b"a"], "gathered": [b"Z", b"A", b"A"]},
    ],
)
async def test_a_group_that_makes_no_sense_is_an_error(begin: dict[str, list[bytes]]) -> None:
    """Whatever hivemind raises comes out as an AveragingError; the search ends at once."""
    crowd, began = Crowd("az"), time.monotonic()

    async def says(stream: Stream) -> None:
        await frames_to(stream, ACCEPTED, message(code=averaging_pb2.BEGIN_ALLREDUCE, group_id=b"id", **begin))
        await asyncio.sleep(30)

    leader_that(crowd, "z", says)
    assert isinstance(await crowd.find("a", least=2, most=3), AveragingError)
    assert time.monotonic() - began < LIMITS.search


class Broken(Noticeboard):
    """A DHT that does not work."""

    async def meet(self, others: object) -> None:
        return

    async def declare(self, key: str, until: float) -> None:
        raise AveragingError("the DHT did not answer")

    async def declared(self, key: str) -> Mapping[str, float]:
        raise AveragingError("the DHT did not answer")


async def test_a_broken_board_is_told() -> None:
    """No group in time, and why."""
    crowd = Crowd("ab")
    matchmaker = Matchmaker(crowd.transports["a"], Broken(), allow=lambda _: True, telemetry=Telemetry(), limits=LIMITS)
    with pytest.raises(AveragingError, match="the DHT did not answer"):
        await matchmaker.find(crowd.search("a", least=2, most=2))


@pytest.mark.parametrize("fields", [{"least": 3, "most": 2}, {"least": 0, "most": 2}, {"blob": b"x" * (MAX_BLOB + 1)}])
async def test_an_impossible_search_is_refused(fields: dict[str, Any]) -> None:
    """Before anything is done."""
    crowd = Crowd("ab")
    with pytest.raises(AveragingError):
        await crowd.matchmaker("a").find(crowd.search("a", **{"least": 2, "most": 2, **fields}))


@pytest.mark.parametrize("change", [{"request": 9.0}, {"wait": 21.0}, {"poll": 0.0}])
def test_limits_that_could_deadlock_are_refused(change: dict[str, float]) -> None:
    """Two peers that wait for each other are parted by the shorter time-out."""
    with pytest.raises(AveragingError):
        MatchmakingLimits(**change)
