"""One column of one row group of a Parquet file, decoded from its own bytes.

A Parquet file's footer lists every column of every row group: megabytes for a file of a real corpus, and needed by
every reader. What decoding one column chunk takes is only its codec and whether its values may be null. So the chunk's
bytes, fetched by one range request, are put between the magic number and a footer that describes this chunk alone
(Apache Parquet format, Thrift compact protocol), and pyarrow reads that as the file it is.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from template.errors import DataError

_MAGIC = b"PAR1"
# Apache Parquet's CompressionCodec by pyarrow's names. LZ4 is left out: the name stands for two different codecs.
CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6}
_BYTE_ARRAY, _UTF8, _REQUIRED, _OPTIONAL = 6, 0, 0, 1
_ENCODINGS = (0, 3, 8)  # PLAIN, RLE, RLE_DICTIONARY; readers go by what each page says

_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12  # types of the Thrift compact protocol


@dataclass(frozen=True)
class Layout:
    """How a string column lies in its file: the codec's name as pyarrow tells it, and whether a value may be null."""

    codec: str
    nullable: bool


def decode(chunk: bytes, rows: int, layout: Layout, first: int = 0, count: int | None = None) -> list[bytes]:
    """The UTF-8 values of a string column chunk that holds `rows` values: `count` of them (all) from `first` on.

    Raises:
        DataError: the bytes are not such a chunk, or a value is null.
    """
    footer = _footer(len(chunk), rows, layout)
    file = b"".join((_MAGIC, chunk, footer, struct.pack("<I", len(footer)), _MAGIC))
    try:
        values = pq.ParquetFile(pa.BufferReader(file)).read_row_group(0).column(0)
    except (pa.ArrowException, OSError) as error:  # OSError: a page that does not decompress
        raise DataError(f"a column chunk of {len(chunk)} bytes cannot be decoded: {error}") from error
    if len(values) != rows:
        raise DataError(f"a column chunk has {len(values)} rows, its index says {rows}")
    if values.null_count:
        raise DataError("a row group has rows without text")
    return values.slice(first, count).cast(pa.large_binary()).to_pylist()  # type: ignore[no-any-return]


def _footer(size: int, rows: int, layout: Layout) -> bytes:
    """FileMetaData of a file with one column and one row group."""
    root = _struct((4, _BINARY, _binary(b"schema")), (5, _I32, _integer(1)))
    repetition = _OPTIONAL if layout.nullable else _REQUIRED
    column = _struct(
        (1, _I32, _integer(_BYTE_ARRAY)),
        (3, _I32, _integer(repetition)),
        (4, _BINARY, _binary(b"text")),
        (6, _I32, _integer(_UTF8)),
    )
    chunk = _struct(
        (1, _I32, _integer(_BYTE_ARRAY)),
        (2, _LIST, _list(_I32, [_integer(encoding) for encoding in _ENCODINGS])),
        (3, _LIST, _list(_BINARY, [_binary(b"text")])),
        (4, _I32, _integer(CODECS[layout.codec])),
        (5, _I64, _integer(rows)),
        (6, _I64, _integer(size)),
        (7, _I64, _integer(size)),
        (9, _I64, _integer(len(_MAGIC))),  # the first page, be it of data or of a dictionary
    )
    placed = _struct((2, _I64, _integer(len(_MAGIC))), (3, _STRUCT, chunk))
    group = _struct((1, _LIST, _list(_STRUCT, [placed])), (2, _I64, _integer(size)), (3, _I64, _integer(rows)))
    return _struct(
        (1, _I32, _integer(2)),
        (2, _LIST, _list(_STRUCT, [root, column])),
        (3, _I64, _integer(rows)),
        (4, _LIST, _list(_STRUCT, [group])),
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(value: int) -> bytes:
    return _varint(value << 1)  # zigzag; nothing here is negative


def _binary(value: bytes) -> bytes:
    return _varint(len(value)) + value


def _list(kind: int, items: Sequence[bytes]) -> bytes:
    assert len(items) < 15, "longer lists have another header"
    return bytes([len(items) << 4 | kind]) + b"".join(items)


def _struct(*fields: tuple[int, int, bytes]) -> bytes:
    """Fields as (number, type, value), numbers ascending."""
    out, last = bytearray(), 0
    for number, kind, value in fields:
        out.append(number - last << 4 | kind)
        out += value
        last = number
    return bytes(out) + b"\x00"
