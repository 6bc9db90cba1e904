"""What one round was, as one member saw it: a value, whatever happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from distributed_training.averaging.codec import Floats
from distributed_training.averaging.witness import Sightings
from distributed_training.protocol import Failure, Hash, Transfer

REFERENCE_BITS = 32  # of a float32, in which a parameter would travel without a codec


class RoundState(Enum):
    """The states of a round, in order; the last two are ends."""

    PREPARE = "PREPARE"
    CONNECT = "CONNECT"
    EXCHANGE = "EXCHANGE"
    COMMIT = "COMMIT"
    DONE = "DONE"
    ABORTED = "ABORTED"


@dataclass(frozen=True, kw_only=True)
class Work:
    """Seconds of the EXCHANGE, summed over threads, by kind of work; `wait` is the time in which nothing moved."""

    encode: float
    decode: float
    reduce: float
    hash: float
    wait: float


@dataclass(frozen=True, kw_only=True)
class Restraint:
    """The parts of contributor `uid` did not count in full in `chunks` of the `of` chunks of our share.

    `kept`: how much of them did, on average over those chunks, in [0, 1); what that means is the rule's (robust.py).
    """

    uid: int
    chunks: int
    of: int
    kept: float


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """The report of one member.

    `failures` is what this member saw itself; `accusations` is what each other member said it saw (uid of the accuser
    to failures), to be believed by majority at most (see leader.py). `participants` are the uids whose parts are in
    the average, `agreed` those that are known to have voted for it; both are empty when the round was aborted.
    `seconds` holds the time spent in each state; `transfers` counts bytes at the streams' sockets, framing included,
    and the seconds in which something moved. `first_byte` is the time in seconds from the start to the first chunk
    that moved; `planes` tells for each reducer whether our stream to it was "direct" or "libp2p". `restrained` is what
    the rule of the reduction did in our own share. `bits_per_parameter` is what each value that we sent or received
    took at the sockets; without a codec it is the 32 of float32 and a little framing. None if none moved.

    `weights` are those that the contributors stated, `records` the hashes of the records and `parts` those of the parts
    (packing.py) that they bound themselves to, all before anything moved. `sightings` is what was kept of their parts
    in our share.
    """

    round_id: str
    state: RoundState
    participants: tuple[int, ...]
    agreed: tuple[int, ...]
    failures: tuple[Failure, ...]
    accusations: Mapping[int, tuple[Failure, ...]]
    transfers: tuple[Transfer, ...]
    average_hash: str | None
    total_weight: float | None
    seconds: Mapping[RoundState, float]
    work: Work
    first_byte: float | None
    planes: Mapping[int, str]
    restrained: tuple[Restraint, ...] = ()
    bits_per_parameter: float | None = None
    weights: Mapping[int, float] = field(default_factory=dict)
    records: Mapping[int, Hash] = field(default_factory=dict)
    parts: Mapping[int, Hash] = field(default_factory=dict)
    sightings: Sightings | None = None

    @property
    def completed(self) -> bool:
        return self.state is RoundState.DONE


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """The outcome and, if it completed, the average: float32 [size], read-only, the same bits at every member."""

    outcome: RoundOutcome
    average: Floats | None
