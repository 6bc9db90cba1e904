"""The synapses: IsAlive, Train, AllReduce. Shapes only; what a role does with them is in `miner/` and `validator/`.

Sizes are bounded here, so a peer's bytes never decide how much memory is taken.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from template.transport.synapse import Message, Request, Response

NO_SUCH_EPOCH = "no_such_epoch"  # the word that `Train` is refused with when the records are not kept
NOT_YET = "not_yet"  # and when their epoch is not over
MAX_GROUP = 512
MAX_RECORDS_PER_PAGE = 256
MAX_COORDINATES = 1024
MAX_MARKS = 1024
MAX_PAGES_PER_MICRO_BATCH = 4096

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Uid = Annotated[int, Field(ge=0, le=65535)]
Epoch = Annotated[int, Field(ge=0, le=2**53)]
Samples = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0)]
StateTime = Annotated[float, Field(ge=0, le=86_400)]  # seconds
# Visible ASCII only: a line break would let one signed part slide into the next (see PeerBinding.signed_bytes).
Address = Annotated[str, StringConstraints(max_length=256, pattern=r"^[\x21-\x7e]+$")]
Ss58 = Annotated[str, StringConstraints(min_length=46, max_length=64, pattern=r"^[0-9A-Za-z]+$")]


class PeerBinding(Message):
    """A libp2p identity bound to a hotkey: `signature` (hex, sr25519 by the hotkey) covers `signed_bytes`."""

    hotkey: Ss58
    peer_id: Annotated[str, StringConstraints(max_length=128, pattern=r"^[0-9A-Za-z]+$")]
    addresses: Annotated[tuple[Address, ...], Field(min_length=1, max_length=16)]
    signature: Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{128}$")]

    def signed_bytes(self, run_id: str) -> bytes:
        """The bytes under the signature: version, run, hotkey, peer id and addresses, one a line."""
        return "\n".join(["dt-peer/1", run_id, self.hotkey, self.peer_id, *self.addresses]).encode()


class IsAliveResponse(Response):
    """Where the neuron stands. `corpus` is the fingerprint of its data source; `samples` those of this epoch.

    `settled`: it knows that this is where the others stand. False from its start until it has found out, so that a
    validator that was away does not pull the others back to where it was when it left.
    """

    epoch: Epoch
    state_hash: Hash
    samples: Samples
    corpus: Hash
    settled: bool
    peer: PeerBinding
    version: Annotated[str, StringConstraints(max_length=32)]


class IsAlive(Request):
    """Asks a neuron where it stands."""

    Answer: ClassVar[type[Response]] = IsAliveResponse


class Record(Message):
    """What a miner reports of one micro-batch, computed at the parameters of the state that `Train` names.

    `number` is k of the assignment; `pages` the dataset indices; `gradient` the values of the micro-batch's mean
    gradient at the audit coordinates, in their order.
    """

    number: Annotated[int, Field(ge=0, le=2**53)]
    pages: Annotated[tuple[Annotated[int, Field(ge=0, le=2**53)], ...], Field(max_length=MAX_PAGES_PER_MICRO_BATCH)]
    samples: Samples
    loss: float
    gradient: Annotated[tuple[float, ...], Field(max_length=MAX_COORDINATES)]


class Mark(Message):
    """Where a miner's own training stood after the first `after` micro-batches of an epoch, in order of their numbers.

    `steps` is how many steps its inner optimiser has made since it began; `state` the hash of that many steps, the
    parameters and the inner optimiser's vectors as a state (model/state.py), `params` the model hash in it, `inner` the
    hash of the rest. `moved` is how far the parameters have come, base - local, at the audit coordinates.
    """

    after: Samples
    steps: Epoch
    state: Hash
    params: Hash
    inner: Hash
    moved: Annotated[tuple[float, ...], Field(max_length=MAX_COORDINATES)]


class TrainResponse(Response):
    """The work of one epoch that is over. `records` is the page asked for; `total_records` says how many there are.

    `state_hash` is the epoch's state; `base_hash` is the state at whose parameters the records were computed: the same
    or, in a run with overlap, the one before.
    `records_hash` is sha256 over the canonical JSON of all records of the epoch, in order of `number`; it must be the
    one that the miner told the members of the epoch's round before anything moved. `marks` come with the first page, in
    a run whose miners make inner steps; the hash covers them, too.
    """

    epoch: Epoch
    state_hash: Hash
    base_hash: Hash
    records_hash: Hash
    total_records: Annotated[int, Field(ge=0, le=2**53)]
    records: Annotated[tuple[Record, ...], Field(max_length=MAX_RECORDS_PER_PAGE)]
    mean_loss: float | None
    samples: Samples
    seconds: Seconds
    batch_size: Annotated[int, Field(ge=1)]
    marks: Annotated[tuple[Mark, ...], Field(max_length=MAX_MARKS)] = ()


class Train(Request):
    """Asks for the records of one epoch, `limit` of them from `offset` on."""

    Answer: ClassVar[type[Response]] = TrainResponse

    epoch: Epoch
    offset: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=0, le=MAX_RECORDS_PER_PAGE)] = MAX_RECORDS_PER_PAGE


class Member(Message):
    """One peer of a round. `share` is its part of the reduction (0 = reduces nothing); shares sum to 1.

    `contributes` is false for a validator that only reduces.
    """

    uid: Uid
    peer: PeerBinding
    share: Annotated[float, Field(ge=0, le=1)]
    contributes: bool


class Deadlines(Message):
    """Seconds that each state of a round may take."""

    connect: Annotated[float, Field(gt=0, le=600)]
    exchange: Annotated[float, Field(gt=0, le=7200)]
    commit: Annotated[float, Field(gt=0, le=600)]


class Transfer(Message):
    """What moved between the answering neuron and one peer: bytes at the socket and the seconds they took."""

    uid: Uid
    bytes_sent: Annotated[int, Field(ge=0, le=2**53)]
    bytes_received: Annotated[int, Field(ge=0, le=2**53)]
    seconds_sending: Seconds
    seconds_receiving: Seconds


class Failure(Message):
    """A peer that failed, in which state of the round, and whether as sender, as reducer or in the vote."""

    uid: Uid
    state: Literal["PREPARE", "CONNECT", "EXCHANGE", "COMMIT"]
    role: Literal["sender", "reducer", "voter"]
    reason: Annotated[str, StringConstraints(max_length=200)]


class StateSeconds(Message):
    """The seconds in each state of a round, the one that it was given up in included; None if it was not entered."""

    connect: StateTime | None
    exchange: StateTime | None
    commit: StateTime | None


class AllReduceResponse(Response):
    """The outcome of one round as this neuron saw it. `state_hash` is the state after it (unchanged if aborted)."""

    completed: bool
    epoch: Epoch
    state_hash: Hash
    samples: Samples
    records_hash: Hash
    seconds: Seconds
    failures: Annotated[tuple[Failure, ...], Field(max_length=MAX_GROUP)]
    transfers: Annotated[tuple[Transfer, ...], Field(max_length=MAX_GROUP)]
    states: StateSeconds


class AllReduce(Request):
    """Starts one attempt at averaging an epoch, with the whole group in the message."""

    Answer: ClassVar[type[Response]] = AllReduceResponse

    epoch: Epoch
    state_hash: Hash
    attempt: Annotated[int, Field(ge=0, le=10_000)]
    round_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    group: Annotated[tuple[Member, ...], Field(min_length=1, max_length=MAX_GROUP)]
    codec: Annotated[str, StringConstraints(max_length=64)]
    deadlines: Deadlines
