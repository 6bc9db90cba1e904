"""What all peers of a run agree on after an epoch: parameters, optimiser vectors and the epoch number, and its hash.

Two hashes, both sha256. `model_hash` covers the parameters alone: what a published model is checked against.
`state_hash` covers the epoch, the parameters and every optimiser vector. Peers compare the latter, because equal
parameters with unequal moments would part at the next update, with nothing to show who was wrong. Both are taken over
the digests of the vectors' chunks (`chunks.py`), so that a state can be checked piece by piece as it arrives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from distributed_training.model.chunks import Chunks, chunk_digests
from distributed_training.model.layout import Layout, Vector
from template.errors import CorruptState

MODEL_TAG = b"dt-model/2"
STATE_TAG = b"dt-state/2"
VECTORS_TAG = b"dt-vectors/1"


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
    def digests(self) -> bytes:
        """The digests of all chunks: those of the parameters, then of the optimiser vectors in order of name."""
        vectors = (self.params, *(self.optimizer[name] for name in sorted(self.optimizer)))
        return b"".join(map(chunk_digests, vectors))

    @cached_property
    def model_hash(self) -> str:
        """sha256 in hex over the parameters."""
        return self._hashes[0]

    @cached_property
    def hash(self) -> str:
        """The state hash: sha256 in hex over epoch, parameters and optimiser vectors."""
        return self._hashes[1]

    @cached_property
    def vectors_hash(self) -> str:
        """sha256 in hex over the epoch and the digests of the optimiser vectors: all but the parameters."""
        _, *vectors = Chunks.of(self.layout, self.optimizer).of_vector(self.digests)
        return hashlib.sha256(VECTORS_TAG + self.epoch.to_bytes(8, "little") + b"".join(vectors)).hexdigest()

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        return hashes(self.layout, self.epoch, tuple(sorted(self.optimizer)), self.digests)


def hashes(layout: Layout, epoch: int, optimizer: tuple[str, ...], digests: bytes) -> tuple[str, str]:
    """Model hash and state hash (hex) of the state whose chunks have these digests.

    The model hash covers a version tag, each parameter's name, shape and dtype in canonical order, and the digests of
    the parameters' chunks; the state hash a version tag, the epoch, the model hash and, of each optimiser vector in
    order of name, its name, shape, dtype and digests.
    """
    params, *moments = Chunks.of(layout, optimizer).of_vector(digests)
    model = hashlib.sha256(MODEL_TAG)
    for tensor in layout.tensors:
        model.update(_header(tensor.name, tensor.shape))
    model.update(params)
    state = hashlib.sha256(STATE_TAG)
    state.update(epoch.to_bytes(8, "little"))
    state.update(model.digest())
    for name, part in zip(sorted(optimizer), moments, strict=True):
        state.update(_header(name, (layout.size,)) + part)
    return model.hexdigest(), state.hexdigest()


def _header(name: str, shape: tuple[int, ...]) -> bytes:
    """A line of known length: name, shape, and the dtype, little-endian float32."""
    line = f"{name}|{'x'.join(map(str, shape))}|<f4".encode()
    return len(line).to_bytes(4, "little") + line
