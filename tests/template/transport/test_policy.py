"""Who is let in, decided without a socket or a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from template.errors import Refused
from template.transport.policy import NANO, Buckets, Caller, NonceStore, Policy, Rate, address_key
from tests.template.transport.wires import ALICE, BOB, CHARLIE, EVE, Register

START = 1_700_000_000 * NANO
HOTKEY = ALICE.ss58_address


def store(per_hotkey: int = 100, max_hotkeys: int = 10) -> NonceStore:
    return NonceStore(started_ns=START, retention_s=12, per_hotkey=per_hotkey, max_hotkeys=max_hotkeys)


def policy(rate: float = 100, burst: float = 100) -> Policy:
    limits = Rate(per_second=rate, burst=burst)
    return Policy(Register(), store(), Buckets(limits, 4), Buckets(limits, 4))


def admit(gate: Policy, hotkey: str, nonce: int = START, *, validators_only: bool = False) -> Caller:
    return gate.admit(hotkey, nonce, validators_only=validators_only, now_ns=START, now_s=0)


def reason(call: object, *arguments: object) -> str:
    with pytest.raises(Refused) as refusal:
        call(*arguments)  # type: ignore[operator]
    return refusal.value.reason


def test_a_nonce_is_taken_once() -> None:
    """The second time is a replay, at any moment of the window."""
    nonces = store()
    nonces.take(HOTKEY, START, START)
    for after_s in (0, 5, 10, 12):
        assert reason(nonces.take, HOTKEY, START, START + after_s * NANO) == "replay"


def test_nonces_of_two_hotkeys_do_not_meet() -> None:
    """The same number from another sender is another nonce."""
    nonces = store()
    nonces.take(HOTKEY, START, START)
    nonces.take(BOB.ss58_address, START, START)
    assert len(nonces) == 2


def test_a_nonce_from_before_the_start_is_stale() -> None:
    """What an earlier process may have taken is not taken again."""
    assert reason(store().take, HOTKEY, START - 1, START) == "stale"


def test_setting_the_clock_back_does_not_reopen_the_window() -> None:
    """A nonce dropped for its age stays refused when the machine's time jumps back."""
    nonces = store()
    nonces.take(HOTKEY, START + 1, START)
    nonces.take(HOTKEY, START + 60 * NANO, START + 60 * NANO)
    assert len(nonces) == 1
    assert reason(nonces.take, HOTKEY, START + 1, START) == "replay"


def test_a_hotkey_cannot_fill_the_memory() -> None:
    """At the bound new nonces wait, old ones are still known, and time makes room."""
    nonces = store(per_hotkey=3)
    for step in range(3):
        nonces.take(HOTKEY, START + step, START)
    assert reason(nonces.take, HOTKEY, START + 3, START) == "too_many_requests"
    assert reason(nonces.take, HOTKEY, START, START) == "replay"
    nonces.take(HOTKEY, START + 20 * NANO, START + 20 * NANO)
    assert len(nonces) == 1


def test_many_hotkeys_cannot_fill_the_memory() -> None:
    """At the bound those without a fresh nonce make room, others do not."""
    nonces = store(max_hotkeys=2)
    nonces.take("a", START, START)
    nonces.take("b", START + 15 * NANO, START + 15 * NANO)
    nonces.take("c", START + 15 * NANO, START + 15 * NANO)
    assert reason(nonces.take, "d", START + 15 * NANO, START + 15 * NANO) == "too_many_requests"


def test_a_window_longer_than_the_memory_is_refused() -> None:
    """Forgetting before staleness would reopen the window."""
    with pytest.raises(ValueError, match="12"):
        NonceStore(started_ns=0, retention_s=11.9, per_hotkey=1, max_hotkeys=1)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60))
def test_no_sequence_takes_a_fresh_nonce_twice(steps: list[tuple[int, int]]) -> None:
    """Against a plain set: within the window a nonce is taken exactly the first time, whatever the order."""
    nonces, taken = store(), set()
    for offset, now in steps:
        nonce, now_ns = START + offset * NANO, START + now * NANO
        if not now_ns - 10 * NANO <= nonce <= now_ns + 2 * NANO:
            continue
        try:
            nonces.take(HOTKEY, nonce, now_ns)
        except Refused:
            continue
        assert nonce not in taken
        taken.add(nonce)


def test_a_bucket_gives_its_burst_then_its_rate() -> None:
    """Burst of 3, then two each second, never more than the burst after a pause."""
    buckets = Buckets(Rate(per_second=2, burst=3), 10)
    assert [buckets.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert [buckets.take("a", 0.5), buckets.take("a", 0.5)] == [True, False]
    assert [buckets.take("a", 100.0) for _ in range(4)] == [True, True, True, False]


def test_buckets_are_bounded_and_keep_the_busy_ones() -> None:
    """Strangers push out each other, not the one that is being held back."""
    buckets = Buckets(Rate(per_second=0.001, burst=1), 3)
    for stranger in range(50):
        buckets.take("busy", 0.0)
        buckets.take(f"stranger {stranger}", 0.0)
    assert len(buckets) == 3
    assert not buckets.take("busy", 0.0)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=80).map(sorted))
def test_a_bucket_never_exceeds_its_rate(times: list[float]) -> None:
    """Over any span at most burst + rate * span is granted."""
    buckets = Buckets(Rate(per_second=3, burst=5), 10)
    granted = sum(buckets.take("a", moment) for moment in times)
    assert granted <= 5 + 3 * (times[-1] - times[0]) + 1e-6


def test_registered_callers_are_named() -> None:
    """The uid comes from the directory."""
    assert admit(policy(), BOB.ss58_address) == Caller(1, BOB.ss58_address)


def test_strangers_and_callers_without_permit_are_refused() -> None:
    """Each for its own reason, and without taking memory."""
    gate = policy()
    with pytest.raises(Refused) as stranger:
        admit(gate, EVE.ss58_address)
    with pytest.raises(Refused) as miner:
        admit(gate, BOB.ss58_address, validators_only=True)
    assert (stranger.value.reason, miner.value.reason) == ("unregistered", "no_permit")
    assert admit(gate, ALICE.ss58_address, validators_only=True).uid == 0


def test_replays_do_not_use_up_the_victims_rate() -> None:
    """Somebody who repeats a caller's request cannot lock that caller out."""
    gate = policy(rate=0.001, burst=2)
    admit(gate, CHARLIE.ss58_address)
    for _ in range(20):
        with pytest.raises(Refused, match="already accepted"):
            admit(gate, CHARLIE.ss58_address)
    assert admit(gate, CHARLIE.ss58_address, START + 1).uid == 2
    with pytest.raises(Refused, match="too many requests"):
        admit(gate, CHARLIE.ss58_address, START + 2)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        (None, "", True),
    ],
)
def test_what_counts_as_one_place(one: str | None, other: str | None, same: bool) -> None:
    """An IPv4 address is one place in either notation; of IPv6 a /64 is."""
    assert (address_key(one) == address_key(other)) is same
