"""A folder of JSON-lines files in FineWeb's layout as a corpus: a line is a document, a page is `page_size` lines.

The index holds the byte offset of every sixteenth line, so a page is found without reading what lies before it, and
the hash of each file's content.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

from distributed_training.data.index import Scan, build_index, fingerprint, list_files
from distributed_training.data.source import Paging, Piece
from template.errors import ConfigurationError, DataError, SourceUnavailable

_LINES_PER_MARK = 16


class JsonlSource:
    """A `Source` over the `*.jsonl` files below `folder`, in order of their names.

    Raises:
        ConfigurationError: no folder, no files, no rows, or a file without the column `text`.
        DataError: a file has an empty line.
        SourceUnavailable: a file cannot be read.
    """

    skipped = ()

    def __init__(self, folder: Path, page_size: int, *, cache: Path | None = None) -> None:
        entries = build_index("jsonl", folder, list_files(folder, ".jsonl", "*.jsonl files"), _scan, cache)
        self._files = [(folder / entry.name, entry.scan.marks[1:]) for entry in entries]
        self._paging = Paging([entry.scan.marks[0] for entry in entries], page_size)
        if not self._paging.units:
            raise ConfigurationError(f"data.path: the JSON-lines files in {folder} hold no rows")
        self.pages, self.fingerprint = self._paging.pages, fingerprint("jsonl", entries)

    def read(self, page: int) -> tuple[Piece, ...]:
        parts = self._paging.parts(*self._paging.limits(page))
        return tuple(piece for part in parts for piece in self._rows(*part))

    def close(self) -> None:
        return

    def _rows(self, part: int, first: int, end: int) -> list[Piece]:
        path, offsets = self._files[part]
        mark, skip = divmod(first, _LINES_PER_MARK)
        try:
            with path.open("rb") as file:
                file.seek(offsets[mark])
                lines = list(itertools.islice(file, skip, skip + end - first))
        except OSError as error:
            raise SourceUnavailable(f"{path} cannot be read: {error}") from error
        if len(lines) != end - first:
            raise SourceUnavailable(f"{path} has fewer lines than when it was indexed: restore it, or start anew")
        return [Piece(_text(line, path, first + i), ends=True) for i, line in enumerate(lines)]


def _text(line: bytes, path: Path, row: int) -> bytes:
    try:
        columns = json.loads(line)
        return columns["text"].encode()  # type: ignore[no-any-return]  # another type has no encode
    except (ValueError, RecursionError) as error:
        raise DataError(f"line {row + 1} of {path} is not JSON in UTF-8: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"line {row + 1} of {path} has no string 'text'; give it FineWeb's columns") from error


def _scan(path: Path) -> Scan:
    """The number of lines, then the offset of every sixteenth; the hash of the content."""
    digest, offset, rows, marks = hashlib.sha256(), 0, 0, []
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                raise DataError(f"line {rows + 1} of {path} is empty: take it out")
            if rows == 0:
                _check_columns(line, path)
            if rows % _LINES_PER_MARK == 0:
                marks.append(offset)
            digest.update(line)
            offset += len(line)
            rows += 1
    return Scan(digest.hexdigest(), (rows, *marks))


def _check_columns(line: bytes, path: Path) -> None:
    try:
        _text(line, path, 0)
    except DataError as error:
        raise ConfigurationError(f"data.path: {error}") from error
