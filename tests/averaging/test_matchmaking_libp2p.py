"""Miners without a leader over real libp2p daemons and DHT nodes: they find one group and run its round."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from distributed_training.averaging.averager import Averager
from distributed_training.averaging.binding import binding_is_valid, sign_binding
from distributed_training.averaging.matchmaking import FoundGroup, Matchmaker, MatchmakingLimits, Search
from distributed_training.averaging.peer import Peer
from distributed_training.averaging.plan import plan_from
from distributed_training.gathering import Gathering, Volunteer
from distributed_training.protocol import PeerBinding
from distributed_training.run import RunSpec
from template.errors import AveragingError
from template.telemetry import MemorySink, Telemetry
from tests.averaging.conftest import peer_config
from tests.roles import key_of, metagraph_of, run_spec

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

LIMITS = MatchmakingLimits(request=1.5, wait=4.0, search=9.0)
SHORT = MatchmakingLimits(request=1.5, wait=2.0, search=4.0)  # where nothing is to be found
STATE = (3, "a" * 64)
UIDS = (1, 2, 3, 4)  # uid 0 is the validator, which is gone
SIZE = 10_001


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def islands(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[int, Peer]]:
    """Five peers that do not know of each other, as neurons start: each has a DHT of its own."""
    folder = tmp_path_factory.mktemp("islands")
    async with contextlib.AsyncExitStack() as stack:
        yield {uid: await stack.enter_async_context(Peer(peer_config(folder, str(uid)))) for uid in (*UIDS, 5)}


class Miners:
    """The miners of a subnet of five uids, at one state."""

    def __init__(self, peers: dict[int, Peer], spec: RunSpec) -> None:
        self.peers, self.spec, self.sink = peers, spec, MemorySink()
        self.metagraph = metagraph_of(5)
        self.bindings = {uid: self.bind(uid, uid) for uid in UIDS}

    def bind(self, uid: int, signer: int) -> PeerBinding:
        """The binding that the miner `uid` shows, signed by the hotkey of `signer`."""
        peer = self.peers[uid]
        signed = sign_binding(key_of(signer), self.spec.run_id, peer.peer_id, peer.addresses)
        return signed.model_copy(update={"hotkey": key_of(uid).ss58_address})

    def is_bound(self, uid: int) -> bool:
        return binding_is_valid(self.bindings[uid], self.spec.run_id, key_of(uid).ss58_address)

    def gathering(self) -> Gathering:
        return Gathering(self.spec, STATE, self.metagraph, frozenset({0}))

    def search(self, uid: int, least: int) -> Search:
        gathering = self.gathering()
        others = {u: b for u, b in self.bindings.items() if u != uid and self.is_bound(u)}  # as a census finds them
        volunteer = Volunteer(peer=self.bindings[uid], epoch=STATE[0], state_hash=STATE[1], samples=8)
        return Search(
            key=gathering.key,
            blob=volunteer.blob(),
            candidates={binding.peer_id: binding.addresses for binding in others.values()},
            least=least,
            most=len(self.bindings),
            admit=gathering.refusal,
        )

    def allow(self, peer_id: str) -> bool:
        return any(binding.peer_id == peer_id for binding in self.bindings.values())

    async def find(self, uid: int, least: int = 3, limits: MatchmakingLimits = LIMITS) -> FoundGroup | AveragingError:
        peer = self.peers[uid]
        matchmaker = Matchmaker(peer, peer, allow=self.allow, telemetry=Telemetry([self.sink]), limits=limits)
        try:
            return await matchmaker.find(self.search(uid, least))
        except AveragingError as error:
            return error

    async def average(self, uid: int, found: FoundGroup) -> bytes:
        """The round that this miner derives from the group; the average's bits."""
        peer, request = self.peers[uid], self.gathering().request(found)
        limits = self.spec.averaging
        plan = plan_from(request, size=SIZE, quorum=limits.quorum, max_weight=1000, reduction=limits.reduction)
        averager = Averager(peer, uid=uid, run_id=self.spec.run_id, allow=self.allow, direct=peer.direct)
        async with averager:
            result = await averager.run(plan, vector(uid), float(uid))
        assert result.average is not None, result.outcome
        return result.average.tobytes()


def vector(uid: int) -> np.ndarray:
    return np.random.default_rng(uid).standard_normal(SIZE, dtype=np.float32)


