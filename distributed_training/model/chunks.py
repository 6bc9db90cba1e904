"""How the bytes of a state are cut into chunks, and their digests, which the hashes in `state.py` are made of.

A state's vectors (the parameters first, then the optimiser's in order of their names) are each cut into chunks of
CHUNK bytes; the last one of a vector may be shorter. Chunks are numbered through. As the state hash is a hash over
these digests, a list of digests is proved by it at once, and every chunk by its digest: whoever sends a wrong one is
known when it arrives, wherever the others came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from distributed_training.model.layout import Layout, Vector

CHUNK = 1 << 20  # bytes; part of the definition of the hashes
DIGEST = 32  # bytes
ITEM = 4  # bytes of a float32


@dataclass(frozen=True)
class Place:
    """Where a chunk lies: which vector (0: the parameters), from which byte of it, how many bytes."""

    vector: int
    offset: int
    size: int


@dataclass(frozen=True)
class Chunks:
    """The chunks of `vectors` vectors of `vector_bytes` bytes each."""

    vector_bytes: int
    vectors: int

    @classmethod
    def of(cls, layout: Layout, optimizer: Iterable[str]) -> Chunks:
        """The chunks of a state with these parameters and optimiser vectors."""
        return cls(ITEM * layout.size, 1 + len(tuple(optimizer)))

    @property
    def per_vector(self) -> int:
        return -(-self.vector_bytes // CHUNK)

    @property
    def count(self) -> int:
        return self.vectors * self.per_vector

    @property
    def size(self) -> int:
        """Bytes of the whole state."""
        return self.vectors * self.vector_bytes

    def place(self, number: int) -> Place:
        """Where chunk `number` lies; 0 <= number < count."""
        vector, place = divmod(number, self.per_vector)
        offset = place * CHUNK
        return Place(vector, offset, min(CHUNK, self.vector_bytes - offset))

    def of_vector(self, digests: bytes) -> Iterator[bytes]:
        """The digests of all chunks, vector by vector."""
        step = self.per_vector * DIGEST
        return (digests[start : start + step] for start in range(0, self.vectors * step, step))


def digest_of(digests: bytes, number: int) -> bytes:
    """The digest of one chunk in the digests of all."""
    return digests[number * DIGEST : (number + 1) * DIGEST]


def chunk_digests(vector: Vector) -> bytes:
    """The sha256 digests of a vector's chunks, one after the other."""
    data = np.ascontiguousarray(vector, dtype="<f4").view(np.uint8).data
    return b"".join(hashlib.sha256(data[at : at + CHUNK]).digest() for at in range(0, len(data), CHUNK))
