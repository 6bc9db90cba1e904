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


def block(name: str, shape: str, values: list[float]) -> bytes:
    header = f"{name}|{shape}|<f4".encode()
    return struct.pack("<I", len(header)) + header + struct.pack(f"<{len(values)}f", *values)


def test_hashes_are_those_of_the_definition() -> None:
    """Both hashes, computed again with struct and hashlib alone."""
    model = hashlib.sha256(b"dt-model/1" + block("a.weight", "2x2", [0, 1, 2, 3]) + block("b", "3", [4, 5, 6]))
    assert state().model_hash == model.hexdigest()
    whole = b"dt-state/1" + struct.pack("<Q", 3) + model.digest()
    whole += block("first", "7", [0, 2, 4, 6, 8, 10, 12]) + block("second", "7", [0, 3, 6, 9, 12, 15, 18])
    assert state().hash == hashlib.sha256(whole).hexdigest()


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
