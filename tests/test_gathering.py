"""A group without a leader: who may be in it, and that all its members derive the same round."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from distributed_training.averaging.binding import sign_binding
from distributed_training.averaging.matchmaking import MAX_BLOB, FoundGroup
from distributed_training.gathering import Gathering, Volunteer
from distributed_training.invitation import require_group
from distributed_training.run import RunSpec
from template.errors import AveragingError
from tests.roles import key_of, metagraph_of, run_spec

STATE = (3, "a" * 64)


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return run_spec(tmp_path)


def gathering(spec: RunSpec, **changes: Any) -> Gathering:
    """Of four miners; uid 0 is the validator."""
    fields = {"state": STATE, "metagraph": metagraph_of(5), "validators": frozenset({0}), **changes}
    return Gathering(spec, **fields)


def volunteer(spec: RunSpec, uid: int, **changes: Any) -> Volunteer:
    binding = sign_binding(key_of(uid), spec.run_id, f"peer{uid}", ("/memory",))
    return Volunteer(**{"peer": binding, "epoch": STATE[0], "state_hash": STATE[1], "samples": 8, **changes})


def found(spec: RunSpec, *uids: int, group_id: bytes = b"group") -> FoundGroup:
    return FoundGroup(group_id, tuple((f"peer{uid}", volunteer(spec, uid).blob()) for uid in uids))


def test_a_bound_miner_at_our_state_may_be_a_member(spec: RunSpec) -> None:
    """Whatever it has to give."""
    assert gathering(spec).refusal("peer1", volunteer(spec, 1).blob()) is None


@pytest.mark.parametrize(
    ("peer_id", "uid", "changes", "reason"),
    [
        ("peer2", 1, {}, "the binding of another peer id"),
        ("peer7", 7, {}, "not registered"),
        ("peer0", 0, {}, "a validator"),
        ("peer3", 3, {}, "the last round failed by it"),
        ("peer1", 1, {"epoch": 2}, "it stands at epoch 2"),
        ("peer1", 1, {"state_hash": "b" * 64}, "it stands at epoch 3, state bbbb"),
    ],
)
def test_others_may_not(spec: RunSpec, peer_id: str, uid: int, changes: dict[str, Any], reason: str) -> None:
    """And each is told apart."""
    barred = frozenset({key_of(3).ss58_address})
    refusal = gathering(spec, barred=barred).refusal(peer_id, volunteer(spec, uid, **changes).blob())
    assert refusal is not None
    assert reason in refusal


def test_a_binding_signed_by_another_key_or_for_another_run_is_refused(spec: RunSpec) -> None:
    """The hotkey must have named the peer id itself, for this run."""
    forged = sign_binding(key_of(2), spec.run_id, "peer1", ("/memory",))
    forged = forged.model_copy(update={"hotkey": key_of(1).ss58_address})
    elsewhere = sign_binding(key_of(1), "other-000000000000", "peer1", ("/memory",))
    for binding in (forged, elsewhere):
        refusal = gathering(spec).refusal("peer1", volunteer(spec, 1, peer=binding).blob())
        assert refusal == "its peer id is not bound to its hotkey by signature"


@pytest.mark.parametrize("blob", [b"", b"{}", b"\xff\xfe", b"[" * 10000, b" " * (MAX_BLOB + 1)])
def test_nonsense_is_refused(spec: RunSpec, blob: bytes) -> None:
    """Never by an exception."""
    assert gathering(spec).refusal("peer1", blob) is not None


def test_all_members_derive_one_round_that_is_one_to_accept(spec: RunSpec) -> None:
    """Whatever the order they were told in; each of them would accept it of a leader."""
    group = found(spec, 4, 2, 1)
    one = gathering(spec).request(group)
    assert gathering(spec).request(FoundGroup(group.group_id, group.members[::-1])) == one
    assert [(m.uid, m.share, m.contributes) for m in one.group] == [(uid, 1 / 3, True) for uid in (1, 2, 4)]
    for uid in (1, 2, 4):
        (binding,) = (member.peer for member in one.group if member.uid == uid)
        require_group(one, uid=uid, binding=binding, metagraph=metagraph_of(5), validators={0}, spec=spec)


def test_rounds_differ_where_anything_differs(spec: RunSpec) -> None:
    """Another search, group, state or place on the chain: its members cannot meet in one round."""
    here = gathering(spec)
    graph = metagraph_of(5)
    swapped = dataclasses.replace(graph, hotkeys=(*graph.hotkeys[:1], *reversed(graph.hotkeys[1:])))
    rounds = {
        here.request(found(spec, 1, 2)).round_id,
        here.request(found(spec, 1, 2, group_id=b"other")).round_id,
        here.request(found(spec, 1, 2, 3)).round_id,
        gathering(spec, state=(3, "b" * 64)).request(found(spec, 1, 2)).round_id,
        gathering(spec, state=(4, STATE[1])).request(found(spec, 1, 2)).round_id,
        gathering(spec, metagraph=swapped).request(found(spec, 1, 2)).round_id,
    }
    assert len(rounds) == 6


@pytest.mark.parametrize("uids", [(), (1, 1), (1, 7)])
def test_a_group_that_makes_no_round_is_an_error(spec: RunSpec, uids: tuple[int, ...]) -> None:
    """Nobody, one twice, a stranger."""
    with pytest.raises(AveragingError):
        gathering(spec).request(found(spec, *uids))
