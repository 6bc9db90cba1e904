"""A neuron's checkpoint: the state, and the progress made at it.

    <folder>/state-00000012/          the files of `model/files.py`; a new folder each epoch, renamed into place; the
                                      one before stays for those who are still reading it
    <folder>/own-<hash>/              the same files of a state that the miner's own steps led to, and that it has
                                      committed to in its records
    <folder>/progress.safetensors     the local work's vectors (the accumulated gradient), with error feedback its
                                      residual, and in the metadata the records; replaced by rename. With overlap
                                      also the parameters before, which this epoch is trained at, or else what was
                                      accumulated ahead of the next one

Progress names the state hash that it belongs to. Being killed between the two renames leaves progress of an older
state, which is dropped: its samples were trained at parameters that are no longer current.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distributed_training.engine.local_work import ACCUMULATED, Progress
from distributed_training.engine.records import Work
from distributed_training.model.files import FILES, MANIFEST, read_manifest, read_state, read_tensors, write_state
from distributed_training.model.layout import Layout, Vector
from distributed_training.model.state import State
from template.errors import CorruptState

PROGRESS = "progress.safetensors"
AHEAD = {ACCUMULATED: "ahead"}  # names of the vectors of what was done for the next epoch
NONE = "none"  # in the place of a number of steps: there is no local work
_STATE_PATTERN = "state-????????"
_METADATA_BYTES = 256 * 1024 * 1024
_WORKS = TypeAdapter(tuple[Work, ...])


@dataclass(frozen=True, eq=False)
class Base:
    """Parameters [P] that gradients are taken at, read-only, and the hash of the state that they are of."""

    hash: str
    params: Vector


@dataclass(frozen=True, eq=False)
class Ahead:
    """What was done for the next epoch."""

    work: Work
    progress: Progress


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An engine as a value: base state, the work of the kept epochs, what error feedback owes.

    `progress` is that of the local work, None if nothing was done; `marked` are the hashes of the states that the marks
    in the works name, and `standings` those of them that are in memory. The vectors are float32 [P]; `residual` is
    None in a run without error feedback. `before` is there if this epoch is still trained at the state before, `ahead`
    if the next one is trained already: never both.
    """

    state: State
    progress: Progress | None
    works: tuple[Work, ...]
    residual: Vector | None
    before: Base | None = None
    ahead: Ahead | None = None
    standings: tuple[State, ...] = ()
    marked: frozenset[str] = frozenset()


def save_checkpoint(folder: Path, snapshot: Snapshot, config: Mapping[str, Any], run_id: str) -> None:
    """Write `snapshot` into `folder`. The state is written once an epoch, the progress each time."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"state-{snapshot.state.epoch:08d}"
    if not _holds(target, snapshot.state.hash):
        _write_aside(folder, target, snapshot.state, config, run_id)
    _save_standings(folder, snapshot, config, run_id)
    partial = folder / f"{PROGRESS}.partial"
    save_file(_vectors(snapshot), partial, metadata=_metadata(snapshot))
    os.replace(partial, folder / PROGRESS)
    before = state_folder(folder, snapshot.state.epoch - 1)
    for other in folder.glob(_STATE_PATTERN):
        if other not in (target, before):
            shutil.rmtree(other)


def _save_standings(folder: Path, snapshot: Snapshot, config: Mapping[str, Any], run_id: str) -> None:
    for standing in snapshot.standings:
        path = standing_folder(folder, standing.hash)
        if not (path / MANIFEST).is_file():
            write_state(path, standing, config, run_id)
    kept = {standing_folder(folder, state_hash) for state_hash in snapshot.marked}
    for other in folder.glob(standing_folder(folder, "*").name):
        if other not in kept:
            shutil.rmtree(other)


def standing_folder(folder: Path, state_hash: str) -> Path:
    """Where the checkpoint in `folder` keeps a state that a miner's own steps led to."""
    return folder / f"own-{state_hash}"


def kept_standing(folder: Path, layout: Layout, run_id: str, vectors: Iterable[str], state_hash: str) -> State | None:
    """The state with this hash that the miner's own steps led to; None if it is not kept.

    Raises:
        StateMismatch, CorruptState: as `read_state` does.
    """
    path = standing_folder(folder, state_hash)
    return read_state(path, layout, run_id, vectors, state_hash) if (path / MANIFEST).is_file() else None


