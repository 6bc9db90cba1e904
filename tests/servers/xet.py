"""The content-addressed store behind Xet uploads, as much of it as hf_xet 1.8 asks a server for.

A client cuts files into chunks, packs chunks into xorbs, and describes in a shard which chunks of which xorbs make up
a file. Formats as the client writes them (read off its traffic and its public sources): a xorb is a row of chunks, each
with a header of 8 bytes (version, packed size as u24, compression, unpacked size as u24); a shard is a header of 48
bytes, then for each file a row of 48 bytes, one such row a term, and optional rows for verification and sha256.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import lz4.frame

_ROW = 48
_END = b"\xff" * 32
_VERIFICATION, _METADATA = 1 << 31, 1 << 30  # flags of a file's row
_HEADER = 8
_PLANES = 2  # LZ4 over four byte planes


@dataclass(frozen=True)
class Term:
    """Chunks `first` to `end` of a xorb, `size` bytes in all."""

    xorb: str
    size: int
    first: int
    end: int


class Cas:
    """Xorbs by hash, and of each file its terms; `by_sha256` finds a file's own hash."""

    def __init__(self) -> None:
        self.xorbs: dict[str, bytes] = {}
        self.files: dict[str, list[Term]] = {}
        self.by_sha256: dict[str, str] = {}

    def add_shard(self, shard: bytes) -> None:
        """Take in what a client says of its files."""
        at = _ROW
        while at + _ROW <= len(shard) and shard[at : at + 32] != _END:
            file = _hash(shard[at : at + 32])
            flags, count = struct.unpack("<II", shard[at + 32 : at + 40])
            at += _ROW
            rows = [shard[at + _ROW * n : at + _ROW * (n + 1)] for n in range(count)]
            at += _ROW * count * (2 if flags & _VERIFICATION else 1)
            if flags & _METADATA:
                self.by_sha256[_hash(shard[at : at + 32])] = file
                at += _ROW
            self.files[file] = [_term(row) for row in rows]

    def content(self, sha256: str) -> bytes | None:
        """The bytes of a file, for who reads it over plain HTTP; None if it is not here."""
        if sha256 not in self.by_sha256:
            return None
        return b"".join(self._unpacked(term) for term in self.files[self.by_sha256[sha256]])

    def reconstruction(self, file: str, asked: str | None, base: str) -> dict[str, Any] | None:
        """Where a client finds the chunks of a file, or of the range of it that is asked for; None past its end."""
        terms = self.files[file]
        start, end = _range(asked, sum(term.size for term in terms))
        if start > end:
            return None
        chosen, offset, position = [], 0, 0
        for term in terms:
            if position + term.size > start and position <= end:
                offset = offset if chosen else start - position
                chosen.append(term)
            position += term.size
        fetch: dict[str, list[dict[str, Any]]] = {}
        for term in chosen:
            fetch.setdefault(term.xorb, []).append(self._location(term, base))
        described = [
            {"hash": term.xorb, "unpacked_length": term.size, "range": {"start": term.first, "end": term.end}}
            for term in chosen
        ]
        return {"offset_into_first_range": offset, "terms": described, "fetch_info": fetch}

    def _location(self, term: Term, base: str) -> dict[str, Any]:
        offsets = self._offsets(term.xorb)
        return {
            "range": {"start": term.first, "end": term.end},
            "url": f"{base}/xorbs/{term.xorb}",
            "url_range": {"start": offsets[term.first], "end": offsets[term.end] - 1},
        }

    def _offsets(self, xorb: str) -> list[int]:
        """Where each chunk begins, and where the last one ends."""
        content, at, found = self.xorbs[xorb], 0, [0]
        while at + _HEADER <= len(content) and content[at : at + 7] != b"XETBLOB":
            at += _HEADER + int.from_bytes(content[at + 1 : at + 4], "little")
            found.append(at)
        return found

    def _unpacked(self, term: Term) -> bytes:
        content, offsets = self.xorbs[term.xorb], self._offsets(term.xorb)
        return b"".join(_unpack(content[at:]) for at in offsets[term.first : term.end])


def _unpack(chunk: bytes) -> bytes:
    packed = chunk[_HEADER : _HEADER + int.from_bytes(chunk[1:4], "little")]
    if not chunk[4]:
        return packed
    plain: bytes = lz4.frame.decompress(packed)
    return _joined(plain) if chunk[4] == _PLANES else plain


def _joined(planes: bytes) -> bytes:
    """Four planes of every fourth byte, put together again."""
    joined, at = bytearray(len(planes)), 0
    for plane in range(4):
        size = (len(planes) - plane + 3) // 4
        joined[plane::4] = planes[at : at + size]
        at += size
    return bytes(joined)


def _hash(content: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", content))


def _term(row: bytes) -> Term:
    _, size, first, end = struct.unpack("<4I", row[32:48])
    return Term(_hash(row[:32]), size, first, end)


def _range(asked: str | None, size: int) -> tuple[int, int]:
    found = re.match(r"bytes=(\d+)-(\d*)", asked or "")
    if not found:
        return 0, size - 1
    return int(found[1]), min(int(found[2]), size - 1) if found[2] else size - 1
