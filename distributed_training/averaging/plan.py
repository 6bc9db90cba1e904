"""What one round is, before it starts: the group, who reduces what, the codec, the deadlines and the quorum."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass

from distributed_training.averaging.codec import pair_named
from distributed_training.averaging.partition import partition
from distributed_training.averaging.rule_names import MEAN, parse_rule
from distributed_training.protocol import MAX_GROUP, AllReduce
from template.errors import AveragingError

CHUNK = 1 << 18  # values a frame at most: 1 MiB of float32, the fastest size measured over libp2p
SMALL_CHUNK = 1 << 14
CHUNKS_A_SHARE = 24  # at least, unless they would be smaller than SMALL_CHUNK


@dataclass(frozen=True, kw_only=True)
class Participant:
    """One member of the group. `share` is its part of the reduction (0: reduces nothing).

    `contributes` is false for an auxiliary member, which puts nothing into the average and has no say in the vote.
    """

    uid: int
    peer_id: str
    addresses: tuple[str, ...]
    share: float
    contributes: bool


@dataclass(frozen=True, kw_only=True)
class StateDeadlines:
    """Seconds: CONNECT may take `connect`, EXCHANGE `exchange` from there on, COMMIT `commit` from there on.

    A member that is early in EXCHANGE waits there for those that use their whole CONNECT, and one that is early in
    COMMIT for those that use their whole EXCHANGE. So a member that hangs costs the others the longest one of the
    three, and the bound on a round is their sum.
    """

    connect: float
    exchange: float
    commit: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise AveragingError(f"the deadline '{field.name}' must be positive and finite, not {value}")


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """One attempt at an average of vectors of `size` float32 values.

    `quorum`, in (0.5, 1], is the fraction of the contributors' weight that must vote for the same average before
    anybody commits; `max_weight` bounds what one contributor may claim; `reduction` names what makes one of the parts
    (robust.py); `chunk` is the number of values a frame.

    Raises:
        AveragingError: the plan is impossible; nothing in it may be repaired by guessing.
    """

    round_id: str
    run_id: str
    epoch: int
    attempt: int
    members: tuple[Participant, ...]
    size: int
    codec: str
    deadlines: StateDeadlines
    quorum: float
    max_weight: float
    reduction: str = MEAN
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        pair_named(self.codec)
        parse_rule(self.reduction)
        _require(re.fullmatch(r"[0-9a-f]{32}", self.round_id) is not None, "a round id is 32 hex digits")
        _require(1 <= len(self.members) <= MAX_GROUP, f"a group has 1 to {MAX_GROUP} members")
        _require(len({m.uid for m in self.members}) == len(self.members), "a uid is twice in the group")
        _require(len({m.peer_id for m in self.members}) == len(self.members), "a peer id is twice in the group")
        _require(any(m.contributes for m in self.members), "nobody contributes")
        _require(all(math.isfinite(m.share) and m.share >= 0 for m in self.members), "a share is negative")
        _require(any(m.share > 0 for m in self.members), "nobody reduces")
        _require(self.size >= 1 and self.chunk >= 1, "the vector or the chunk is empty")
        _require(0.5 < self.quorum <= 1, "the quorum must lie in (0.5, 1]: with less, two halves could both commit")
        _require(math.isfinite(self.max_weight) and self.max_weight > 0, "max_weight must be positive and finite")

    @property
    def contributors(self) -> tuple[int, ...]:
        """The uids that put something into the average, ascending: the canonical order of summation."""
        return tuple(sorted(m.uid for m in self.members if m.contributes))

    def digest(self) -> str:
        """Names what all members must agree on: everything but addresses and deadlines, as sha256 in hex."""
        fixed = (self.round_id, self.run_id, self.epoch, self.attempt, self.size, self.codec, self.chunk)
        members = sorted((m.uid, m.peer_id, m.share, m.contributes) for m in self.members)
        return hashlib.sha256(
            json.dumps([fixed, self.reduction, self.quorum, self.max_weight, members]).encode()
        ).hexdigest()

    def ranges(self) -> dict[int, tuple[int, int]]:
        """The part [start, stop) of the vector that each uid reduces.

        Members are taken in an order that changes with the epoch, so that a member, above all a validator, which checks
        what passes through its share, does not reduce the same part of the model all the time.
        """
        ordered = sorted(
            self.members, key=lambda m: hashlib.sha256(f"{self.run_id} {self.epoch} {m.uid}".encode()).digest()
        )
        bounds = partition(self.size, [m.share for m in ordered])
        return {member.uid: bound for member, bound in zip(ordered, bounds, strict=True)}


def chunk_for(size: int, reducers: int) -> int:
    """How many values a frame shall have in a round of `size` values that so many members reduce.

    No chunk's average can be sent before all of its parts are here, so the first and the last chunk of a share keep one
    direction of a link idle: at 110 Mbit/s, a quarter of a second each for four members and 1 MiB.
    """
    wanted = size // (reducers * CHUNKS_A_SHARE)
    return min(CHUNK, max(SMALL_CHUNK, wanted // SMALL_CHUNK * SMALL_CHUNK))


def plan_from(request: AllReduce, *, size: int, quorum: float, max_weight: float, reduction: str) -> RoundPlan:
    """The plan that an AllReduce message asks for, completed by what the run spec fixes.

    Raises:
        AveragingError: the message asks for an impossible round.
    """
    members = tuple(
        Participant(
            uid=m.uid, peer_id=m.peer.peer_id, addresses=m.peer.addresses, share=m.share, contributes=m.contributes
        )
        for m in request.group
    )
    return RoundPlan(
        round_id=request.round_id,
        run_id=request.run_id,
        epoch=request.epoch,
        attempt=request.attempt,
        members=members,
        size=size,
        codec=request.codec,
        deadlines=StateDeadlines(**request.deadlines.model_dump()),
        quorum=quorum,
        max_weight=max_weight,
        reduction=reduction,
        chunk=chunk_for(size, max(1, sum(m.share > 0 for m in members))),
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AveragingError(f"impossible round: {message}")
