"""Which AllReduce requests are accepted: every way in which a leader can be wrong has its word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distributed_training.averaging.binding import sign_binding
from distributed_training.invitation import Reason, require_group, require_leader
from distributed_training.protocol import AllReduce, Deadlines, Member
from template.errors import Refused
from tests.roles import key_of, metagraph_of, run_spec

ME = 1


def member(uid: int, run_id: str, **changes: Any) -> Member:
    peer = sign_binding(key_of(uid), run_id, f"peer{uid}", ("/memory",))
    return Member(**{"uid": uid, "peer": peer, "share": 1 / 3, "contributes": uid > 0, **changes})


def request(folder: Path, **changes: Any) -> AllReduce:
    """A validator (uid 0) and two miners, as the run spec wants it."""
    spec = run_spec(folder)
    fields = {
        "run_id": spec.run_id,
        "epoch": 0,
        "state_hash": "a" * 64,
        "attempt": 0,
        "round_id": "b" * 32,
        "group": tuple(member(uid, spec.run_id) for uid in range(3)),
        "codec": "none",
        "deadlines": Deadlines(connect=10, exchange=10, commit=10),
    }
    return AllReduce(**{**fields, **changes})


def check(folder: Path, asked: AllReduce) -> None:
    spec = run_spec(folder)
    binding = sign_binding(key_of(ME), spec.run_id, f"peer{ME}", ("/memory",))
    mine = next((m.peer for m in asked.group if m.uid == ME and m.peer.peer_id == binding.peer_id), binding)
    require_group(asked, uid=ME, binding=mine, metagraph=metagraph_of(4), validators={0}, spec=spec)


def test_the_run_s_own_group_is_accepted(tmp_path: Path) -> None:
    """Neither members nor deadlines nor codec are objected to; shorter deadlines are fine."""
    check(tmp_path, request(tmp_path))
    check(tmp_path, request(tmp_path, deadlines=Deadlines(connect=1, exchange=10, commit=10)))


WRONG: dict[str, tuple[Reason, Callable[[str, tuple[Member, ...]], tuple[Member, ...]]]] = {
    "descending": (Reason.BAD_GROUP, lambda run, g: (g[1], g[0], g[2])),
    "a uid twice": (Reason.BAD_GROUP, lambda run, g: (g[0], g[1], g[1])),
    "without us": (Reason.BAD_GROUP, lambda run, g: (g[0], g[2].model_copy(update={"share": 2 / 3}))),
    "shares of 2": (Reason.BAD_GROUP, lambda run, g: tuple(m.model_copy(update={"share": 2 / 3}) for m in g)),
    "shares of nothing": (Reason.BAD_GROUP, lambda run, g: tuple(m.model_copy(update={"share": 0.0}) for m in g)),
    "a reducer without a permit": (
        Reason.BAD_GROUP,
        lambda run, g: (*g[:2], g[2].model_copy(update={"contributes": False})),
    ),
    "our old peer id": (
        Reason.BAD_GROUP,
        lambda run, g: (g[0], member(1, run, peer=sign_binding(key_of(1), run, "old", ("/m",))), g[2]),
    ),
    "signed by another": (
        Reason.UNBOUND_PEER,
        lambda run, g: (*g[:2], g[2].model_copy(update={"peer": member(3, run).peer})),
    ),
    "signed for another run": (Reason.UNBOUND_PEER, lambda run, g: (*g[:2], member(2, "other-run"))),
    "a uid that nobody has": (Reason.UNBOUND_PEER, lambda run, g: (*g[:2], g[2].model_copy(update={"uid": 9}))),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_group_is_refused_with_its_word(tmp_path: Path, case: str) -> None:
    """Each of these would make members disagree on who reduces what, or let a stranger in."""
    good = request(tmp_path)
    reason, change = WRONG[case]
    with pytest.raises(Refused) as caught:
        check(tmp_path, good.model_copy(update={"group": change(good.run_id, good.group)}))
    assert caught.value.reason == reason


@pytest.mark.parametrize("state", ["connect", "exchange", "commit"])
def test_longer_deadlines_than_the_run_s_are_refused(tmp_path: Path, state: str) -> None:
    """A leader cannot hold everybody's training up."""
    long = Deadlines(**{"connect": 10, "exchange": 10, "commit": 10, state: 10.5})
    with pytest.raises(Refused) as caught:
        check(tmp_path, request(tmp_path, deadlines=long))
    assert caught.value.reason == Reason.BAD_DEADLINES


def test_another_codec_is_refused(tmp_path: Path) -> None:
    """Peers that decode differently would not get the same bytes."""
    with pytest.raises(Refused) as caught:
        check(tmp_path, request(tmp_path, codec="float16"))
    assert (caught.value.reason, caught.value.status) == (Reason.OTHER_CODEC, 409)


def test_only_the_validator_whose_turn_it_is_may_lead(tmp_path: Path) -> None:
    """Two validators take turns of five blocks; the turn before is still accepted, the one after next is not."""
    asked = request(tmp_path)
    require_leader(asked, 0, {0, 5, 6}, block=0, turn_blocks=5)
    require_leader(asked, 0, {0, 5, 6}, block=6, turn_blocks=5)
    with pytest.raises(Refused) as caught:
        require_leader(asked, 6, {0, 5, 6}, block=6, turn_blocks=5)
    assert (caught.value.reason, caught.value.status) == (Reason.NOT_THE_LEADER, 403)
