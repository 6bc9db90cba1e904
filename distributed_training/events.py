"""What miners and validators tell about a run. `uid` is always the neuron that tells, `miner` the one told about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from template.telemetry import Event


@dataclass(frozen=True, kw_only=True)
class NeuronStarted(Event):
    """A neuron is up: it answers queries and takes part in rounds from now on."""

    uid: int
    role: str
    run_id: str
    epoch: int
    state_hash: str
    corpus: str
    axon: str
    peer_id: str


@dataclass(frozen=True, kw_only=True)
class Trained(Event):
    """What a miner has accumulated in this epoch so far, and done ahead of the next one in a run with overlap.

    `seconds` went into `samples`; `idle` is how many seconds since the start went into no micro-batch at all.
    """

    uid: int
    epoch: int
    samples: int
    samples_ahead: int
    mean_loss: float | None
    seconds: float
    idle: float


@dataclass(frozen=True, kw_only=True)
class RoundFinished(Event):
    """One attempt at an all-reduce, as this neuron saw it.

    `state_hash` is the state after it, `phases` the seconds in each state of the round; `work`, `first_byte` and
    `planes` are those of the outcome (averaging/outcome.py), as are `transfers` (bytes and seconds by peer and
    direction), `restrained` and `bits_per_parameter`, to be compared with the `reference_bits` of a float32. `trained`:
    seconds of the micro-batches that ended meanwhile.
    """

    uid: int
    epoch: int
    attempt: int
    round_id: str
    completed: bool
    state_hash: str
    participants: list[int]
    failures: list[dict[str, Any]]
    samples: int
    seconds: float
    trained: float
    bytes_sent: int
    bytes_received: int
    phases: dict[str, float]
    work: dict[str, float]
    first_byte: float | None
    planes: dict[str, str]
    transfers: list[dict[str, Any]]
    restrained: list[dict[str, Any]]
    bits_per_parameter: float | None
    reference_bits: int


@dataclass(frozen=True, kw_only=True)
class RoundLed(Event):
    """One attempt as its leader counts it: who was in the group, who completed, by whom it failed.

    `shares` of the reduction by uid, and the `deadlines` of each state in seconds, are those that it gave.
    """

    uid: int
    epoch: int
    attempt: int
    round_id: str
    completed: bool
    group: list[int]
    confirmed: list[int]
    named: list[int]
    silent: list[int]
    refusals: dict[str, str]
    seconds: float
    shares: dict[str, float]
    deadlines: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class FallbackTried(Event):
    """An attempt of the miners to end an epoch by themselves, `silent_blocks` after a validator was last heard of.

    `candidates` could have been in the group, which had to have `needed` members; `found` were in it.
    """

    uid: int
    epoch: int
    block: int
    silent_blocks: int
    candidates: list[int]
    needed: int
    found: list[int]
    round_id: str
    completed: bool
    ended: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RoundRefused(Event):
    """This neuron did not take part in a round it was asked to join."""

    uid: int
    leader: int
    epoch: int
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class HeldOut(Event):
    """Loss on the held-out pages, in nats a token."""

    uid: int
    epoch: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class OutOfStep(Event):
    """This neuron's state is not the one most of the validators' stake stands at."""

    uid: int
    epoch: int
    state_hash: str
    right_epoch: int
    right_hash: str


@dataclass(frozen=True, kw_only=True)
class CaughtUp(Event):
    """This neuron took over a state from `source` (`checkpoint`, `peers` or `hub`), hash verified.

    `seconds` go from the first question to the state in use; `bytes` is what was received, `parts` from which peers.
    """

    uid: int
    epoch: int
    state_hash: str
    source: str
    seconds: float
    bytes: int
    parts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class CatchUpFailed(Event):
    """A source (`checkpoint`, `peer:UID`, all `peers`, or `hub`) could not give the right state, or not all of it.

    The others are tried.
    """

    uid: int
    epoch: int
    source: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NotSaved(Event):
    """`what` (checkpoint, memory) could not be written to disk; a restart would go back to what was saved before."""

    what: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NotPublished(Event):
    """A state that this validator led to was not offered to the hub, and why."""

    uid: int
    epoch: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class EpochsThinned(Event):
    """Old releases were taken off the hub by the rule that the operator set; `kept` is how many are left."""

    uid: int
    removed: tuple[int, ...]
    kept: int


@dataclass(frozen=True, kw_only=True)
class NotThinned(Event):
    """Old releases could not be taken off the hub now; the next publication tries again."""

    uid: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Unseen(Event):
    """A neuron did not answer a query; nobody's score changes because of it."""

    uid: int
    miner: int
    synapse: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Audited(Event):
    """One record, recomputed; without a `number`, what was put into the average (scoring/contribution.py)."""

    uid: int
    miner: int
    epoch: int
    number: int | None
    agreement: float
    passed: bool
    reason: str
    loss_difference: float | None
    gradient_difference: float | None
    alignment: float | None = None
    inflation: float | None = None
    drift: float | None = None
    improvement: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class StateShown(Event):
    """A miner has shown a state that its own steps led to, for a replay; `bytes` of it came in so many seconds."""

    uid: int
    miner: int
    epoch: int
    state_hash: str
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class AverageNotExplained(Event):
    """In the shares of these `reducers` the average is not what the contributors' records add up to.

    A reducer has changed it, or somebody sent it something else than its work; which one cannot be seen from here, so
    nobody is paid less for it. `coordinates` is how many of those `of` that records show are off.
    """

    uid: int
    epoch: int
    reducers: list[int]
    coordinates: int
    of: int


@dataclass(frozen=True, kw_only=True)
class ReductionChecked(Event):
    """Chunk number `chunk` of the share that `miner` reduced, averaged again from what was sent to it.

    `passed` is None where some of the `contributors` did not show their part (`unshown`); `difference`: relative, L2.
    """

    uid: int
    miner: int
    epoch: int
    chunk: int
    values: int
    contributors: int
    unshown: list[int]
    passed: bool | None
    difference: float | None


@dataclass(frozen=True, kw_only=True)
class ReductionsNotChecked(Event):
    """The validator could not look at the reducers of this epoch, for a reason of its own; all else is judged."""

    uid: int
    epoch: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class AuditNotPossible(Event):
    """The validator could not audit for a reason of its own; nobody's score changes."""

    uid: int
    epoch: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class AttemptVoid(Event):
    """A failed attempt counts against nobody: it was the `fault` of its leader, or of this validator itself."""

    uid: int
    epoch: int
    attempt: int
    round_id: str
    fault: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Excluded(Event):
    """A miner that spoiled a round is left out of the groups until `until_epoch`."""

    uid: int
    miner: int
    epoch: int
    until_epoch: int


@dataclass(frozen=True, kw_only=True)
class WeightsSet(Event):
    """An attempt to set weights: from which scores, what was to be set, what the chain said and then held.

    `weights` follow from the scores of `epoch`, less those of the uids in `departed`, whose hotkeys lost them, by the
    subnet's `limits` (the arguments of `template.chain.weights.process`). `outcome` is a `WeightsStatus`, or
    `unavailable`; `code` why they were refused. `set_in` is the block that holds them, and `stored` the u16 by uid that
    were read back from it. `attempt` counts those since weights were last set.
    """

    uid: int
    block: int
    mechid: int
    epoch: int
    version_key: int
    departed: list[int]
    limits: dict[str, Any]
    weights: dict[str, float]
    attempt: int
    outcome: str
    code: str | None
    detail: str
    set_in: int | None
    stored: dict[str, int]
