"""A folder of Parquet files in FineWeb's layout as a corpus: a row is a document, a page is `page_size` rows.

Only the column `text` is read, and only the row groups that a page touches. The index holds the row counts of all row
groups and the hash of each file's footer, which lists sizes and statistics of all its columns.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distributed_training.data.index import Scan, build_index, fingerprint, list_files
from distributed_training.data.source import Paging, Piece
from template.errors import ConfigurationError, DataError, SourceUnavailable


class ParquetSource:
    """A `Source` over the `*.parquet` files below `folder`, in order of their names.

    Raises:
        ConfigurationError: no folder, no files, no rows, a file that is not Parquet or has no string column `text`.
        SourceUnavailable: a file cannot be read.
    """

    skipped = ()

    def __init__(self, folder: Path, page_size: int, *, cache: Path | None = None) -> None:
        entries = build_index("parquet", folder, list_files(folder, ".parquet", "*.parquet files"), _scan, cache)
        self._groups = [(folder / entry.name, group) for entry in entries for group in range(len(entry.scan.marks))]
        self._paging = Paging([rows for entry in entries for rows in entry.scan.marks], page_size)
        if not self._paging.units:
            raise ConfigurationError(f"data.path: the Parquet files in {folder} hold no rows")
        self.pages, self.fingerprint = self._paging.pages, fingerprint("parquet", entries)

    def read(self, page: int) -> tuple[Piece, ...]:
        parts = self._paging.parts(*self._paging.limits(page))
        return tuple(piece for part in parts for piece in self._rows(*part))

    def close(self) -> None:
        return

    def _rows(self, part: int, first: int, end: int) -> list[Piece]:
        path, group = self._groups[part]
        try:
            with pq.ParquetFile(path) as file:
                texts = file.read_row_group(group, columns=["text"]).column("text").slice(first, end - first)
        except (OSError, pa.ArrowException) as error:
            raise SourceUnavailable(f"row group {group} of {path} cannot be read: {error}") from error
        if len(texts) != end - first:
            raise SourceUnavailable(f"{path} has fewer rows than when it was indexed: restore it, or start anew")
        if texts.null_count:
            raise DataError(f"row group {group} of {path} has rows without text")
        return [Piece(text.encode(), ends=True) for text in texts.to_pylist()]


def _scan(path: Path) -> Scan:
    """Row counts of the row groups, and the hash of the footer."""
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    except pa.ArrowException as error:
        raise ConfigurationError(f"data.path: {path} is not a Parquet file: {error}") from error
    if "text" not in schema.names or schema.field("text").type not in (pa.string(), pa.large_string()):
        raise ConfigurationError(
            f"data.path: {path} has no column 'text' of strings (its columns: {', '.join(schema.names)}); "
            "give it FineWeb's columns"
        )
    return Scan(_footer_hash(path), rows)


def _footer_hash(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(-8, 2)  # length of the footer (little-endian, 4 bytes) and the magic number
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return hashlib.sha256(file.read(length)).hexdigest()
