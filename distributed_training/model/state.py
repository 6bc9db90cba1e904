"""What all peers of a run agree on after an epoch: parameters, optimiser vectors and the epoch number, and its hash.

Two hashes, both sha256. `model_hash` covers the parameters alone: what a published model is checked against.
`state_hash` covers the epoch, the parameters and every optimiser vector. Peers compare the latter, because equal
parameters with unequal moments would part at the next update, with nothing to show who was wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from distributed_training.model.layout import Layout, Vector
from template.errors import CorruptState

MODEL_TAG = b"dt-model/1"
STATE_TAG = b"dt-state/1"


@dataclass(frozen=True, eq=False)
class State:
    """θₑ with its optimiser state. All vectors are read-only float32 [P].

    Raises:
        CorruptState: a vector that does not fit the layout, or a negative epoch.
    """

    layout: Layout
    epoch: int
    params: Vector
    optimizer: Mapping[str, Vector]

    def __post_init__(self) -> None:
        if self.epoch < 0:
            raise CorruptState(f"epoch {self.epoch} is negative")
        for vector in (self.params, *self.optimizer.values()):
            self.layout.check(vector)
            vector.flags.writeable = False
        object.__setattr__(self, "optimizer", MappingProxyType(dict(self.optimizer)))

    @cached_property
    def model_hash(self) -> str:
        """sha256 in hex over the parameters."""
        return model_hash(self.layout, self.params)

    @cached_property
    def hash(self) -> str:
        """The state hash: sha256 in hex over epoch, parameters and optimiser vectors."""
        return state_hash(self.layout, self.epoch, self.params, self.optimizer)


def model_hash(layout: Layout, params: Vector) -> str:
    """sha256 (hex) over a version tag and, in canonical order, each parameter's name, shape, dtype and bytes."""
    digest = hashlib.sha256(MODEL_TAG)
    for name, piece in layout.split(params):
        _absorb(digest, name, piece)
    return digest.hexdigest()


def state_hash(layout: Layout, epoch: int, params: Vector, optimizer: Mapping[str, Vector]) -> str:
    """sha256 (hex) over a version tag, the epoch, the model hash, and the optimiser vectors sorted by name."""
    digest = hashlib.sha256(STATE_TAG)
    digest.update(epoch.to_bytes(8, "little"))
    digest.update(bytes.fromhex(model_hash(layout, params)))
    for name in sorted(optimizer):
        layout.check(optimizer[name])
        _absorb(digest, name, optimizer[name])
    return digest.hexdigest()


def _absorb(digest: hashlib._Hash, name: str, array: Vector) -> None:
    """Feed one array: a header line of known length, then its little-endian bytes in C order."""
    header = f"{name}|{'x'.join(map(str, array.shape))}|<f4".encode()
    digest.update(len(header).to_bytes(4, "little"))
    digest.update(header)
    digest.update(np.ascontiguousarray(array, dtype="<f4").data)
