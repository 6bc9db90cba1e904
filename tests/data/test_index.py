"""The index of a corpus: scanned once, checked by its hash, and never trusted blindly."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_training.data.index import FileEntry, Scan, build_index, fingerprint
from template.errors import ConfigurationError, SourceUnavailable


class Counted:
    """Scans a file and remembers which ones."""

    def __init__(self) -> None:
        self.scanned: list[str] = []

    def __call__(self, path: Path) -> Scan:
        self.scanned.append(path.name)
        return Scan(digest=path.read_text(), marks=(1, 2, 3))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(f"text of {name}")
    return folder


def build(corpus: Path, scan: Callable[[Path], Scan]) -> tuple[FileEntry, ...]:
    names = sorted(path.name for path in corpus.iterdir())
    return build_index("test", corpus, names, scan, corpus.parent / "cache")


def cached(corpus: Path) -> Path:
    (path,) = (corpus.parent / "cache").iterdir()
    return path


def test_second_start_scans_nothing(corpus: Path) -> None:
    """And finds the same entries."""
    first, second = Counted(), Counted()
    assert build(corpus, first) == build(corpus, second)
    assert first.scanned == ["a", "b", "c"]
    assert second.scanned == []


def test_only_changed_files_are_scanned_again(corpus: Path) -> None:
    """A change of size or time, a new file and a lost one are seen."""
    build(corpus, Counted())
    (corpus / "a").write_text("longer than before")
    os.utime(corpus / "b", ns=(1, 1))
    (corpus / "c").unlink()
    (corpus / "d").write_text("new")
    scan = Counted()
    assert [entry.name for entry in build(corpus, scan)] == ["a", "b", "d"]
    assert scan.scanned == ["a", "b", "d"]


@pytest.mark.parametrize("spoil", [lambda text: text[:-20], lambda text: text.replace("text of b", "text of x")])
def test_spoiled_cache_is_built_anew(
    corpus: Path, spoil: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whether cut short or altered, it is noticed, told and replaced."""
    entries = build(corpus, Counted())
    path = cached(corpus)
    good = path.read_text()
    path.write_text(spoil(good))
    assert build(corpus, Counted()) == entries
    assert "built anew" in caplog.text
    assert path.read_text() == good


def test_starting_together_leaves_one_whole_cache(corpus: Path) -> None:
    """Eight neurons that build the same index at once all get it, and no half-written file stays."""
    results: list[tuple[FileEntry, ...]] = []
    threads = [threading.Thread(target=lambda: results.append(build(corpus, Counted()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(results) == 8
    assert len(set(results)) == 1
    assert len(json.loads(cached(corpus).read_text())["files"]) == 3


def test_fingerprint_leaves_out_times(corpus: Path) -> None:
    """Copies made at different times are the same corpus; another name or hash is another one."""
    entries = build(corpus, Counted())
    before = fingerprint("test", entries)
    os.utime(corpus / "b", ns=(1, 1))
    assert fingerprint("test", build(corpus, Counted())) == before
    (corpus / "b").rename(corpus / "bb")
    assert fingerprint("test", build(corpus, Counted())) != before
    assert fingerprint("other", entries) != before


def test_unreadable_file_is_an_outage(corpus: Path) -> None:
    """With the name of the file."""
    with pytest.raises(SourceUnavailable, match="gone"):
        build_index("test", corpus, ["gone"], Counted(), None)


def test_cache_that_cannot_be_written_is_a_configuration_error(corpus: Path) -> None:
    """A file where the folder should be."""
    (corpus.parent / "cache").write_text("in the way")
    with pytest.raises(ConfigurationError, match="cannot be kept in"):
        build(corpus, Counted())