@pytest.fixture
def miners(islands: dict[int, Peer], tmp_path: os.PathLike[str]) -> Miners:
    return Miners(islands, run_spec(tmp_path))  # type: ignore[arg-type]  # pytest gives a Path


async def test_miners_on_four_islands_find_one_group_and_average_the_same_bits(miners: Miners) -> None:
    """They derive one round, and its average is numpy's weighted mean."""
    found = await asyncio.gather(*map(miners.find, UIDS))
    groups = [group for group in found if isinstance(group, FoundGroup)]
    assert len(groups) == 4, found
    assert len({miners.gathering().request(group).round_id for group in groups}) == 1
    averages = await asyncio.gather(*(miners.average(uid, group) for uid, group in zip(UIDS, groups, strict=True)))
    assert len(set(averages)) == 1
    expected = np.average([vector(uid).astype(np.float64) for uid in UIDS], axis=0, weights=UIDS)
    np.testing.assert_allclose(np.frombuffer(averages[0], np.float32), expected, atol=1e-6)


async def test_who_comes_late_is_waited_for(miners: Miners) -> None:
    """Two seconds, as when it looked at the chain a little later."""
    others = [asyncio.create_task(miners.find(uid, 4)) for uid in UIDS[:3]]
    await asyncio.sleep(2.0)
    found = [await miners.find(UIDS[3], 4), *await asyncio.gather(*others)]
    assert all(isinstance(group, FoundGroup) and len(group.members) == 4 for group in found), found


async def test_one_whose_binding_another_key_signed_is_kept_out(miners: Miners) -> None:
    """It finds no group; the others find theirs without it, and have told why."""
    miners.bindings[4] = miners.bind(4, signer=3)
    found = dict(zip(UIDS, await asyncio.gather(*map(miners.find, UIDS)), strict=True))
    assert isinstance(found.pop(4), AveragingError)
    assert all(isinstance(group, FoundGroup) and len(group.members) == 3 for group in found.values()), found
    told = {(record["peer_id"], record["reason"]) for record in miners.sink.records}
    assert told <= {(miners.bindings[4].peer_id, "its peer id is not bound to its hotkey by signature")}


async def test_a_stranger_is_kept_out(miners: Miners) -> None:
    """A peer that no registered hotkey has signed for finds nobody who answers it."""
    stranger = Miners(miners.peers, miners.spec)
    stranger.bindings = {**miners.bindings, 5: stranger.bind(5, 5)}
    searching = asyncio.create_task(stranger.find(5))
    found = await asyncio.gather(*map(miners.find, UIDS))
    assert all(isinstance(group, FoundGroup) and len(group.members) == 4 for group in found), found
    assert isinstance(await searching, AveragingError)
    assert {record["peer_id"] for record in miners.sink.records} <= {miners.peers[5].peer_id}


async def test_too_few_end_without_a_group_and_leave_nothing_behind(miners: Miners) -> None:
    """Two where three are needed: an error in bounded time; no task, descriptor or handler stays."""
    counts = []
    for _ in range(2):
        began = time.monotonic()
        found = await asyncio.gather(*(miners.find(uid, limits=SHORT) for uid in (1, 2)))
        assert all(isinstance(error, AveragingError) for error in found), found
        assert time.monotonic() - began < SHORT.search + 2 * SHORT.request + 5
        await asyncio.sleep(0.2)
        counts.append(_held())
    for _ in range(50):  # what is cancelled ends a little later on a busy machine
        if all(now <= before + 2 for before, now in zip(counts[0], _held(), strict=True)):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{counts}, and {_held()} five seconds later")


def _held() -> tuple[int, int]:
    """Open descriptors and tasks of this process, without those that nothing holds any more.

    hivemind's `DHTNode.store` leaves such behind where no node takes a record: each waits for an event of that call.
    """
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())


async def test_false_notices_stop_nobody(miners: Miners, islands: dict[int, Peer]) -> None:
    """A stranger among the nodes of the DHT says that nobody looks for a group: it is not believed."""
    await islands[5].meet({binding.peer_id: binding.addresses for binding in miners.bindings.values()})
    node, key, late = islands[5]._the_running().node, f"{miners.gathering().key}.0b", time.time() + 3600
    for uid in UIDS:
        await node.store(key, False, late, subkey=islands[uid]._the_running().node.peer_id.to_bytes())
    await node.store(key, False, late)
    found = await asyncio.gather(*map(miners.find, UIDS))
    assert all(isinstance(group, FoundGroup) and len(group.members) == 4 for group in found), found
