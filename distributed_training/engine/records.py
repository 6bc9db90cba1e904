"""Records and the work of an epoch: what a miner can show of what it did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distributed_training.engine.coordinates import Coordinates
from distributed_training.model.layout import Vector
from distributed_training.model.state import State
from distributed_training.protocol import Epoch, Hash, Mark, Record, Samples, Seconds
from template.errors import StateError
from template.transport.synapse import Message


class Work(Message):
    """The micro-batches of one epoch; immutable, so that any thread may read it.

    `state_hash` is that of θₑ, `base_hash` that of the state at whose parameters they were trained: θₑ or, in a run
    with overlap, θₑ₋₁. `seconds` is the time spent in forward and backward passes. `marks`: where inner steps led to.
    """

    epoch: Epoch
    state_hash: Hash
    base_hash: Hash
    records: tuple[Record, ...] = ()
    marks: tuple[Mark, ...] = ()
    samples: Samples = 0
    seconds: Seconds = 0.0

    def with_record(self, record: Record, seconds: float) -> Work:
        """This work and one more micro-batch."""
        return self.model_copy(
            update={
                "records": (*self.records, record),
                "samples": self.samples + record.samples,
                "seconds": self.seconds + seconds,
            }
        )

    def with_mark(self, mark: Mark, stretch: int) -> Work:
        """This work, and where it stands now; of earlier marks those after each `stretch` micro-batches stay."""
        kept = tuple(earlier for earlier in self.marks if earlier.after % stretch == 0)
        return self.model_copy(update={"marks": (*kept, mark)})

    @property
    def next_number(self) -> int:
        """The micro-batch number that follows the highest one trained."""
        return max((record.number for record in self.records), default=-1) + 1

    @property
    def mean_loss(self) -> float | None:
        """Mean loss weighted by samples; None before the first record."""
        if not self.samples:
            return None
        return sum(record.loss * record.samples for record in self.records) / self.samples


def mark_of(standing: State, after: int, base: Vector, chosen: Coordinates) -> Mark:
    """The mark of where `after` micro-batches led to from `base` [P], read at the indices `chosen` [C]."""
    moved = np.subtract(base[chosen], standing.params[chosen])
    return Mark(
        after=after,
        steps=standing.epoch,
        state=standing.hash,
        params=standing.model_hash,
        inner=standing.vectors_hash,
        moved=tuple(moved.tolist()),
    )


def records_hash(records: Sequence[Record], marks: Sequence[Mark] = ()) -> str:
    """sha256 (hex) over the canonical JSON (sorted keys, no spaces) of the records in order of `number`.

    With marks it is that of an object of both.
    """
    ordered = [dict(record) for record in sorted(records, key=lambda record: record.number)]
    shown = {"marks": [dict(mark) for mark in marks], "records": ordered} if marks else ordered
    canonical = json.dumps(shown, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def contribution_at_coordinates(records: Sequence[Record]) -> npt.NDArray[np.float64]:
    """What a contribution must hold at the audit coordinates [C] if it is made of these records.

    The contribution is the samples-weighted mean of the micro-batches' gradients, and so are its coordinates.

    Raises:
        StateError: no samples, or records of different lengths.
    """
    samples = sum(record.samples for record in records)
    if not samples or len({len(record.gradient) for record in records}) != 1:
        raise StateError("the records hold no samples, or show different numbers of coordinates")
    weights = np.array([record.samples / samples for record in records])
    values = np.array([record.gradient for record in records])  # [K, C]
    return np.asarray(weights @ values, dtype=np.float64)
