"""Text files as a corpus: a folder of them, or the sources of the running Python's standard library.

The files, in order of their names, are one stream of units: every byte is a unit and so is the end of every file. A
page is `page_size` units of it. For a tokenizer that works on characters (`whole_characters`) a page limit that falls
into a UTF-8 character moves back to its first byte.
"""

from __future__ import annotations

import codecs
import hashlib
import logging
import sysconfig
from pathlib import Path, PurePosixPath

from distributed_training.data.index import FileEntry, Scan, build_index, fingerprint, list_files
from distributed_training.data.source import Paging, Piece
from template.errors import ConfigurationError, SourceUnavailable

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20  # bytes read at a time while a file is scanned
_LONGEST_CHARACTER = 4  # bytes
# Left out of the standard library: what is not part of it, its own tests (some are not text), and files that
# `make install` writes for one machine.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
_SKIPPED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")


def text_folder(folder: Path, page_size: int, *, whole_characters: bool, cache: Path | None = None) -> TextSource:
    """All files below `folder` that are not hidden.

    Raises:
        ConfigurationError: no folder, no files, or one that is not UTF-8.
        SourceUnavailable: a file cannot be read.
    """
    names = list_files(folder, "", "text files")
    entries = build_index("text", folder, names, _scan, cache)
    bad = [entry for entry in entries if entry.scan.problem]
    if bad:
        raise ConfigurationError(
            f"data.path: {len(bad)} of {len(entries)} files in {folder} are not UTF-8 text, the first is {bad[0].name} "
            f"({bad[0].scan.problem}): convert them or take them out"
        )
    return TextSource(folder, entries, page_size, whole_characters=whole_characters)


def standard_library(page_size: int, *, whole_characters: bool, cache: Path | None = None) -> TextSource:
    """The .py files of the running Python's standard library. Those that are not UTF-8 are in `skipped`.

    Raises:
        ConfigurationError: this Python has no source files.
        SourceUnavailable: a file cannot be read.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    names = [name for name in list_files(folder, ".py", "the standard library") if _belongs(PurePosixPath(name))]
    entries = build_index("stdlib", folder, names, _scan, cache)
    readable = tuple(entry for entry in entries if not entry.scan.problem)
    skipped = tuple(entry.name for entry in entries if entry.scan.problem)
    if skipped:
        logger.warning("not UTF-8 and left out of the corpus: %s", ", ".join(skipped))
    return TextSource(folder, readable, page_size, whole_characters=whole_characters, skipped=skipped)


def _belongs(name: PurePosixPath) -> bool:
    return not _SKIPPED_FOLDERS.intersection(name.parts[:-1]) and not name.name.startswith(_SKIPPED_FILES)


def _scan(path: Path) -> Scan:
    digest, decoder, problem = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), ""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            problem = problem or _undecodable(decoder, block)
    return Scan(digest.hexdigest(), problem=problem or _undecodable(decoder, b"", final=True))


def _undecodable(decoder: codecs.IncrementalDecoder, block: bytes, *, final: bool = False) -> str:
    try:
        decoder.decode(block, final)
    except UnicodeDecodeError as error:
        return error.reason
    return ""


class TextSource:
    """A `Source` over text files. `skipped` names files that were left out because they are not text."""

    def __init__(
        self,
        folder: Path,
        entries: tuple[FileEntry, ...],
        page_size: int,
        *,
        whole_characters: bool,
        skipped: tuple[str, ...] = (),
    ) -> None:
        if whole_characters and page_size < _LONGEST_CHARACTER:
            raise ConfigurationError(f"data.page_size must be at least {_LONGEST_CHARACTER} bytes; found {page_size}")
        self._folder = folder
        self._entries = entries
        self._paging = Paging([entry.size + 1 for entry in entries], page_size)
        self._whole_characters = whole_characters
        self.skipped = skipped
        self.pages, self.fingerprint = self._paging.pages, fingerprint("text", entries)

    def read(self, page: int) -> tuple[Piece, ...]:
        start, stop = self._paging.limits(page)
        if self._whole_characters:
            start, stop = self._character_start(start), self._character_start(stop)
        return tuple(self._piece(*part) for part in self._paging.parts(start, stop))

    def close(self) -> None:
        return

    def _piece(self, document: int, first: int, end: int) -> Piece:
        size = self._entries[document].size
        return Piece(self._bytes(document, first, min(end, size)), ends=end > size)

    def _character_start(self, unit: int) -> int:
        """`unit`, or the unit at which the UTF-8 character around it begins."""
        if unit == self._paging.units:
            return unit
        document, place = self._paging.part(unit)
        if place in (0, self._entries[document].size):
            return unit
        before = max(0, place + 1 - _LONGEST_CHARACTER)
        window = self._bytes(document, before, place + 1)
        back = next(i for i, byte in enumerate(reversed(window)) if byte & 0xC0 != 0x80)
        return unit - back

    def _bytes(self, document: int, first: int, end: int) -> bytes:
        path = self._folder / self._entries[document].name
        try:
            with path.open("rb") as file:
                file.seek(first)
                data = file.read(end - first)
        except OSError as error:
            raise SourceUnavailable(f"{path} cannot be read: {error}") from error
        if len(data) != end - first:
            raise SourceUnavailable(f"{path} is shorter than when it was indexed: restore it, or start anew")
        return data
