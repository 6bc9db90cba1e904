"""Simulated time: how long a run would have taken over given links, from its ledger and its counted arithmetic.

Each node computes at a declared rate and has one full-duplex link, on which transfers follow one another. A message
sent after step t occupies the link for latency + 8 max(sent, received) / bandwidth seconds, and its result is needed
before step t + delay + 1 begins: without a delay everybody waits for it, with one the transfer and the next steps
overlap. The slowest node decides, as all of them wait for each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from distributed_training.arena.ledger import Entry
from template.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Link:
    """Bits a second each way, and seconds of latency of one exchange."""

    bandwidth: float
    latency: float

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or not self.latency >= 0:
            raise ConfigurationError("a link's bandwidth must be positive and its latency not negative")

    def seconds(self, sent: int, received: int) -> float:
        """How long an exchange of so many bytes takes; nothing takes no time."""
        return self.latency + 8 * max(sent, received) / self.bandwidth if sent or received else 0.0


@dataclass(frozen=True)
class _Transfer:
    due: int
    seconds: float


def simulated_seconds(entries: Sequence[Entry], steps: int, step_seconds: float, link: Link) -> tuple[float, ...]:
    """The time at the end of each step [steps], what is due after it included.

    Args:
        step_seconds: of the computation of one step.
    """
    transfers = _transfers(entries, link)
    now, free, times = 0.0, 0.0, []
    pending: dict[int, float] = defaultdict(float)  # the time at which all is there that is due after a step
    for step in range(1, steps + 1):
        now += step_seconds
        for transfer in transfers.get(step, ()):
            free = max(now, free) + transfer.seconds
            pending[transfer.due] = max(pending[transfer.due], free)
        now = max(now, pending.pop(step, 0.0))
        times.append(now)
    return tuple(times)


def _transfers(entries: Sequence[Entry], link: Link) -> dict[int, list[_Transfer]]:
    """By step the transfers in order, each as long as at its slowest node."""
    slowest: dict[tuple[int, str], _Transfer] = {}
    for entry in entries:
        seconds, key = link.seconds(entry.sent, entry.received), (entry.step, entry.operation)
        if key not in slowest or seconds > slowest[key].seconds:
            slowest[key] = _Transfer(entry.step + entry.delay, seconds)
    by_step: dict[int, list[_Transfer]] = defaultdict(list)
    for (step, _), transfer in slowest.items():
        by_step[step].append(transfer)
    return by_step
