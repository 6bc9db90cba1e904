"""One set of promises for every kind of corpus: random access, nothing lost, errors that name the remedy."""

from __future__ import annotations

import json
import random
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import Write, row, write_jsonl, write_parquet, write_text
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.data.jsonl import JsonlSource
from distributed_training.data.parquet import ParquetSource
from distributed_training.data.source import MemorySource, Paging, Piece, Source
from distributed_training.data.text import standard_library, text_folder
from template.errors import ConfigurationError, DataError, SourceUnavailable

PAGE_SIZES = [1, 2, 5, 16, 100]
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=45)


def open_source(write: Write, folder: Path, page_size: int, cache: Path | None = None) -> Source:
    if write is write_text:
        return text_folder(folder, page_size * 16, whole_characters=True, cache=cache)
    kind = ParquetSource if write is write_parquet else JsonlSource
    return kind(folder, page_size, cache=cache)


def joined(pieces: Sequence[Piece]) -> list[str]:
    """The documents of consecutive pieces; fails if the last one has no end."""
    assert pieces[-1].ends
    stream = b"".join(piece.text + (b"\xff" if piece.ends else b"") for piece in pieces)
    return [document.decode() for document in stream.split(b"\xff")[:-1]]


def all_pieces(source: Source) -> list[Piece]:
    return [piece for page in range(source.pages) for piece in source.read(page)]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_all_pages_give_all_documents(write: Write, documents: list[str], tmp_path: Path, page_size: int) -> None:
    """In order, the pages hold every document in full, once."""
    source = open_source(write, write(tmp_path, documents), page_size)
    assert joined(all_pieces(source)) == documents
    assert joined(all_pieces(MemorySource(documents, page_size))) == documents


@given(texts, st.integers(1, 50), st.sampled_from([write_text, write_parquet, write_jsonl]))
@settings(max_examples=60, deadline=None)
def test_any_documents_survive(documents: list[str], page_size: int, write: Write) -> None:
    """Empty documents, line breaks of all kinds, nulls and characters of any length come back as they were."""
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(write, write(Path(folder), documents), page_size)
        assert joined(all_pieces(source)) == documents


@pytest.mark.parametrize("page_size", [2, 16])
def test_random_access_equals_reading_in_order(
    write: Write, documents: list[str], tmp_path: Path, page_size: int
) -> None:
    """Four threads that read pages in any order get what one reader gets in order."""
    source = open_source(write, write(tmp_path, documents), page_size)
    in_order = {page: source.read(page) for page in range(source.pages)}
    anyhow = random.Random(7).choices(range(source.pages), k=200)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, anyhow)) == [in_order[page] for page in anyhow]


@pytest.mark.parametrize("write", [write_parquet, write_jsonl], ids=["parquet", "jsonl"])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_row_pages_have_page_size_documents(write: Write, documents: list[str], tmp_path: Path, page_size: int) -> None:
    """A page of rows is a slice of the documents; the last may be shorter."""
    source = open_source(write, write(tmp_path, documents), page_size)
    for page in range(source.pages):
        expected = documents[page * page_size : (page + 1) * page_size]
        assert [piece.text.decode() for piece in source.read(page)] == expected


@pytest.mark.parametrize("page", [-1, 10**9])
def test_unknown_pages_are_refused(write: Write, documents: list[str], tmp_path: Path, page: int) -> None:
    """A page number that does not exist is an error, not an empty page."""
    source = open_source(write, write(tmp_path, documents), 2)
    with pytest.raises(DataError, match=f"no page {page}"):
        source.read(page)


def test_fingerprint_is_of_the_corpus(write: Write, documents: list[str], tmp_path: Path) -> None:
    """Copies agree, whatever page size, folder and time; one changed letter or one more document does not."""
    one = open_source(write, write(tmp_path / "one", documents), 2).fingerprint
    assert len(one) == 64
    assert open_source(write, write(tmp_path / "two", documents), 5).fingerprint == one
    changed = [*documents[:-1], "#" + documents[-1][1:]]
    longer = [*documents, "more"]
    others = {
        open_source(write, write(tmp_path / str(len(d)) / d[-1][:1], d), 2).fingerprint for d in (changed, longer)
    }
    assert len({one, *others}) == 3


