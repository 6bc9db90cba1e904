"""Whether an AllReduce request is one to accept: decided from the request, the chain and the run spec alone."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from distributed_training import schedule
from distributed_training.averaging.binding import binding_is_valid
from distributed_training.protocol import AllReduce, Deadlines, Member, PeerBinding
from distributed_training.run import AveragingSpec, RunSpec
from template.chain.metagraph import Metagraph
from template.errors import Refused

SHARES_TOLERANCE = 1e-6  # on their sum: each was rounded once


class Reason(StrEnum):
    """The words a node refuses a round with, beside the axon's own."""

    NOT_THE_LEADER = "not_the_leader"
    BUSY = "busy"
    OTHER_STATE = "other_state"
    BAD_GROUP = "bad_group"
    UNBOUND_PEER = "unbound_peer"
    BAD_DEADLINES = "bad_deadlines"
    OTHER_CODEC = "other_codec"
    NOTHING_TO_GIVE = "nothing_to_give"
    IMPOSSIBLE_ROUND = "impossible_round"
    UNUSABLE_AVERAGE = "unusable_average"


_STATUS = {
    Reason.NOT_THE_LEADER: 403,
    Reason.BAD_GROUP: 400,
    Reason.UNBOUND_PEER: 400,
    Reason.BAD_DEADLINES: 400,
    Reason.IMPOSSIBLE_ROUND: 400,
}


def refuse(reason: Reason, detail: str) -> Refused:
    """The error to raise; 409 where a later request may well be accepted."""
    return Refused(detail, status=_STATUS.get(reason, 409), reason=reason.value)


def require_leader(request: AllReduce, caller: int, validators: Collection[int], block: int, turn_blocks: int) -> None:
    """Refuse a round of somebody whose turn it is not."""
    if not schedule.may_lead(caller, validators, request.epoch, block, turn_blocks):
        raise refuse(Reason.NOT_THE_LEADER, f"uid {caller} does not lead epoch {request.epoch} at block {block}")


def require_group(
    request: AllReduce,
    *,
    uid: int,
    binding: PeerBinding,
    metagraph: Metagraph,
    validators: Collection[int],
    spec: RunSpec,
) -> None:
    """Refuse a group that is not what the run spec and the chain say it must be, or that leaves `uid` out.

    Raises:
        Refused: with a `Reason`.
    """
    uids = [member.uid for member in request.group]
    if len(set(uids)) != len(uids) or uids != sorted(uids):
        raise refuse(Reason.BAD_GROUP, "the group must list each uid once, ascending")
    mine = [member for member in request.group if member.uid == uid]
    if not mine or mine[0].peer != binding:
        raise refuse(Reason.BAD_GROUP, "this neuron, as it last described itself, is not in the group")
    if abs(sum(member.share for member in request.group) - 1) > SHARES_TOLERANCE:
        raise refuse(Reason.BAD_GROUP, "the shares must sum to 1")
    if _longer(request.deadlines, spec.averaging):
        raise refuse(Reason.BAD_DEADLINES, "the deadlines are longer than the run's")
    if request.codec != spec.averaging.codec:
        raise refuse(Reason.OTHER_CODEC, f"the run's codec is {spec.averaging.codec}")
    for member in request.group:
        _require_member(member, metagraph, request.run_id, validators)


def _longer(asked: Deadlines, limits: AveragingSpec) -> bool:
    return (
        asked.connect > limits.connect_seconds
        or asked.exchange > limits.exchange_seconds
        or asked.commit > limits.commit_seconds
    )


def _require_member(member: Member, metagraph: Metagraph, run_id: str, validators: Collection[int]) -> None:
    known = member.uid < len(metagraph)
    if not known or not binding_is_valid(member.peer, run_id, metagraph.hotkeys[member.uid]):
        raise refuse(Reason.UNBOUND_PEER, f"the peer id of uid {member.uid} is not bound by its hotkey's signature")
    if not member.contributes and member.uid not in validators:
        raise refuse(Reason.BAD_GROUP, f"uid {member.uid} reduces without being a validator")
