"""State hashes: an independent computation, and every part counts."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from distributed_training.model.layout import Layout, Tensor
from distributed_training.model.state import State
from template.errors import CorruptState

LAYOUT = Layout((Tensor("a.weight", (2, 2), 0), Tensor("b", (3,), 4)))


def state(epoch: int = 3, **changes: np.ndarray) -> State:
    vectors = {"params": np.arange(7), "first": np.arange(7) * 2, "second": np.arange(7) * 3, **changes}
    made = {name: np.array(vector, dtype=np.float32) for name, vector in vectors.items()}
    return State(LAYOUT, epoch, made["params"], {"second": made["second"], "first": made["first"]})


def described(name: str, shape: str) -> bytes:
    line = f"{name}|{shape}|<f4".encode()
    return struct.pack("<I", len(line)) + line


def floats(*values: float) -> bytes:
    return hashlib.sha256(struct.pack(f"<{len(values)}f", *values)).digest()


def test_hashes_are_those_of_the_definition() -> None:
    """Both hashes, computed again with struct and hashlib alone."""
    model = hashlib.sha256(b"dt-model/2" + described("a.weight", "2x2") + described("b", "3") + floats(*range(7)))
    assert state().model_hash == model.hexdigest()
    whole = b"dt-state/2" + struct.pack("<Q", 3) + model.digest()
    whole += described("first", "7") + floats(0, 2, 4, 6, 8, 10, 12)
    whole += described("second", "7") + floats(0, 3, 6, 9, 12, 15, 18)
    assert state().hash == hashlib.sha256(whole).hexdigest()


def test_long_vectors_are_hashed_chunk_by_chunk() -> None:
    """A MiB each, the last one shorter, and none reaches into the next vector."""
    size = 600_000  # 2.3 MiB
    layout = Layout((Tensor("w", (size,), 0),))
    params, moment = (np.random.default_rng(seed).normal(size=size).astype(np.float32) for seed in (1, 2))
    digests = [
        hashlib.sha256(data[at : at + 2**20]).digest()
        for data in (params.tobytes(), moment.tobytes())
        for at in range(0, 4 * size, 2**20)
    ]
    made = State(layout, 1, params, {"m": moment})
    assert made.digests == b"".join(digests)
    model = hashlib.sha256(b"dt-model/2" + described("w", str(size)) + b"".join(digests[:3])).digest()
    whole = b"dt-state/2" + struct.pack("<Q", 1) + model + described("m", str(size)) + b"".join(digests[3:])
    assert made.hash == hashlib.sha256(whole).hexdigest()


def test_every_part_counts() -> None:
    """One bit of a parameter or moment, or the epoch, changes the state hash; only parameters change the model hash."""
    nudged = np.arange(7, dtype=np.float32)
    nudged[6] = np.nextafter(nudged[6], np.float32(9))
    others = [state(params=nudged), state(first=nudged), state(second=nudged), state(epoch=4)]
    assert len({state().hash, *(other.hash for other in others)}) == 5
    assert [other.model_hash == state().model_hash for other in others] == [False, True, True, True]


def test_a_state_cannot_be_written_to() -> None:
    """Whoever holds a state may trust that nobody changes it."""
    made = state()
    with pytest.raises(ValueError, match="read-only"):
        made.params[0] = 1
    with pytest.raises(TypeError):
        made.optimizer["first"] = made.params  # type: ignore[index]


def test_a_vector_that_does_not_fit_is_no_state() -> None:
    """Sizes are checked when the state is made."""
    with pytest.raises(CorruptState, match="expected float32"):
        state(second=np.zeros(6))
    with pytest.raises(CorruptState, match="negative"):
        state(epoch=-1)
