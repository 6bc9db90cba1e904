"""A corpus of tokens made beforehand: shards of fixed length, read by ranges, every block of them checked by its hash.

    manifest.json     what the shards hold, by which tokenizer; written last, so what can be opened is complete
    00000.bin         tokens, little-endian, `dtype` each, the documents end to end with an end token after each
    00000.sha256      the hash of each block of the shard, 32 bytes a block

The manifest holds the hash of each shard's list of hashes, and its own hash is the fingerprint of the corpus: a reader
who knows it can read any range from anybody and knows whether it is right. A page is `page_size` tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from distributed_training.data.cache import BlockCache
from distributed_training.data.source import Paging
from distributed_training.data.store import Patient
from distributed_training.data.tokenizer import Tokens
from template.errors import DataError

FORMAT = "dt-shards/1"
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1 << 26  # bytes
DIGEST = hashlib.sha256().digest_size
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_KEPT_HASHES = 256  # shards: 16 MB with the sizes that build_shards takes if not told otherwise
TYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class TokenizerIdentity:
    """A `Vocabulary` (tokenizer.py) that is known by name."""

    name: str
    fingerprint: str
    vocab_size: int
    end: int


@dataclass(frozen=True)
class Shard:
    """One shard. `sha256` is that of its bytes, `blocks` that of its list of hashes."""

    name: str
    tokens: int
    sha256: str
    blocks: str

    @property
    def data(self) -> str:
        return f"{self.name}.bin"

    @property
    def hashes(self) -> str:
        return f"{self.name}.sha256"


@dataclass(frozen=True)
class Origin:
    """What the shards were made of: `source` and `path` as in a run spec, its fingerprint, and its page size."""

    source: str
    path: str
    fingerprint: str
    page_size: int


@dataclass(frozen=True)
class Manifest:
    """What all shards hold. All but the last have `shard_tokens` tokens; blocks have `block_tokens`."""

    dtype: Literal["uint16", "uint32"]
    shard_tokens: int
    block_tokens: int
    documents: int
    tokenizer: TokenizerIdentity
    origin: Origin
    shards: tuple[Shard, ...]
    format: str = field(default=FORMAT)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def item(self) -> np.dtype[Any]:
        """How a token lies in a shard."""
        return TYPES[self.dtype]


def read_manifest(content: bytes) -> Manifest:
    """The manifest in a file.

    Raises:
        DataError: it is none, or contradicts itself.
    """
    try:
        facts = json.loads(content)
        shards = tuple(Shard(**item) for item in facts.pop("shards"))
        tokenizer, origin = TokenizerIdentity(**facts.pop("tokenizer")), Origin(**facts.pop("origin"))
        manifest = Manifest(**facts, shards=shards, tokenizer=tokenizer, origin=origin)
        problem = _problem(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{MANIFEST} is not a list of shards: {error!r}") from error
    if problem:
        raise DataError(f"{MANIFEST} cannot be used: {problem}")
    return manifest


def _problem(manifest: Manifest) -> str:
    """What contradicts the form; empty if nothing does."""
    numbers = (manifest.shard_tokens, manifest.block_tokens, manifest.documents, manifest.tokenizer.vocab_size)
    if manifest.format != FORMAT or manifest.dtype not in TYPES:
        return f"it is of the format {manifest.format!r} with tokens of {manifest.dtype!r}"
    if not manifest.shards or any(type(number) is not int or number < 1 for number in numbers):
        return "a number is missing or not positive"
    if manifest.shard_tokens % manifest.block_tokens:
        return "its shards are not whole blocks"
    if not 0 <= manifest.tokenizer.end < manifest.tokenizer.vocab_size <= 1 << 8 * manifest.item.itemsize:
        return f"{manifest.dtype} cannot hold its vocabulary"
    full, last = manifest.shards[:-1], manifest.shards[-1]
    if any(shard.tokens != manifest.shard_tokens for shard in full) or not 1 <= last.tokens <= manifest.shard_tokens:
        return "a shard has another length than it should"
    if not all(
        _NAME.fullmatch(s.name) and _HEX.fullmatch(s.sha256) and _HEX.fullmatch(s.blocks) for s in manifest.shards
    ):
        return "a shard's name or hash is none"
    return ""


def block_hashes(data: bytes, block_bytes: int) -> bytes:
    """The hashes of a shard's blocks, end to end."""
    view = memoryview(data)
    parts = (view[start : start + block_bytes] for start in range(0, len(data), block_bytes))
    return b"".join(hashlib.sha256(part).digest() for part in parts)


class ShardSource:
    """A `TokenSource` (tokens.py) over the shards of a manifest in `store`. `content`: the manifest's bytes.

    Raises:
        DataError: it is no manifest.
    """

    skipped = ()

    def __init__(self, store: Patient, content: bytes, page_size: int, cache: BlockCache | None) -> None:
        self._store = store
        self._manifest = read_manifest(content)
        self._paging = Paging([self._manifest.tokens], page_size)
        self.pages, self.fingerprint = self._paging.pages, hashlib.sha256(content).hexdigest()
        self._cache = cache
        self._hashes: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> TokenizerIdentity:
        return self._manifest.tokenizer

    @property
    def manifest(self) -> Manifest:
        """What was opened."""
        return self._manifest

    def tokens(self, page: int) -> Tokens:
        first, stop = self._paging.limits(page)
        parts = [self._part(shard, block, begin, end) for shard, block, begin, end in self._parts(first, stop)]
        return np.concatenate(parts).astype(np.int64)

    def close(self) -> None:
        self._store.close()

    def _parts(self, first: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """(shard, block, first, end) for each block that tokens first ... stop - 1 touch, counted within the block."""
        size = self._manifest.block_tokens
        while first < stop:
            shard, place = divmod(first, self._manifest.shard_tokens)
            block, begin = divmod(place, size)
            end = min(begin + stop - first, size)
            yield shard, block, begin, end
            first += end - begin

    def _part(self, shard: int, block: int, begin: int, end: int) -> np.ndarray[Any, Any]:
        return np.frombuffer(self._block(shard, block), self._manifest.item)[begin:end]

    def _block(self, number: int, block: int) -> bytes:
        shard, width = self._manifest.shards[number], self._manifest.item.itemsize
        start = block * self._manifest.block_tokens
        stop = min(start + self._manifest.block_tokens, shard.tokens)
        wanted = self._hashes_of(number)[block * DIGEST : (block + 1) * DIGEST]

        def fetch() -> bytes:
            return self._store.read(shard.data, start * width, stop * width, wanted)

        return self._cache.get(f"block/{wanted.hex()}", fetch) if self._cache else fetch()

    def _hashes_of(self, number: int) -> bytes:
        """The hashes of the blocks of a shard; those of the shards last used are kept in memory."""
        with self._lock:
            if number in self._hashes:
                self._hashes.move_to_end(number)
                return self._hashes[number]
        shard = self._manifest.shards[number]
        count = -(-shard.tokens // self._manifest.block_tokens)

        def fetch() -> bytes:
            return self._store.whole(shard.hashes, count * DIGEST, bytes.fromhex(shard.blocks))

        found = self._cache.get(f"hashes/{shard.blocks}", fetch) if self._cache else fetch()
        if len(found) != count * DIGEST:
            raise DataError(f"{shard.hashes} lists {len(found) // DIGEST} blocks, the shard has {count}")
        with self._lock:
            self._hashes[number] = found
            if len(self._hashes) > _KEPT_HASHES:
                self._hashes.popitem(last=False)
        return found
