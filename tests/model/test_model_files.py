"""States on disk: what transformers can read, and what is refused before it costs memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from distributed_training.model.build import build
from distributed_training.model.files import (
    CONFIG,
    FILES,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    architecture,
    read_params,
    read_state,
    write_state,
)
from distributed_training.model.layout import Layout, flatten
from distributed_training.model.state import State
from distributed_training.run import ModelSpec
from template.errors import CorruptState, StateMismatch
from tests.engine.tiny import GPT2, LLAMA

RUN = "tiny-0123456789ab"
NAMES = ("first", "second")


def initial(spec: ModelSpec = GPT2) -> tuple[torch.nn.Module, State]:
    module = build(spec, 61, 16, seed=1)
    layout = Layout.of(module)
    moments = {name: np.full(layout.size, i, dtype=np.float32) for i, name in enumerate(NAMES)}
    return module, State(layout, 4, flatten(module), moments)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, State]:
    module, state = initial()
    write_state(tmp_path, state, architecture(module), RUN)
    return tmp_path, state


def read(folder: Path, state: State, expected: str | None = None) -> State:
    return read_state(folder, state.layout, RUN, NAMES, expected)


def test_round_trip(stored: tuple[Path, State]) -> None:
    """A state that is read has the hash of the one that was written."""
    folder, state = stored
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    again = read(folder, state, state.hash)
    assert (again.hash, again.epoch) == (state.hash, 4)
    assert np.array_equal(again.params, state.params)


@pytest.mark.parametrize("spec", [GPT2, LLAMA])
def test_plain_transformers_loads_the_folder(spec: ModelSpec, tmp_path: Path) -> None:
    """`from_pretrained(folder)` gives a model with the same logits, without a key missing or left over."""
    module, state = initial(spec)
    write_state(tmp_path, state, architecture(module), RUN)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    ids = torch.arange(16).reshape(1, 16)
    assert torch.equal(loaded(input_ids=ids).logits, module(input_ids=ids).logits)


def test_another_run_or_another_hash_is_a_mismatch(stored: tuple[Path, State]) -> None:
    """A sound state that is not the one wanted is told apart from a damaged one."""
    folder, state = stored
    with pytest.raises(StateMismatch, match="of the run"):
        read_state(folder, state.layout, "other-0123456789ab", NAMES)
    with pytest.raises(StateMismatch, match="expected"):
        read(folder, state, "0" * 64)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 4)


def claim_a_huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:8] + b"x" * (len(content) - 8))


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
@pytest.mark.parametrize("damage", [flip, truncate, append, claim_a_huge_header, empty, garbage, Path.unlink])
def test_damaged_tensors_are_refused(stored: tuple[Path, State], name: str, damage: Callable[[Path], None]) -> None:
    """No change of a tensor file goes unnoticed."""
    folder, state = stored
    damage(folder / name)
    with pytest.raises(CorruptState):
        read(folder, state)


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": 10**15},
        {"optimizer": ["first"]},
        {"epoch": 5},
        {"state_hash": "0" * 64},
        {"model_hash": "0" * 64},
        {"surprise": 1},
        {"dtype": "float16"},
    ],
)
def test_a_manifest_that_lies_is_refused(stored: tuple[Path, State], change: dict[str, object]) -> None:
    """Every field of state.json is checked against the run or the bytes."""
    folder, state = stored
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(CorruptState):
        read(folder, state)


def test_an_endless_manifest_is_refused(stored: tuple[Path, State]) -> None:
    """The size is looked at before the file is read."""
    folder, state = stored
    (folder / MANIFEST).write_text(" " * 100_000)
    with pytest.raises(CorruptState, match="larger"):
        read(folder, state)


@pytest.mark.parametrize("kind", ["shape", "dtype", "name", "surplus", "nan"])
def test_other_tensors_of_the_same_size_are_refused(stored: tuple[Path, State], kind: str) -> None:
    """Names, shapes, dtypes and finiteness count, not only the number of bytes."""
    folder, state = stored
    tensors = load_file(folder / MODEL)
    name = "transformer.h.0.mlp.c_fc.weight"
    piece = tensors.pop(name)
    replacement = {
        "shape": {name: piece.T.copy()},
        "dtype": {name: piece.view(np.int32)},
        "name": {"other": piece},
        "surplus": {name: piece[:16].copy(), "rest": piece[16:].copy()},
        "nan": {name: np.where(np.arange(piece.size).reshape(piece.shape) == 5, np.float32(np.nan), piece)},
    }[kind]
    save_file({**tensors, **replacement}, folder / MODEL)
    with pytest.raises(CorruptState):
        read_params(folder / MODEL, state.layout)


def test_an_unfinished_write_is_not_a_state(stored: tuple[Path, State]) -> None:
    """state.json is written last: without it nothing is read."""
    folder, state = stored
    (folder / MANIFEST).unlink()
    with pytest.raises(CorruptState, match="cannot be read"):
        read(folder, state)
    assert (folder / CONFIG).is_file()
