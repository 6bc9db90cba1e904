"""Who is let in: registered callers, permits, replays, rates. Pure decisions over bounded tables; time is an argument.

Order, after the signature has been verified: registered, permit, replay, rate of the hotkey. The replay check stands
before the rate, so that somebody who repeats a validator's requests does not use up that validator's rate; it stands
after registration, so that only registered hotkeys take memory here.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

from template.transport.envelope import ALLOWED_SKEW_S, MAX_AGE_S
from template.transport.refusal import Reason, refuse

NANO = 1_000_000_000


class Directory(Protocol):
    """The latest view of who is registered on the subnet."""

    def uid_of(self, hotkey: str) -> int | None:
        """The hotkey's uid, or None if it has none."""

    def is_validator(self, uid: int) -> bool:
        """Whether the uid may send what only validators may send (permit, or stake above the floor)."""

    async def look_again(self) -> bool:
        """Called before somebody is refused for what the view says of him: whether there is a newer one now."""


@dataclass(frozen=True)
class Caller:
    """Who asks: authenticated, and registered at the time of the request."""

    uid: int
    hotkey: str


@dataclass(frozen=True, kw_only=True)
class Rate:
    """`per_second` requests in the long run, `burst` of them at once."""

    per_second: float
    burst: float


class Buckets:
    """One token bucket a key. At most `capacity` keys: the one unused for longest is forgotten, that is, refilled."""

    def __init__(self, rate: Rate, capacity: int) -> None:
        self._rate = rate
        self._capacity = capacity
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now_s: float) -> bool:
        """Take one token at monotonic time `now_s`; False if there is none."""
        tokens, since = self._buckets.pop(key, (self._rate.burst, now_s))
        tokens = min(self._rate.burst, tokens + (now_s - since) * self._rate.per_second)
        granted = tokens >= 1
        self._buckets[key] = (tokens - 1 if granted else tokens, now_s)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return granted


@dataclass
class _Seen:
    """Nonces of one hotkey. All those up to `floor` are refused, whether they were seen or not."""

    floor: int = 0
    nonces: set[int] = field(default_factory=set)
    oldest_first: list[int] = field(default_factory=list)

    def drop_before(self, horizon_ns: int) -> None:
        while self.oldest_first and self.oldest_first[0] < horizon_ns:
            self.floor = heappop(self.oldest_first)
            self.nonces.discard(self.floor)


class NonceStore:
    """Which requests were taken already, for as long as they could still pass as fresh.

    Nothing is forgotten early to make room: a hotkey with `per_hotkey` fresh nonces waits. A nonce that was dropped
    for its age leaves a floor behind, so setting this machine's clock back does not reopen the window; and nonces from
    before `started_ns` are refused, since this store cannot know what an earlier process took. (A sender whose clock
    runs ahead by d <= 2 s could still be replayed if the process was restarted within these d seconds.)
    """

    def __init__(self, *, started_ns: int, retention_s: float, per_hotkey: int, max_hotkeys: int) -> None:
        if retention_s < MAX_AGE_S + ALLOWED_SKEW_S:
            raise ValueError(f"nonces must be kept for at least {MAX_AGE_S + ALLOWED_SKEW_S:g} s")
        self._started_ns = started_ns
        self._retention_ns = int(retention_s * NANO)
        self._per_hotkey = per_hotkey
        self._max_hotkeys = max_hotkeys
        self._seen: dict[str, _Seen] = {}

    def __len__(self) -> int:
        return sum(len(seen.nonces) for seen in self._seen.values())

    def take(self, hotkey: str, nonce: int, now_ns: int) -> None:
        """Remember the nonce; `Refused` if it was taken before, is older than this process, or there is no room."""
        if nonce < self._started_ns:
            raise refuse(Reason.STALE, "the request was signed before this neuron started; sign it again")
        seen = self._of(hotkey, now_ns)
        if nonce <= seen.floor or nonce in seen.nonces:
            raise refuse(Reason.REPLAY, "this nonce was already accepted from this hotkey")
        if len(seen.nonces) >= self._per_hotkey:
            raise refuse(Reason.TOO_MANY_REQUESTS, f"{self._per_hotkey} requests of this hotkey are still fresh")
        seen.nonces.add(nonce)
        heappush(seen.oldest_first, nonce)

    def _of(self, hotkey: str, now_ns: int) -> _Seen:
        horizon = now_ns - self._retention_ns
        if hotkey not in self._seen:
            if len(self._seen) >= self._max_hotkeys:
                self._sweep(horizon)
            self._seen[hotkey] = _Seen()
        seen = self._seen[hotkey]
        seen.drop_before(horizon)
        return seen

    def _sweep(self, horizon_ns: int) -> None:
        """Forget the hotkeys that have no fresh nonce; `Refused` if each has one."""
        for seen in self._seen.values():
            seen.drop_before(horizon_ns)
        self._seen = {hotkey: seen for hotkey, seen in self._seen.items() if seen.nonces}
        if len(self._seen) >= self._max_hotkeys:
            raise refuse(Reason.TOO_MANY_REQUESTS, "too many hotkeys at once")


def address_key(host: str | None) -> str:
    """What counts as one place: an IPv4 address, or the /64 of an IPv6 address, which one customer usually holds."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), 64), strict=False))


class Policy:
    """Lets callers in or raises `Refused`. Holds all the memory an axon has of its callers."""

    def __init__(self, directory: Directory, nonces: NonceStore, by_address: Buckets, by_hotkey: Buckets) -> None:
        self._directory = directory
        self._nonces = nonces
        self._by_address = by_address
        self._by_hotkey = by_hotkey

    def restart(self, nonces: NonceStore) -> None:
        """Begin anew with an empty store whose `started_ns` is now."""
        self._nonces = nonces

    def admit_address(self, host: str | None, now_s: float) -> None:
        """Before anything is read: 429 if this place asks too often."""
        if not self._by_address.take(address_key(host), now_s):
            raise refuse(Reason.TOO_MANY_REQUESTS, "too many requests from this address")

    def admit(self, hotkey: str, nonce: int, *, validators_only: bool, now_ns: int, now_s: float) -> Caller:
        """The caller behind an authenticated hotkey: registered, permitted, not replayed, within its rate."""
        uid = self._directory.uid_of(hotkey)
        if uid is None:
            raise refuse(Reason.UNREGISTERED, f"hotkey {hotkey} is not registered on this subnet")
        if validators_only and not self._directory.is_validator(uid):
            raise refuse(Reason.NO_PERMIT, f"uid {uid} has no validator permit and too little stake")
        self._nonces.take(hotkey, nonce, now_ns)
        if not self._by_hotkey.take(hotkey, now_s):
            raise refuse(Reason.TOO_MANY_REQUESTS, f"too many requests from uid {uid}")
        return Caller(uid, hotkey)
