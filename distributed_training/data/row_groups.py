"""Where the text of a dataset lies: for each Parquet file, the rows and the bytes of the text column of each row group.

Built once from the files' footers alone, by range requests, and kept as one file of JSON whose hash is the identity of
the corpus: a neuron that is given a ready index checks it by that hash. While it is being built each file's entry is
kept as a line, so that a build that broke off goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distributed_training.data.canonical import canonical, save_index
from distributed_training.data.column_chunk import CODECS, Layout
from distributed_training.data.store import Store
from template.errors import ConfigurationError, DataError, SourceUnavailable

logger = logging.getLogger(__name__)

Numbers = npt.NDArray[np.int64]

_FORMAT = "dt-row-groups/1"
_TAIL = 1 << 18  # bytes fetched at first from the end of a file; a longer footer takes a second request
_FOOTER_LIMIT = 1 << 28
_READERS = 8
_LISTS = ("rows", "starts", "sizes")


@dataclass(frozen=True, eq=False)
class FileGroups:
    """One Parquet file. `rows`, `starts` and `sizes` (bytes of the column chunk): int64 [row groups]."""

    name: str
    size: int
    footer: str  # sha256
    codec: str
    nullable: bool
    rows: Numbers
    starts: Numbers
    sizes: Numbers

    @property
    def layout(self) -> Layout:
        return Layout(self.codec, self.nullable)

    def facts(self) -> dict[str, Any]:
        """What JSON can hold."""
        lists = {name: getattr(self, name).tolist() for name in _LISTS}
        return {**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}, **lists}


@dataclass(frozen=True, eq=False)
class RowGroupIndex:
    """All files of a corpus, in order. `origin` names repository, configuration, split, revision and column."""

    origin: tuple[str, ...]
    files: tuple[FileGroups, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 of the index in its canonical form."""
        return hashlib.sha256(canonical(self._facts())).hexdigest()

    def save(self, path: Path) -> None:
        """Write it whole or not at all.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        save_index(path, canonical({**self._facts(), "sha256": self.fingerprint}))

    def _facts(self) -> dict[str, Any]:
        files = [file.facts() for file in self.files]
        return {"format": _FORMAT, "origin": list(self.origin), "files": files}


class RowMap:
    """Which file and row group hold a row of the corpus: 16 bytes a row group, one binary search a look-up."""

    def __init__(self, index: RowGroupIndex) -> None:
        self._row_starts = _starts(np.concatenate([file.rows for file in index.files]))
        self._group_starts = _starts(np.array([len(file.rows) for file in index.files], np.int64))

    @property
    def rows(self) -> int:
        return int(self._row_starts[-1])

    def locate(self, rows: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """File, row group in the file and row in the row group of each of `rows`, all int64 [n].

        Raises:
            DataError: no such row.
        """
        if rows.size and not 0 <= rows.min() <= rows.max() < self.rows:
            raise DataError(f"rows {rows.min()} to {rows.max()} were asked for; the corpus has {self.rows}")
        groups = np.searchsorted(self._row_starts, rows, side="right") - 1
        files = np.searchsorted(self._group_starts, groups, side="right") - 1
        return files, groups - self._group_starts[files], rows - self._row_starts[groups]


def _starts(counts: Numbers) -> Numbers:
    """The running sum before each entry, and the whole at the end, int64 [n + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def read_index(content: bytes, origin: Sequence[str]) -> RowGroupIndex:
    """The index that `save` wrote.

    Raises:
        DataError: it is none, is spoiled, or is of another corpus.
    """
    try:
        facts = json.loads(content)
        files = tuple(_file_from(item) for item in facts["files"])
        index, told = RowGroupIndex(tuple(facts["origin"]), files), facts["sha256"]
        known = facts["format"] == _FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not an index of row groups: {error!r}") from error
    if not known or index.fingerprint != told:
        raise DataError("an index of row groups whose hash does not match its content")
    if index.origin != tuple(origin):
        raise DataError(f"an index of {' '.join(index.origin)}, not of {' '.join(origin)}")
    return index


def build_row_groups(
    store: Store, names: Sequence[str], column: str, origin: Sequence[str], partial: Path | None
) -> RowGroupIndex:
    """The index of the files `names` in `store`, in that order. `partial`: where entries are kept while it is built.

    Raises:
        ConfigurationError: a file is not Parquet, or its `column` is not one of strings that can be read.
        SourceUnavailable: a footer cannot be read.
    """
    done = {file.name: file for file in (_partial(partial, origin) if partial else ())}
    missing = [name for name in names if name not in done]
    with ThreadPoolExecutor(_READERS) as pool:
        for file in _kept(pool.map(lambda name: _scan(store, name, column), missing), partial, origin):
            done[file.name] = file
    index = RowGroupIndex(tuple(origin), tuple(done[name] for name in names))
    if not sum(int(file.rows.sum()) for file in index.files):
        raise ConfigurationError(f"data.path: the Parquet files in {store.where} hold no rows")
    return index


def _kept(files: Iterable[FileGroups], partial: Path | None, origin: Sequence[str]) -> Iterator[FileGroups]:
    """Each file, once its entry is written down."""
    if partial is None:
        yield from files
        return
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as lines:
        for file in files:
            lines.write(canonical({**file.facts(), "origin": list(origin)}) + b"\n")
            lines.flush()
            yield file
    partial.unlink()


def _partial(path: Path, origin: Sequence[str]) -> Iterator[FileGroups]:
    """The entries of a build that broke off; the last line may be cut short, and is then left out for good."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:-1], b""]))
    for line in lines[:-1]:
        item = json.loads(line)
        if tuple(item.pop("origin")) == tuple(origin):
            yield _file_from(item)


def _scan(store: Store, name: str, column: str) -> FileGroups:
    """What the footer of one file says."""
    tail, size = store.tail(name, _TAIL)
    length = struct.unpack("<I", tail[-8:-4])[0] + 8 if tail[-4:] == b"PAR1" and len(tail) >= 12 else 0
    if not 8 < length <= min(size, _FOOTER_LIMIT):
        raise ConfigurationError(f"data.path: {name} in {store.where} is not a Parquet file")
    if length > len(tail):
        tail = store.read(name, size - length, size)
    footer = tail[-length:]
    try:
        metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer))
    except (pa.ArrowException, OSError) as error:
        raise ConfigurationError(f"data.path: the footer of {name} in {store.where} cannot be read: {error}") from error
    return _described(metadata, name, size, hashlib.sha256(footer).hexdigest(), column)


def _described(metadata: Any, name: str, size: int, footer: str, column: str) -> FileGroups:
    place = _place_of(metadata, name, column)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(place) for group in groups]
    codecs = {chunk.compression for chunk in chunks}
    if len(codecs) > 1 or not codecs <= set(CODECS):
        raise ConfigurationError(
            f"data.path: {name} is compressed by {sorted(codecs)}; one of {sorted(CODECS)} is read"
        )
    return FileGroups(
        name=name,
        size=size,
        footer=footer,
        codec=codecs.pop() if codecs else "UNCOMPRESSED",
        nullable=metadata.schema.column(place).max_definition_level > 0,
        rows=np.array([group.num_rows for group in groups], np.int64),
        starts=np.array([_start(chunk) for chunk in chunks], np.int64),
        sizes=np.array([chunk.total_compressed_size for chunk in chunks], np.int64),
    )


def _place_of(metadata: Any, name: str, column: str) -> int:
    """The number of the column `column`; it holds strings, and is no part of another."""
    columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    for place, found in enumerate(columns):
        if found.path == column and found.logical_type.type == "STRING" and found.max_repetition_level == 0:
            return place
    raise ConfigurationError(
        f"data.column: {name} has no column '{column}' of strings (its columns: "
        f"{', '.join(found.path for found in columns)})"
    )


def _start(chunk: Any) -> int:
    """The first byte of a column chunk: that of its dictionary, if it has one."""
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        return int(min(chunk.dictionary_page_offset, chunk.data_page_offset))
    return int(chunk.data_page_offset)


def _file_from(item: dict[str, Any]) -> FileGroups:
    lists = {key: np.array(item[key], np.int64) for key in _LISTS}
    if len({values.shape for values in lists.values()}) != 1:
        raise ValueError(f"{item['name']} has lists of different lengths")
    return FileGroups(**{**item, **lists})


def open_index(path: Path, origin: Sequence[str]) -> RowGroupIndex | None:
    """The index in the cache; None if there is none, or it is spoiled (said, and built anew).

    Raises:
        SourceUnavailable: it is there and cannot be read.
    """
    try:
        return read_index(path.read_bytes(), origin)
    except FileNotFoundError:
        return None
    except DataError as error:
        logger.warning("%s is unusable (%s) and is built anew", path, error)
        return None
    except OSError as error:
        raise SourceUnavailable(f"{path} cannot be read: {error.strerror}") from error
