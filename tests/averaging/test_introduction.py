"""A peer says who it is, and nobody else can say it for it."""

from __future__ import annotations

import pytest
from bittensor.keyfiles import Keypair

from distributed_training.averaging import introduction
from distributed_training.averaging.binding import sign_binding
from distributed_training.averaging.introduction import Introductions, introduced
from distributed_training.averaging.memory import MemoryNetwork
from distributed_training.averaging.peer import Peer
from distributed_training.averaging.streams import Stream
from template.errors import AveragingError

ALICE = Keypair.create_from_uri("//Alice")


async def test_the_binding_arrives_as_it_was_signed() -> None:
    """Whoever asks gets the same answer, again and again."""
    network = MemoryNetwork()
    binding = sign_binding(ALICE, "run-1", "alice", ("/memory",))
    async with Introductions(network.transport("alice"), binding):
        for _ in range(introduction.AT_ONCE + 1):
            assert await introduced(network.transport("bob"), "alice", ()) == binding


async def test_a_peer_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hang, be gone, or send something else."""
    monkeypatch.setattr(introduction, "SECONDS", 0.1)
    network = MemoryNetwork()
    bob, silent = network.transport("bob"), network.transport("silent")

    async def hang(stream: Stream) -> None:
        await stream.read(1)

    async def babble(stream: Stream) -> None:
        await stream.write(b"\xff" * 64)

    await silent.serve(introduction.PROTOCOL, hang)
    await network.transport("babbling").serve(introduction.PROTOCOL, babble)
    for peer_id in ("silent", "babbling", "gone"):
        with pytest.raises(AveragingError):
            await introduced(bob, peer_id, ())


@pytest.mark.integration
@pytest.mark.asyncio(loop_scope="module")
async def test_over_libp2p_another_identity_does_not_answer(peers: dict[int, Peer]) -> None:
    """At its own address the peer is found; somebody else's address does not make somebody else of it."""
    asking, alice, eve = peers[0], peers[1], peers[2]
    binding = sign_binding(ALICE, "run-1", alice.peer_id, alice.addresses)
    impostor = sign_binding(ALICE, "run-1", alice.peer_id, eve.addresses)
    async with Introductions(alice, binding), Introductions(eve, impostor):
        assert await introduced(asking, alice.peer_id, alice.addresses) == binding
        disguised = tuple(a.replace(eve.peer_id, alice.peer_id) for a in eve.addresses)
        assert await introduced(peers[3], alice.peer_id, alice.addresses) == binding
        try:
            answer = await introduced(asking, alice.peer_id, disguised)
        except AveragingError:
            return
        assert answer == binding  # over the connection that stands already
