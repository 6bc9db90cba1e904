"""Shares by bandwidth: against a linear program and a count of what every member moves, and who can distort them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from distributed_training.averaging.shares import (
    LEAST_BYTES,
    MOST,
    Line,
    Rate,
    Traffic,
    balance,
    dialable,
    reported,
    shared,
    smoothed,
)
from distributed_training.protocol import Member, Transfer
from tests.averaging.test_leader import BINDING

HOTKEYS = [letter * 48 for letter in "ABCDEFGHJK"]
EQUAL = (4.0, 4.0)
RATES = st.floats(0.1, 100)


def seconds(shares: np.ndarray, gives: np.ndarray, lines: list[Line], sizes: tuple[float, float]) -> np.ndarray:
    """The time of each member [n], by moving every part and every average of a butterfly."""
    n = len(shares)
    sent, received = np.zeros(n), np.zeros(n)
    for i in range(n):
        for j in range(n):
            if i != j:
                moved = gives[i] * shares[j] * sizes[0] + shares[i] * sizes[1]  # i's part to j, i's average to j
                sent[i] += moved
                received[j] += moved
    ups, downs = np.array([line.up for line in lines]), np.array([line.down for line in lines])
    return np.maximum(sent / ups, received / downs)


def least_seconds(lines: list[Line], sizes: tuple[float, float]) -> float:
    """The smallest time of the slowest by a linear program over (shares, time); all contribute."""
    n, (part, average) = len(lines), sizes
    above, limits = [], []
    for i, line in enumerate(lines):
        slopes = [((n - 1) * average - part, part, line.up), ((n - 1) * part - average, average, line.down)]
        for slope, base, rate in slopes:
            row = np.zeros(n + 1)
            row[i], row[n] = slope, -rate
            above.append(row)
            limits.append(-base)
    most = [(0, MOST / sum(x.reduces for x in lines) if line.reduces else 0) for line in lines]
    total = np.append(np.ones(n), 0.0)[None]
    found = linprog(np.append(np.zeros(n), 1.0), above, limits, total, [1.0], [*most, (0, None)])
    assert found.success
    return float(found.fun)


@given(
    speeds=st.lists(st.tuples(RATES, RATES, st.booleans()), min_size=3, max_size=8).filter(
        lambda speeds: any(reduces for *_, reduces in speeds)
    ),
    sizes=st.sampled_from([(4.0, 4.0), (1.0, 1.0), (2.0, 1.5)]),
)
def test_the_slowest_ends_as_early_as_a_linear_program_says(
    speeds: list[tuple[float, float, bool]], sizes: tuple[float, float]
) -> None:
    """For any lines, with members that cannot reduce."""
    lines = [Line(up=up, down=down, reduces=reduces) for up, down, reduces in speeds]
    traffic = Traffic(part=sizes[0], average=sizes[1], members=len(lines), contributors=len(lines))
    shares = np.array(balance(lines, traffic))
    assert math.isclose(shares.sum(), 1)
    assert all(share == 0 for share, line in zip(shares, lines, strict=True) if not line.reduces)
    slowest = seconds(shares, np.ones(len(lines)), lines, sizes).max()
    assert slowest == pytest.approx(least_seconds(lines, sizes), rel=1e-6)


def test_a_line_that_is_slow_as_such_does_not_starve_the_others() -> None:
    """It is late with its own parts, whatever the shares: the rest is divided equally, not given to the fastest."""
    traffic = Traffic(part=4, average=4, members=3, contributors=3)
    lines = [Line(up=1, down=50), Line(up=20, down=50), Line(up=40, down=50)]
    assert balance(lines, traffic) == pytest.approx((0, 0.5, 0.5))


def test_equal_lines_have_equal_shares() -> None:
    """To the last bit or so, and where nothing is known as well."""
    traffic = Traffic(part=4, average=4, members=5, contributors=4)
    for rate in (3.0, math.inf):
        assert balance([Line(up=rate, down=rate)] * 4, traffic, 0.8) == pytest.approx([0.2] * 4)


def member(uid: int, *, contributes: bool = True, address: str = "/ip4/127.0.0.1/tcp/1") -> Member:
    peer = BINDING.model_copy(update={"hotkey": HOTKEYS[uid], "addresses": (address,)})
    return Member(uid=uid, peer=peer, share=0.25, contributes=contributes)


def rates(*ups: float | None) -> dict[str, Rate]:
    return {hotkey: Rate(up, up) for hotkey, up in zip(HOTKEYS, ups, strict=False)}


def shares_of(members: list[Member], **changes: object) -> list[float]:
    given = {"reducing": range(10), "rates": {}, "validator_share": 1.0, "sizes": EQUAL, **changes}
    found = shared(members, **given)  # type: ignore[arg-type]
    assert math.isclose(math.fsum(m.share for m in found), 1)
    assert [m.uid for m in found] == [m.uid for m in members]
    return [m.share for m in found]


def test_validators_reduce_what_the_run_says() -> None:
    """A part of an equal share; the miners divide the rest. With nothing known that is equal shares, as ever."""
    group = [member(0, contributes=False), *(member(uid) for uid in (1, 2, 3))]
    assert shares_of(group) == pytest.approx([0.25] * 4)
    assert shares_of(group, validator_share=0.4) == pytest.approx([0.1, 0.3, 0.3, 0.3])
    assert shares_of(group, validator_share=0.0, rates=rates(9, 1, 1, 1)) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


def test_the_fast_reduce_more_and_the_unknown_as_the_median() -> None:
    """In the order of their lines."""
    shares = shares_of([member(uid) for uid in range(5)], rates=rates(4.0, 5.0, None, 6.0, 9.0))
    assert shares[0] < shares[1] == shares[2] < shares[3] < shares[4] < MOST / 5


def test_clients_reduce_nothing() -> None:
    """Whom nobody can dial, or only through a relay."""
    relayed = "/ip4/10.0.0.1/tcp/1/p2p/QmRelay/p2p-circuit/p2p/QmUs"
    assert [dialable(x) for x in [(), (relayed,), (relayed, "/ip4/10.0.0.2/tcp/1")]] == [False, False, True]
    assert shares_of([member(0), member(1), member(2, address=relayed)]) == pytest.approx([0.5, 0.5, 0])
    only_validators = [member(0, contributes=False), member(1, address=relayed)]
    assert shares_of(only_validators, validator_share=0.0) == [1, 0]
    assert shares_of([member(0, address=relayed)]) == [1]  # somebody has to
    assert shared([member(0)], set(), {}, 1.0, EQUAL) == ()


def test_who_lost_its_share_gets_none_back() -> None:
    """The leader took it away because of what the others said, or did not believe it."""
    group = [member(0, contributes=False), *(member(uid) for uid in (1, 2, 3))]
    assert shares_of(group, reducing={1, 3}) == pytest.approx([0, 0.5, 0, 0.5])
    assert shares_of(group, reducing={0, 1}) == pytest.approx([0.25, 0.75, 0, 0])


def transfer(uid: int, sent: int, received: int, time: float = 1.0) -> Transfer:
    return Transfer(uid=uid, bytes_sent=sent, bytes_received=received, seconds_sending=time, seconds_receiving=time)


K = LEAST_BYTES


@given(
    honest=st.lists(st.integers(2 * K, 4 * K), min_size=2, max_size=5),
    lie=st.integers(0, 2**53),
    time=st.floats(0, 1e300),
)
def test_a_minority_cannot_move_another_s_rate(honest: list[int], lie: int, time: float) -> None:
    """Nor can anybody its own: what it says of itself is not heard, and a second word of another neither."""
    reports = {uid: [transfer(9, rate, rate)] for uid, rate in enumerate(honest)}
    reports[8] = [transfer(9, lie, lie, time), *[transfer(9, lie, lie, 1e-9)] * 9]
    reports[9] = [transfer(9, lie, lie, 1e-6)]
    rate = reported(reports)[9]
    assert rate.up is not None
    assert min(honest) <= rate.up <= max(honest)


def sends(me: int, rates: dict[int, int]) -> list[Transfer]:
    """What `me` measured when it sent so fast to each of the others; nothing came back."""
    return [transfer(uid, rate, 0) for uid, rate in rates.items() if uid != me]


def test_a_slow_download_is_known_by_who_is_faster_elsewhere() -> None:
    """Uid 3 takes a quarter of what everybody gives the others; their own lines, however slow, are not its fault."""
    lines = {0: 8 * K, 1: 16 * K, 2: 32 * K, 3: 32 * K}
    told = {me: sends(me, {uid: up // 4 if uid == 3 else up for uid in lines}) for me, up in lines.items()}
    assert {uid: rate.down for uid, rate in reported(told).items()} == {0: math.inf, 1: math.inf, 2: math.inf, 3: 4 * K}


def test_one_of_two_cannot_slow_a_download() -> None:
    """Most have to see it."""
    told = {0: sends(0, {1: 8 * K, 2: 8 * K}), 1: sends(1, {0: 8 * K, 2: K})}
    assert reported(told)[2].down == math.inf


def test_directions_are_those_of_the_one_told_about() -> None:
    """What we received from it is what it sent; short transfers and those without a time say nothing."""
    told = {0: [transfer(1, 2 * K, 6 * K, 2.0), transfer(2, K - 1, K), transfer(3, K, K, 0.0), transfer(4, 9 * K, 0)]}
    nothing = Rate(None, None)
    assert reported(told) == {1: Rate(3 * K, K), 2: Rate(K, None), 3: nothing, 4: Rate(None, math.inf)}


def test_one_bad_round_moves_a_rate_a_little() -> None:
    """Neither starved nor flooded; if it stays so, it is believed after some rounds."""
    known = rates(10.0, 10.0, 10.0)
    bad = smoothed(known, rates(0.001, 1e6, 10.0))
    assert [rate.up for rate in bad.values()] == pytest.approx([10 / 4**0.3, 10 * 4**0.3, 10])
    for _ in range(60):
        known = smoothed(known, rates(1.0, 10.0))
    assert [rate.up for rate in known.values()] == pytest.approx([1, 10, 10], rel=1e-3)


def test_a_newcomer_starts_from_the_median() -> None:
    """Its first round is one round."""
    assert smoothed({}, rates(10.0, 10.0, 40.0))[HOTKEYS[2]].up == pytest.approx(10 * 4**0.3)
    assert smoothed({}, rates(10.0)) == rates(10.0)


def test_a_limit_comes_and_goes_slowly() -> None:
    """A download that limited nobody is believed to be slow as slowly as it is believed to be fast again."""
    free, slow = {HOTKEYS[0]: Rate(10.0, math.inf)}, {HOTKEYS[0]: Rate(10.0, 2.0)}
    assert smoothed(free, free) == free
    once = smoothed(free, slow)[HOTKEYS[0]].down
    assert once == pytest.approx(2.0 * 4**0.7)
    again = smoothed({HOTKEYS[0]: Rate(10.0, once)}, free)[HOTKEYS[0]].down
    assert again == pytest.approx(2.0 * 4)
    assert smoothed({}, slow) == slow


def test_who_was_not_seen_stays_as_it_was() -> None:
    """And somebody about whom nothing is known stays unknown."""
    assert smoothed(rates(10.0), {HOTKEYS[1]: Rate(None, None)}) == rates(10.0, None)
