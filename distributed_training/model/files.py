"""States on disk: what a peer sends to another, what goes to the hub, and what a checkpoint keeps.

    model.safetensors      the parameters under their transformers names      } plain `from_pretrained(folder)` loads
    config.json            the transformers config                            } these two
    optimizer.safetensors  the optimiser vectors, float32 [P] each
    state.json             run id, epoch, sizes, names and both hashes

A folder may come from a stranger. File sizes, names, shapes and dtypes are checked against what this run must have
before anything is allocated; then the hashes and that every number is finite. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distributed_training.model.layout import Layout, Vector
from distributed_training.model.state import State
from distributed_training.protocol import Epoch, Hash
from template.errors import CorruptState, StateMismatch
from template.transport.synapse import Message, RunId

MODEL = "model.safetensors"
CONFIG = "config.json"
OPTIMIZER = "optimizer.safetensors"
MANIFEST = "state.json"
FILES = (MODEL, CONFIG, OPTIMIZER, MANIFEST)

_MANIFEST_BYTES = 64 * 1024
_HEADER_BASE, _HEADER_PER_TENSOR = 64 * 1024, 1024  # more than any header of ours; bounds what is parsed


class Manifest(Message):
    """The contents of state.json."""

    format: Literal["dt-state/1"] = "dt-state/1"
    run_id: RunId
    epoch: Epoch
    dtype: Literal["float32"] = "float32"
    parameters: Annotated[int, Field(ge=1)]
    optimizer: Annotated[tuple[str, ...], Field(max_length=16)]
    model_hash: Hash
    state_hash: Hash


def architecture(module: torch.nn.Module) -> dict[str, Any]:
    """The transformers config of a module built by `build`, as config.json holds it."""
    config: Any = module.config
    return {**config.to_diff_dict(), "architectures": [type(module).__name__], "dtype": "float32"}


def write_state(folder: Path, state: State, config: Mapping[str, Any], run_id: str) -> Manifest:
    """Write the four files into `folder`, made if need be. state.json comes last: without it there is no state."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    save_file(dict(state.layout.split(state.params)), folder / MODEL, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n")
    save_file(dict(state.optimizer), folder / OPTIMIZER)
    manifest = Manifest(
        run_id=run_id,
        epoch=state.epoch,
        parameters=state.layout.size,
        optimizer=tuple(sorted(state.optimizer)),
        model_hash=state.model_hash,
        state_hash=state.hash,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


def read_state(
    folder: Path, layout: Layout, run_id: str, optimizer: Iterable[str], expected_hash: str | None = None
) -> State:
    """The state in `folder`, verified against its own manifest and, where the caller knows it, `expected_hash`.

    `optimizer` names the vectors that the run's strategy keeps.

    Raises:
        StateMismatch: a sound state, but of another run or not the expected one.
        CorruptState: anything else: missing or surplus tensors, sizes, dtypes, hashes, non-finite numbers.
    """
    manifest = read_manifest(folder)
    if manifest.run_id != run_id:
        raise StateMismatch(f"{folder} is a state of the run {manifest.run_id}, not of {run_id}")
    if expected_hash is not None and manifest.state_hash != expected_hash:
        raise StateMismatch(f"{folder} holds the state {manifest.state_hash}, expected {expected_hash}")
    names = tuple(sorted(optimizer))
    if manifest.parameters != layout.size or manifest.optimizer != names:
        raise CorruptState(f"{folder / MANIFEST}: {manifest.parameters} parameters with {manifest.optimizer}")
    params = read_params(folder / MODEL, layout)
    moments = read_tensors(folder / OPTIMIZER, {name: (layout.size,) for name in names})
    state = State(layout, manifest.epoch, params, moments)
    if (state.model_hash, state.hash) != (manifest.model_hash, manifest.state_hash):
        raise CorruptState(f"{folder}: the bytes do not have the hash that {MANIFEST} names")
    return state


def read_manifest(folder: Path) -> Manifest:
    """state.json of `folder`.

    Raises:
        CorruptState: missing, too large or malformed.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MANIFEST_BYTES:
            raise CorruptState(f"{path} is larger than {_MANIFEST_BYTES} bytes")
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise CorruptState(f"{path} cannot be read: {error}") from error


def read_params(path: Path, layout: Layout) -> Vector:
    """The parameters in a model.safetensors as one vector [P].

    Raises:
        CorruptState: it does not hold exactly the parameters of `layout`, or not finite ones.
    """
    pieces = read_tensors(path, {tensor.name: tensor.shape for tensor in layout.tensors})
    return np.concatenate([pieces[tensor.name].reshape(-1) for tensor in layout.tensors])


def read_tensors(
    path: Path, expected: Mapping[str, tuple[int, ...]], metadata_bytes: int = 0
) -> dict[str, npt.NDArray[np.float32]]:
    """Exactly the expected float32 tensors of a safetensors file whose metadata takes at most `metadata_bytes`.

    Raises:
        CorruptState: any difference in size, names, shapes or dtype, found before a tensor is allocated; a non-finite
            number.
    """
    try:
        _check_size(path, expected, metadata_bytes)
        with safe_open(path, framework="numpy") as file:
            _check_header(path, file, expected)
            tensors = {name: file.get_tensor(name) for name in expected}
    except (OSError, SafetensorError) as error:
        raise CorruptState(f"{path} cannot be read: {error}") from error
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CorruptState(f"{path}: {name} holds numbers that are not finite")
    return tensors


def _check_size(path: Path, expected: Mapping[str, tuple[int, ...]], metadata_bytes: int) -> None:
    """The file's length must follow from its header's length and the expected tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
    header = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    payload = 4 * sum(math.prod(shape) for shape in expected.values())
    limit = _HEADER_BASE + _HEADER_PER_TENSOR * len(expected) + metadata_bytes
    if not 0 < header <= limit or size != 8 + header + payload:
        raise CorruptState(f"{path} has {size} bytes with a header of {header}; the tensors need {payload}")


def _check_header(path: Path, file: Any, expected: Mapping[str, tuple[int, ...]]) -> None:
    if set(file.keys()) != set(expected):
        raise CorruptState(f"{path} holds other tensors: {sorted(set(file.keys()) ^ set(expected))[:4]}")
    for name, shape in expected.items():
        piece = file.get_slice(name)
        if tuple(piece.get_shape()) != tuple(shape) or piece.get_dtype() != "F32":
            raise CorruptState(f"{path}: {name} is {piece.get_dtype()} {piece.get_shape()}, expected F32 {list(shape)}")
