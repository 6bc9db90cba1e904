"""Who leads, when an epoch ends, who is in the group, and which state is the right one: pure functions.

A *view* is what a neuron was told in one `IsAlive` answer. Nothing here does I/O or reads a clock; blocks and stakes
are arguments, so every neuron that sees the same chain comes to the same answer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from distributed_training.protocol import Member, PeerBinding
from distributed_training.run import EpochSpec


@dataclass(frozen=True)
class View:
    """What one neuron said of itself; `is_validator` comes from the chain, not from the neuron.

    `settled` is false for one that has just started and does not know yet where the others stand.
    """

    uid: int
    is_validator: bool
    epoch: int
    state_hash: str
    samples: int
    peer: PeerBinding
    settled: bool = True

    @property
    def state(self) -> tuple[int, str]:
        return self.epoch, self.state_hash


def leader(validators: Collection[int], epoch: int, block: int, turn_blocks: int) -> int | None:
    """The validator whose turn it is to start a round: rotates with the epoch and every `turn_blocks` blocks.

    A dead leader therefore costs at most one turn. None if nobody has a permit.
    """
    order = sorted(validators)
    return order[(epoch + block // turn_blocks) % len(order)] if order else None


def may_lead(uid: int, validators: Collection[int], epoch: int, block: int, turn_blocks: int) -> bool:
    """Whether a round started by `uid` is to be accepted: its turn now, one turn ago, or in the next block.

    The turn before is accepted because a round that began in time may repeat after its turn has ended; the next block
    because two neurons may see the head of the chain one block apart.
    """
    blocks = (block - turn_blocks, block, block + 1)
    return any(leader(validators, epoch, max(b, 0), turn_blocks) == uid for b in blocks)


def ready(
    views: Iterable[View], state: tuple[int, str], blocks_in_epoch: int, spec: EpochSpec, *, tried: bool = False
) -> bool:
    """Whether the epoch of `state` should be averaged now: enough samples, or enough blocks and somebody trained.

    `tried`: an attempt has failed. With overlap what there is will not become more, so there is nothing to wait for.
    """
    samples = [v.samples for v in views if v.state == state and v.samples > 0]
    if len(samples) < spec.min_miners:
        return False
    complete = spec.overlap and tried
    return complete or sum(samples) >= spec.target_samples or blocks_in_epoch >= spec.max_blocks


def group(views: Iterable[View], state: tuple[int, str]) -> tuple[Member, ...]:
    """The members of a round, by ascending uid: everybody at `state` who has something to give, and the validators.

    Shares are equal; who has no samples, as a validator, only reduces.
    """
    chosen = [v for v in views if v.state == state and (v.is_validator or v.samples > 0)]
    return tuple(
        Member(uid=v.uid, peer=v.peer, share=1 / len(chosen), contributes=v.samples > 0)
        for v in sorted(chosen, key=lambda v: v.uid)
    )


def admitted(
    views: Sequence[View],
    state: tuple[int, str],
    excluded: frozenset[str],
    unpaid: frozenset[str],
    min_miners: int,
    *,
    overdue: bool,
) -> tuple[View, ...]:
    """The views without those who spoiled rounds (`excluded`) and those who failed an audit (`unpaid`), by hotkey.

    If otherwise fewer than `min_miners` could contribute, the excluded are let in again, and then all: both punishments
    last for a number of epochs, and without contributors no epoch would ever end. Who has trained nothing yet still can
    until the epoch is `overdue`: else those who claim samples that they never trained would end each epoch before
    anybody else has any, and nobody else would ever be in one.
    """
    for barred in (excluded | unpaid, unpaid):
        kept = tuple(view for view in views if view.peer.hotkey not in barred)
        if sum(_can_contribute(view, state, overdue=overdue) for view in kept) >= min_miners:
            return kept
    return tuple(views)


def _can_contribute(view: View, state: tuple[int, str], *, overdue: bool) -> bool:
    return view.state == state and (view.samples > 0 or not (overdue or view.is_validator))


NEARLY_HALF = 0.45  # of the stake


def majority_state(views: Iterable[View], stakes: Sequence[float]) -> tuple[int, str] | None:
    """The (epoch, state hash) that (nearly) half of the settled validators' stake stands at, or None. `stakes` by uid.

    Where two halves differ, everybody has to choose alike, or nobody would ever leave it: the later epoch, because it
    took a quorum of the miners to get there, then the larger hash.
    """
    weight: dict[tuple[int, str], float] = defaultdict(float)
    for view in views:
        if view.is_validator and view.settled:
            weight[view.state] += stakes[view.uid]
    total = sum(weight.values())
    return max((state for state, held in weight.items() if held >= NEARLY_HALF * total), default=None)


def miners_state(views: Iterable[View]) -> tuple[int, str] | None:
    """The (epoch, state hash) that more than half of the miners stand at, or None: what counts without validators."""
    states = [view.state for view in views if not view.is_validator]
    return next((state for state in set(states) if 2 * states.count(state) > len(states)), None)


def gone_on(views: Sequence[View]) -> tuple[int, str] | None:
    """Where the miners went on to while all validators were away: their state, if it is later than any validator's.

    A validator that was there all the time knows better, so a single settled one makes their word count for nothing.
    """
    validators = [view for view in views if view.is_validator]
    ahead = miners_state(views)
    if ahead is None or any(view.settled or view.epoch >= ahead[0] for view in validators):
        return None
    return ahead


def without_validators(silent_blocks: int, spec: EpochSpec) -> bool:
    """Whether miners that heard of no validator for so long may go on by themselves."""
    return 0 < spec.fallback_blocks <= silent_blocks


def fallback_due(block: int, silent_blocks: int, tried: int, spec: EpochSpec) -> bool:
    """Whether an agreed block has come since `tried` at which the miners were without validators already.

    All miners agree on every `turn_blocks`-th block, so they look for a group at about the same time.
    """
    since = block % spec.turn_blocks
    return block - since > tried and without_validators(silent_blocks - since, spec)


def quorum_of(count: int, quorum: float) -> int:
    """The least number of `count` that hold the quorum."""
    return math.ceil(quorum * count - 1e-9)  # 0.6 * 5 is a little more than 3


def holds(present: Collection[str], of: Collection[str], quorum: float) -> bool:
    """Whether those present hold the quorum of `of`: no two groups without a common member can."""
    return len(set(present) & set(of)) >= quorum_of(len(set(of)), quorum)


def overtaken(views: Iterable[View], epoch: int) -> bool:
    """Whether at least half of the miners are in a later epoch: whoever would lead `epoch` now has missed its end."""
    miners = [view.epoch for view in views if not view.is_validator]
    return bool(miners) and 2 * sum(at > epoch for at in miners) >= len(miners)


@dataclass(frozen=True)
class Exclusion:
    """A miner that spoiled rounds stays out of the rounds of all epochs before `until_epoch`."""

    spoiled: int
    until_epoch: int


MAX_EXCLUSION_EPOCHS = 64


def exclude(known: Mapping[str, Exclusion], spoilers: Iterable[str], epoch: int) -> dict[str, Exclusion]:
    """The exclusions, by hotkey, after `spoilers` were named by the majority in a round of `epoch`.

    The first time costs the rest of this epoch, which a mere hiccup costs as well; then 1, 3, 7, ... epochs more.
    """
    updated = dict(known)
    for hotkey in spoilers:
        times = known[hotkey].spoiled + 1 if hotkey in known else 1
        updated[hotkey] = Exclusion(times, epoch + min(2 ** (times - 1), MAX_EXCLUSION_EPOCHS))
    return updated


def forgive(known: Mapping[str, Exclusion], delivered: Collection[str]) -> dict[str, Exclusion]:
    """The exclusions after these hotkeys delivered in a completed round: one spoiled round less each."""
    updated = {}
    for hotkey, exclusion in known.items():
        spoiled = exclusion.spoiled - (hotkey in delivered)
        if spoiled > 0:
            updated[hotkey] = Exclusion(spoiled, exclusion.until_epoch)
    return updated


def excluded(known: Mapping[str, Exclusion], epoch: int) -> frozenset[str]:
    """Whose hotkey stays out of the rounds of `epoch`."""
    return frozenset(hotkey for hotkey, exclusion in known.items() if epoch < exclusion.until_epoch)
