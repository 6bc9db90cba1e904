"""A group that gathered without a leader: who may be in it, and the one round that all its members derive. Pure.

Nothing that another miner says is taken on its word: a member is bound to a registered hotkey by signature and stands
where we stand, and the round that it leads to is checked like any other (invitation.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, ValidationError

from distributed_training.averaging.binding import binding_is_valid
from distributed_training.averaging.matchmaking import MAX_BLOB, FoundGroup
from distributed_training.protocol import MAX_GROUP, AllReduce, Deadlines, Epoch, Hash, Member, PeerBinding
from distributed_training.run import RunSpec
from template.chain.metagraph import Metagraph
from template.errors import AveragingError
from template.transport.synapse import Message


class Volunteer(Message):
    """What a miner tells the others of a group: who it is, where it stands, how much it has to give."""

    peer: PeerBinding
    epoch: Epoch
    state_hash: Hash
    samples: Annotated[int, Field(ge=1, le=2**53)]

    def blob(self) -> bytes:
        return self.model_dump_json().encode()


@dataclass(frozen=True)
class Gathering:
    """One search for a group at `state` (epoch, state hash). `barred`: hotkeys that are to stay out of it."""

    spec: RunSpec
    state: tuple[int, str]
    metagraph: Metagraph
    validators: frozenset[int]
    barred: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """What the members have in common; without a dot, as hivemind wants it."""
        epoch, state_hash = self.state
        return f"{self.spec.run_id}-{epoch}-{state_hash}"

    def refusal(self, peer_id: str, blob: bytes) -> str | None:
        """Why this peer must not be a member; None if it may."""
        volunteer = _volunteer(blob)
        if volunteer is None:
            return "what it tells of itself is not a volunteer's"
        hotkey = volunteer.peer.hotkey
        if volunteer.peer.peer_id != peer_id:
            return "it shows the binding of another peer id"
        uid = self.metagraph.uid_of(hotkey)
        if uid is None:
            return "its hotkey is not registered"
        if not binding_is_valid(volunteer.peer, self.spec.run_id, hotkey):
            return "its peer id is not bound to its hotkey by signature"
        if uid in self.validators:
            return "it is a validator, which has to lead instead"
        if hotkey in self.barred:
            return "the last round failed by it"
        if (volunteer.epoch, volunteer.state_hash) != self.state:
            return f"it stands at epoch {volunteer.epoch}, state {volunteer.state_hash[:12]}"
        return None

    def request(self, found: FoundGroup) -> AllReduce:
        """The round of a group whose members may all be in it: the same at each of them.

        Raises:
            AveragingError: no round can be made of it.
        """
        members = self._members(found)
        limits = self.spec.averaging
        epoch, state_hash = self.state
        return AllReduce(
            run_id=self.spec.run_id,
            epoch=epoch,
            state_hash=state_hash,
            attempt=0,
            round_id=self._round_id(found.group_id, members),
            group=members,
            codec=limits.codec,
            deadlines=Deadlines(
                connect=limits.connect_seconds, exchange=limits.exchange_seconds, commit=limits.commit_seconds
            ),
        )

    def _members(self, found: FoundGroup) -> tuple[Member, ...]:
        bindings: dict[int, PeerBinding] = {}
        for peer_id, blob in found.members:
            volunteer = _volunteer(blob)
            uid = None if volunteer is None else self.metagraph.uid_of(volunteer.peer.hotkey)
            if volunteer is None or uid is None or uid in bindings:
                raise AveragingError(f"{peer_id} cannot be a member of the round")
            bindings[uid] = volunteer.peer
        if not 1 <= len(bindings) <= MAX_GROUP:
            raise AveragingError(f"a group of {len(bindings)}; at most {MAX_GROUP} can average")
        return tuple(
            Member(uid=uid, peer=bindings[uid], share=1 / len(bindings), contributes=True) for uid in sorted(bindings)
        )

    def _round_id(self, group_id: bytes, members: tuple[Member, ...]) -> str:
        """Depends on all that the members must agree on: who was told another group cannot meet the others."""
        lines = ["dt-gathering/1", self.key, group_id.hex()]
        lines += [f"{member.uid} {member.peer.hotkey} {member.peer.peer_id}" for member in members]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _volunteer(blob: bytes) -> Volunteer | None:
    if len(blob) > MAX_BLOB:
        return None
    try:
        return Volunteer.model_validate_json(blob)
    except ValidationError:
        return None
