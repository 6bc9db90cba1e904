"""One column chunk, decoded from its own bytes, against pyarrow reading the whole file."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distributed_training.data.column_chunk import CODECS, Layout, decode
from template.errors import DataError

TEXTS = ["x" * (i % 90) + "é漢🙂" * (i % 3) for i in range(600)] + ["the same"] * 300


def write(texts: list[str | None], *, nullable: bool = True, **options: Any) -> bytes:
    """A Parquet file whose second of three columns is the text; row groups of 350."""
    schema = pa.schema([("id", pa.int64()), pa.field("text", pa.string(), nullable=nullable), ("n", pa.float64())])
    table = pa.table({"id": range(len(texts)), "text": texts, "n": [0.5] * len(texts)}, schema=schema)
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=350, data_page_size=2000, **options)
    return out.getvalue()


def chunks(file: bytes) -> list[tuple[bytes, int, Layout]]:
    """The arguments of `decode` for each row group."""
    metadata = pq.read_metadata(io.BytesIO(file))
    nullable = metadata.schema.column(1).max_definition_level == 1
    found = []
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        chunk = group.column(1)
        start = min(place for place in (chunk.dictionary_page_offset, chunk.data_page_offset) if place)
        data = file[start : start + chunk.total_compressed_size]
        found.append((data, group.num_rows, Layout(chunk.compression, nullable)))
    return found


@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("page_version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", sorted(CODECS))
def test_any_chunk_is_decoded(codec: str, page_version: str, dictionary: bool, nullable: bool) -> None:
    """Every codec, page version and encoding that writers of text use gives the texts that were written."""
    options = {"compression": codec.replace("UNCOMPRESSED", "NONE"), "use_dictionary": dictionary}
    file = write(list(TEXTS), nullable=nullable, data_page_version=page_version, **options)
    found = [text for chunk in chunks(file) for text in decode(*chunk)]
    assert [text.decode() for text in found] == TEXTS


def test_large_strings_are_strings() -> None:
    """Arrow's large strings lie in the file as strings do."""
    out = io.BytesIO()
    pq.write_table(pa.table({"id": [1, 2], "text": pa.array(["a", "é"], pa.large_string())}), out)
    ((data, rows, layout),) = chunks(out.getvalue())
    assert decode(data, rows, layout) == [b"a", "é".encode()]


def test_null_is_no_text() -> None:
    """A row without text is an error, not an empty document."""
    ((data, rows, layout),) = chunks(write(["a", None]))
    with pytest.raises(DataError, match="rows without text"):
        decode(data, rows, layout)


def test_other_bytes_are_an_error() -> None:
    """Noise, a chunk cut short, and a wrong number of rows are told, never returned as text."""
    (data, rows, layout), *_ = chunks(write(list(TEXTS), compression="ZSTD"))
    for bad in (b"", b"noise" * 100, data[: len(data) // 2], bytes(len(data))):
        with pytest.raises(DataError, match="column chunk"):
            decode(bad, rows, layout)
    with pytest.raises(DataError):
        decode(data, rows + 1, layout)