def test_missing_and_empty_folders_are_refused(write: Write, tmp_path: Path) -> None:
    """Both messages name the folder and the key to change."""
    with pytest.raises(ConfigurationError, match=r"data.path: there is no folder .*nowhere"):
        open_source(write, tmp_path / "nowhere", 2)
    (tmp_path / ".hidden.txt").write_text("no")
    with pytest.raises(ConfigurationError, match=r"data.path: the folder .* is empty"):
        open_source(write, tmp_path, 2)


def test_lost_file_is_an_outage(write: Write, documents: list[str], tmp_path: Path) -> None:
    """A file that goes away while the neuron runs makes its pages unavailable, and only these."""
    source = open_source(write, write(tmp_path, documents), 2)
    last = max(path for path in tmp_path.rglob("*") if path.is_file())
    last.unlink()
    source.read(0)
    with pytest.raises(SourceUnavailable, match=last.name):
        source.read(source.pages - 1)


def test_truncated_file_is_an_outage(write: Write, documents: list[str], tmp_path: Path) -> None:
    """Nor is a shortened file read as shorter documents."""
    source = open_source(write, write(tmp_path, documents), 2)
    last = max(path for path in tmp_path.rglob("*") if path.is_file())
    last.write_bytes(last.read_bytes()[:20])
    with pytest.raises((SourceUnavailable, DataError), match=last.name):
        source.read(source.pages - 1)


