"""Writes the same documents as text files, Parquet and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Write = Callable[[Path, Sequence[str]], Path]


def row(text: str, number: int) -> dict[str, Any]:
    """One row of FineWeb."""
    return {
        "text": text,
        "id": f"<urn:uuid:{number:012d}>",
        "dump": "CC-MAIN-2024-10",
        "url": f"https://example.org/{number}",
        "date": "2024-02-21T00:00:00Z",
        "file_path": "s3://example/warc.gz",
        "language": "en",
        "language_score": 0.99,
        "token_count": len(text.split()),
    }


def write_text(folder: Path, documents: Sequence[str]) -> Path:
    for number, text in enumerate(documents):
        path = folder / f"part{number // 4:03d}" / f"{number:04d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return folder


def write_parquet(folder: Path, documents: Sequence[str]) -> Path:
    """Files of 7 rows, row groups of 3."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(documents), 7):
        rows = [row(text, first + i) for i, text in enumerate(documents[first : first + 7])]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{first:05d}.parquet", row_group_size=3)
    return folder


def write_jsonl(folder: Path, documents: Sequence[str]) -> Path:
    """Files of 20 lines: more than one mark of the index each."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(documents), 20):
        lines = [json.dumps(row(text, first + i)) for i, text in enumerate(documents[first : first + 20])]
        (folder / f"{first:05d}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
