"""Who sent and received how many bytes, in which step and operation; and the one way from node to node.

`exchange` moves the messages that strategies return, and what it moves it enters. A node that is alone sends nothing.

Sent is a message's payload, once; received is what the node needs of the others: of a mean the mean, once, of a
gathered message every other node's payload, N - 1 of them. That is traffic at the edge: a reducer, a relay or a
multicast that does it for N nodes is counted at none of them. A butterfly all-reduce would send 2 (N - 1) / N times the
payload of a mean, and gathering without a relay (N - 1) times the payload.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from distributed_training.strategies.message import Combine, Message, Received, combined, combined_size
from template.errors import StrategyError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one node moved for one message. `step` counts from 1; the result is needed after `step` + `delay`."""

    step: int
    node: int
    operation: str
    combine: Combine
    codec: str
    sent: int
    received: int
    delay: int


@dataclass(frozen=True)
class Traffic:
    """Bytes of one node: sent, received, and the most of both together that fell into one step."""

    sent: int
    received: int
    peak: int


class Ledger:
    """All entries of a run, in order."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = list(entries)

    @property
    def entries(self) -> Sequence[Entry]:
        return tuple(self._entries)

    def enter(self, entries: Iterable[Entry]) -> None:
        """Append."""
        self._entries.extend(entries)

    def traffic(self, node: int) -> Traffic:
        """All that the node moved; zeros if it never did."""
        mine = [entry for entry in self._entries if entry.node == node]
        steps: Counter[int] = Counter()
        for entry in mine:
            steps[entry.step] += entry.sent + entry.received
        return Traffic(sum(e.sent for e in mine), sum(e.received for e in mine), max(steps.values(), default=0))

    def by_operation(self, node: int) -> dict[str, Traffic]:
        """The same for each operation, by name."""
        names = dict.fromkeys(entry.operation for entry in self._entries if entry.node == node)
        return {name: Ledger(e for e in self._entries if e.operation == name).traffic(node) for name in names}


def exchange(
    step: int, outgoing: Sequence[Sequence[Message]], device: torch.device
) -> tuple[tuple[Entry, ...], tuple[tuple[int, Received], ...]]:
    """Combine what the nodes send after `step`; `outgoing[rank]` are the messages of one of them.

    Returns the entries, and (step after which it is due, combined message) for everybody.

    Raises:
        StrategyError: nodes do not send messages of the same kinds, or a payload is malformed.
    """
    counts = {len(messages) for messages in outgoing}
    if len(counts) > 1:
        raise StrategyError(f"step {step}: nodes send {sorted(counts)} messages; all must send the same ones")
    entries: list[Entry] = []
    results: list[tuple[int, Received]] = []
    for messages in zip(*outgoing, strict=True):
        if messages[0].delay < 0:
            raise StrategyError(f"'{messages[0].operation}' is wanted before it is sent")
        results.append((step + messages[0].delay, combined(messages, device)))
        entries.extend(_entry(step, rank, messages) for rank in range(len(messages)))
    return tuple(entries), tuple(results)


def _entry(step: int, rank: int, messages: Sequence[Message]) -> Entry:
    mine = messages[rank]
    others = sum(m.size for m in messages) - mine.size
    received = combined_size(mine) if mine.combine is Combine.MEAN else others
    alone = len(messages) == 1
    return Entry(
        step=step,
        node=rank,
        operation=mine.operation,
        combine=mine.combine,
        codec=mine.codec,
        sent=0 if alone else mine.size,
        received=0 if alone else received,
        delay=mine.delay,
    )