def test_text_pages_have_page_size_units(documents: list[str], tmp_path: Path) -> None:
    """For a byte tokenizer the stream of bytes and ends is cut exactly, inside characters too."""
    stream = b"".join(document.encode() + b"\xff" for document in documents)
    source = text_folder(write_text(tmp_path, documents), 64, whole_characters=False)
    assert source.pages == -(-len(stream) // 64)
    for page in range(source.pages):
        units = b"".join(piece.text + (b"\xff" if piece.ends else b"") for piece in source.read(page))
        assert units == stream[page * 64 : (page + 1) * 64]


@pytest.mark.parametrize("page_size", [4, 5, 7, 64])
def test_text_pages_do_not_cut_characters(documents: list[str], tmp_path: Path, page_size: int) -> None:
    """Each piece is UTF-8 of its own, no page is empty, and a limit moves by less than a character."""
    source = text_folder(write_text(tmp_path, documents), page_size, whole_characters=True)
    for page in range(source.pages - 1):
        pieces = source.read(page)
        units = sum(len(piece.text.decode().encode()) + piece.ends for piece in pieces)
        assert abs(units - page_size) <= 3
        assert units > 0
    assert joined(all_pieces(source)) == documents


def test_text_page_must_hold_a_character(tmp_path: Path) -> None:
    """Pages smaller than the longest character could be empty."""
    with pytest.raises(ConfigurationError, match="page_size must be at least 4"):
        text_folder(write_text(tmp_path, ["a"]), 3, whole_characters=True)


def test_text_folder_refuses_what_is_not_text(documents: list[str], tmp_path: Path) -> None:
    """A character cut at the end of a file is found as well."""
    write_text(tmp_path, documents)
    (tmp_path / "bad.txt").write_bytes(b"fine until here \xe2\x82")
    with pytest.raises(ConfigurationError, match=r"1 of 51 files .* not UTF-8 text, the first is bad.txt"):
        text_folder(tmp_path, 64, whole_characters=True)


def test_standard_library_is_the_text_of_this_python() -> None:
    """A module can be found in it, byte for byte; tests, installed packages and files of this machine cannot."""
    source = standard_library(4096, whole_characters=False)
    folder = Path(sysconfig.get_path("stdlib"))
    documents = b"".join(p.text + (b"\xff" if p.ends else b"") for p in all_pieces(source)).split(b"\xff")[:-1]
    assert (folder / "json" / "decoder.py").read_bytes() in documents
    assert sum(map(len, documents)) > 5_000_000
    skipped = next(folder.glob("_sysconfigdata*.py"), None)
    assert skipped is None or skipped.read_bytes() not in documents
    assert Path(pytest.__file__).read_bytes() not in documents


def test_standard_library_names_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A source file that is not UTF-8 is left out, in the log and in `skipped`."""
    for name in ("a.py", "b/c.py", "b/test/d.py", "site-packages/e.py", "_sysconfigdata_x.py", "f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    source = standard_library(64, whole_characters=True)
    assert joined(all_pieces(source)) == ["a.py", "b/c.py"]
    assert source.skipped == ("latin.py",)
    assert "latin.py" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"content": "x"}], "no column 'text' of strings .*content"),
        ([{"text": 5}], "no column 'text'"),
        ([], "no rows"),
    ],
)
def test_parquet_with_other_columns_is_refused(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    """The message names the columns that were found."""
    table = pa.Table.from_pylist(rows) if rows else pa.table({"text": pa.array([], pa.string())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigurationError, match=message):
        ParquetSource(tmp_path, 2)


def test_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    """Whatever its name says."""
    (tmp_path / "a.parquet").write_bytes(b"not at all" * 10)
    with pytest.raises(ConfigurationError, match="not a Parquet file"):
        ParquetSource(tmp_path, 2)


def test_parquet_row_without_text_is_an_error(tmp_path: Path) -> None:
    """A null is no empty document."""
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="rows without text"):
        ParquetSource(tmp_path, 2).read(0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"content": 1}\n', "no string 'text'"),
        ('{"text": 1}\n', "no string"),
        ("[1]\n", "no string"),
        ("{", "not JSON"),
    ],
)
def test_jsonl_with_other_columns_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    """When it is opened, if the first line shows it."""
    (tmp_path / "a.jsonl").write_text(lines)
    with pytest.raises(ConfigurationError, match=f"data.path: line 1 .*{message}"):
        JsonlSource(tmp_path, 2)


@pytest.mark.parametrize("line", ["{", '{"text": null}', '{"text": "\\ud800"}', "\udcff", "[" * 100_000])
def test_bad_line_is_an_error_where_it_lies(tmp_path: Path, line: str) -> None:
    """Later lines are checked when they are read; the message says which it was."""
    good = json.dumps(row("good", 1))
    (tmp_path / "a.jsonl").write_bytes(f"{good}\n{good}\n{line}\n".encode(errors="surrogateescape"))
    source = JsonlSource(tmp_path, 2)
    assert source.read(0)[1].text == b"good"
    with pytest.raises(DataError, match="line 3 of"):
        source.read(1)


def test_empty_lines_and_files_of_jsonl(tmp_path: Path) -> None:
    """An empty file has no rows; an empty line is refused, because readers would count it differently."""
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ConfigurationError, match="no rows"):
        JsonlSource(tmp_path, 2)
    write_jsonl(tmp_path / "b", ["one"])
    assert JsonlSource(tmp_path, 2).read(0)[0].text == b"one"
    (tmp_path / "c.jsonl").write_text(json.dumps(row("x", 1)) + "\n\n")
    with pytest.raises(DataError, match=r"line 2 of .* is empty"):
        JsonlSource(tmp_path, 2)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), st.integers(1, 20))
def test_paging_covers_every_unit_once(counts: list[int], page_size: int) -> None:
    """Pages cut the parts into stretches that follow each other without gap or overlap."""
    paging = Paging(counts, page_size)
    units = [(part, unit) for page in range(paging.pages) for part, first, end in paging.parts(*paging.limits(page))
             for unit in range(first, end)]  # fmt: skip
    assert units == [(part, unit) for part, count in enumerate(counts) for unit in range(count)]
