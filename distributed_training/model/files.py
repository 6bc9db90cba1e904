"""States on disk: what a peer sends to another, what goes to the hub, and what a checkpoint keeps.

    model.safetensors      the parameters under their transformers names      } plain `from_pretrained(folder)` loads
    config.json            the transformers config                            } these two
    optimizer.safetensors  the optimiser vectors, float32 [P] each
    state.json             run id, epoch, sizes, names and both hashes

In both tensor files the tensors lie in order of their names without gaps: what follows the header are the vectors
themselves, byte for byte, so that they are read into their place and sent from it.

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

from distributed_training.model.chunks import ITEM
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
LENGTH_BYTES = 8  # of the number in front of a safetensors header

_MANIFEST_BYTES = 64 * 1024
_LENGTH = struct.Struct("<Q")
_BLOCK = 1 << 20  # elements that are looked through at a time
_HEADER_BASE, _HEADER_PER_TENSOR = 64 * 1024, 1024  # more than any header of ours; bounds what is parsed


class Manifest(Message):
    """The contents of state.json."""

    format: Literal["dt-state/2"] = "dt-state/2"
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
    save_file(dict(state.optimizer), folder / OPTIMIZER)
    manifest = Manifest(
        run_id=run_id,
        epoch=state.epoch,
        parameters=state.layout.size,
        optimizer=tuple(sorted(state.optimizer)),
        model_hash=state.model_hash,
        state_hash=state.hash,
    )
    complete(folder, manifest, config)
    return manifest


def complete(folder: Path, manifest: Manifest, config: Mapping[str, Any]) -> None:
    """Make a state of a folder that has both tensor files already."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n")
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")


def header(tensors: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None) -> bytes:
    """What stands before the data of a safetensors file with these float32 tensors, in order of name."""
    described: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + ITEM * math.prod(tensors[name])
        described[name] = {"dtype": "F32", "shape": list(tensors[name]), "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text


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
    return _read_vector(path, {tensor.name: tensor.shape for tensor in layout.tensors})


def read_tensors(
    path: Path, expected: Mapping[str, tuple[int, ...]], metadata_bytes: int = 0
) -> dict[str, npt.NDArray[np.float32]]:
    """Exactly the expected float32 tensors of a safetensors file whose metadata takes at most `metadata_bytes`.

    Raises:
        CorruptState: any difference in size, names, order, shapes or dtype, found before a tensor is allocated; a
            non-finite number.
    """
    vector, tensors, start = _read_vector(path, expected, metadata_bytes), {}, 0
    for name in sorted(expected):
        size = math.prod(expected[name])
        tensors[name] = vector[start : start + size].reshape(expected[name])
        start += size
    return tensors


def _read_vector(path: Path, expected: Mapping[str, tuple[int, ...]], metadata_bytes: int = 0) -> Vector:
    """All tensors as one vector, in order of name, read straight into its place."""
    try:
        start = _data_start(path, expected, metadata_bytes)
        with safe_open(path, framework="numpy") as file:
            _check_header(path, file, expected)
        vector = np.empty(_elements(expected), dtype=np.float32)
        _fill(path, start, vector.view(np.uint8).data)
    except (OSError, SafetensorError) as error:
        raise CorruptState(f"{path} cannot be read: {error}") from error
    for at in range(0, len(vector), _BLOCK):
        if not np.isfinite(vector[at : at + _BLOCK]).all():
            raise CorruptState(f"{path} holds numbers that are not finite")
    return vector


def _fill(path: Path, start: int, buffer: memoryview) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while buffer:
            count = file.readinto(buffer)
            if not count:
                raise CorruptState(f"{path} has become shorter")
            buffer = buffer[count:]


def _elements(tensors: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in tensors.values())


def _data_start(path: Path, expected: Mapping[str, tuple[int, ...]], metadata_bytes: int) -> int:
    """Where the data begins; the file's length must follow from its header's length and the expected tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header_length(file.read(LENGTH_BYTES))
    payload = ITEM * _elements(expected)
    limit = _HEADER_BASE + _HEADER_PER_TENSOR * len(expected) + metadata_bytes
    if not 0 < length <= limit or size != LENGTH_BYTES + length + payload:
        raise CorruptState(f"{path} has {size} bytes with a header of {length}; the tensors need {payload}")
    return LENGTH_BYTES + length


def header_length(prefix: bytes) -> int:
    """The length of a safetensors header by the bytes in front of it; 0 if they are too few."""
    return int(_LENGTH.unpack(prefix)[0]) if len(prefix) == LENGTH_BYTES else 0


def _check_header(path: Path, file: Any, expected: Mapping[str, tuple[int, ...]]) -> None:
    names = list(file.offset_keys())
    if set(names) != set(expected):
        raise CorruptState(f"{path} holds other tensors: {sorted(set(names) ^ set(expected))[:4]}")
    if names != sorted(expected):
        raise CorruptState(f"{path} does not hold its tensors in order of their names")
    for name, shape in expected.items():
        piece = file.get_slice(name)
        if tuple(piece.get_shape()) != tuple(shape) or piece.get_dtype() != "F32":
            raise CorruptState(f"{path}: {name} is {piece.get_dtype()} {piece.get_shape()}, expected F32 {list(shape)}")
