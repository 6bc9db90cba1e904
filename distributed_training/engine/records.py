"""Records and the work of an epoch: what a miner can show of what it did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distributed_training.protocol import Epoch, Hash, Record, Samples, Seconds
from template.errors import StateError
from template.transport.synapse import Message


class Work(Message):
    """The micro-batches of one epoch; immutable, so that any thread may read it.

    `state_hash` is that of θₑ, `base_hash` that of the state at whose parameters they were trained: θₑ or, in a run
    with overlap, θₑ₋₁. `seconds` is the time spent in forward and backward passes.
    """

    epoch: Epoch
    state_hash: Hash
    base_hash: Hash
    records: tuple[Record, ...] = ()
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


def records_hash(records: Sequence[Record]) -> str:
    """sha256 (hex) over the canonical JSON (sorted keys, no spaces) of the records in order of `number`."""
    ordered = sorted(records, key=lambda record: record.number)
    canonical = json.dumps(
        [dict(record) for record in ordered],
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
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