def take_state(folder: Path, source: Path, epoch: int) -> None:
    """Make the state in `source`, which was verified, that of `epoch` in the checkpoint: moved, not written again."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"state-{epoch:08d}"
    partial = _cleared(folder, target)
    partial.mkdir()
    for name in FILES:
        os.replace(source / name, partial / name)
    partial.rename(target)


def _vectors(snapshot: Snapshot) -> dict[str, Vector]:
    vectors = {} if snapshot.progress is None else dict(snapshot.progress.vectors)
    if snapshot.residual is not None:
        vectors["residual"] = snapshot.residual
    if snapshot.before is not None:
        vectors["before"] = snapshot.before.params
    if snapshot.ahead is not None:
        vectors |= {AHEAD[name]: vector for name, vector in snapshot.ahead.progress.vectors.items()}
    return vectors


def _metadata(snapshot: Snapshot) -> dict[str, str]:
    metadata = {"works": _WORKS.dump_json(snapshot.works).decode()}
    if snapshot.progress is None:
        metadata["steps"] = NONE
    elif snapshot.progress.steps:
        metadata["steps"] = str(snapshot.progress.steps)
    if snapshot.ahead is not None:
        metadata["ahead"] = snapshot.ahead.work.model_dump_json()
    return metadata


def state_folder(folder: Path, epoch: int) -> Path | None:
    """Where the checkpoint in `folder` keeps the state of `epoch`, the current one or the one before; None if not."""
    path = folder / f"state-{epoch:08d}"
    return path if (path / MANIFEST).is_file() else None


def load_checkpoint(
    folder: Path, layout: Layout, run_id: str, vectors: Iterable[str], local: Iterable[str], *, error_feedback: bool
) -> Snapshot | None:
    """The checkpoint in `folder`, verified; None if there is none.

    `vectors` names those of the state's optimiser, `local` those of the local work's progress.

    Raises:
        StateMismatch, CorruptState: as `read_state` does; a damaged progress file.
    """
    complete = sorted(path for path in folder.glob(_STATE_PATTERN) if (path / MANIFEST).is_file())
    if not complete:
        return None
    state = read_state(complete[-1], layout, run_id, vectors)
    fresh = Work(epoch=state.epoch, state_hash=state.hash, base_hash=state.hash)
    owed = np.zeros(layout.size, dtype=np.float32) if error_feedback else None
    return _with_progress(Snapshot(state, None, (fresh,), owed), folder / PROGRESS, tuple(local))


def _with_progress(empty: Snapshot, path: Path, local: tuple[str, ...]) -> Snapshot:
    """The snapshot with the progress in `path`, if that was made at the same state."""
    if not path.exists():
        return empty
    kept = _read_kept(path)
    works, ahead = kept.works, kept.ahead
    if not works or works[-1].state_hash != empty.state.hash:
        return empty
    base_hash = works[-1].base_hash
    expected = {
        **dict.fromkeys(local, kept.steps is not None),
        "residual": empty.residual is not None,
        "before": ahead is None and base_hash != empty.state.hash,
        **{AHEAD[name]: ahead is not None for name in local if name in AHEAD},
    }
    shapes = {name: (empty.state.layout.size,) for name, there in expected.items() if there}
    tensors = read_tensors(path, shapes, _METADATA_BYTES)
    if "before" in tensors:
        tensors["before"].flags.writeable = False
    return Snapshot(
        empty.state,
        None if kept.steps is None else Progress({name: tensors[name] for name in local}, kept.steps),
        works,
        tensors.get("residual"),
        before=Base(base_hash, tensors["before"]) if "before" in tensors else None,
        ahead=None if ahead is None else Ahead(ahead, Progress({name: tensors[AHEAD[name]] for name in local})),
    )


@dataclass(frozen=True)
class _Kept:
    """The metadata of a progress file: the work of the kept epochs, that of the next one if it was begun, and the count
    of inner steps, None if there is no local work."""

    works: tuple[Work, ...]
    ahead: Work | None
    steps: int | None


def _read_kept(path: Path) -> _Kept:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        works = _WORKS.validate_json(metadata["works"])
        ahead = Work.model_validate_json(metadata["ahead"]) if "ahead" in metadata else None
        steps = metadata.get("steps", "0")
        return _Kept(works, ahead, None if steps == NONE else int(steps))
    except (OSError, SafetensorError) as error:
        raise CorruptState(f"{path} cannot be read: {error}") from error
    except (KeyError, ValueError) as error:
        raise CorruptState(f"{path} holds no readable records: {error}") from error


def _holds(folder: Path, state_hash: str) -> bool:
    return (folder / MANIFEST).is_file() and read_manifest(folder).state_hash == state_hash


def _write_aside(folder: Path, target: Path, state: State, config: Mapping[str, Any], run_id: str) -> None:
    """Write the state under another name, then rename: `target` is complete or absent."""
    partial = _cleared(folder, target)
    write_state(partial, state, config, run_id)
    partial.rename(target)


def _cleared(folder: Path, target: Path) -> Path:
    """Where `target` is put together; what an earlier try or another state has left there and at `target` is gone."""
    partial = folder / f"{target.name}.partial"
    for stale in (partial, target):
        shutil.rmtree(stale, ignore_errors=not stale.exists())
    return partial
