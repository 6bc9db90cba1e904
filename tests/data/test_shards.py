"""Token shards: what was written is what is read, from anywhere, and nothing else passes for it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.data.build_shards import BuildConfig, Builder, Page, Plan, plan_of, tokenized
from distributed_training.data.cache import BlockCache
from distributed_training.data.shards import MANIFEST, Manifest, ShardSource, read_manifest
from distributed_training.data.source import MemorySource
from distributed_training.data.store import FolderStore, Patience, Patient, Store
from distributed_training.data.tokenizer import ByteTokenizer, Tokenizer
from distributed_training.run import DataSpec
from distributed_training.services.retry import RetryPolicy, Transient
from template.errors import ConfigurationError, DataError, SourceUnavailable

HASTE = Patience(policy=RetryPolicy(tries=3, first_delay=0.01, longest_delay=0.02), seconds=20.0, rest=0.0)
DOCUMENTS = ["a" * (i * 7 % 31) + f"document {i}" for i in range(60)]
SPEC = DataSpec(
    source="text",
    path="memory",
    tokenizer="bytes",
    sequence_length=8,
    page_size=3,
    pages_per_micro_batch=1,
    pages_per_epoch=1,
    max_uids=1,
    held_out_pages=0,
)
CONFIG = BuildConfig(run=Path("unused"), to="unused", shard_tokens=256, block_tokens=64, workers=1)


def expected(documents: Sequence[str]) -> list[int]:
    return [token for text in documents for token in [*text.encode(), 256]]


class Build:
    """A build of documents into a folder, in this process."""

    def __init__(self, folder: Path, documents: Sequence[str] = DOCUMENTS, page_size: int = 3, **changes: Any) -> None:
        self.source = MemorySource(documents, page_size)
        self.tokenizer: Tokenizer = ByteTokenizer()
        spec = dataclasses.replace(SPEC, page_size=page_size)
        self.plan = plan_of(spec, dataclasses.replace(CONFIG, **changes), self.source, self.tokenizer)
        self.shelf = FolderStore(folder)
        self.told: list[int] = []

    def pages(self, first: int) -> Iterator[Page]:
        for page in range(first, self.source.pages):
            yield tokenized(self.source, self.tokenizer, page, self.plan.dtype)

    def run(self, pages: Callable[[int], Iterator[Page]] | None = None, plan: Plan | None = None) -> Manifest:
        builder = Builder(plan or self.plan, self.shelf, Patient(self.shelf, HASTE), self.told.append)
        return builder.build(pages or self.pages)


def opened(
    folder: Path, page_size: int = 20, store: Store | None = None, cache: BlockCache | None = None
) -> ShardSource:
    content = (folder / MANIFEST).read_bytes()
    return ShardSource(Patient(store or FolderStore(folder), HASTE), content, page_size, cache)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=1, max_size=40),
    st.integers(1, 50),
    st.integers(1, 7),
    st.sampled_from([1, 4, 16]),
)
@settings(max_examples=40, deadline=None)
def test_any_corpus_comes_back(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], page_size: int, read: int, block: int
) -> None:
    """Whatever the sizes of documents, pages, blocks and shards, all pages in order are all documents."""
    folder = tmp_path_factory.mktemp("shards")
    manifest = Build(folder, documents, read, shard_tokens=block * 4, block_tokens=block).run()
    source = opened(folder, page_size)
    found = [source.tokens(page) for page in range(source.pages)]
    assert np.concatenate(found).tolist() == expected(documents)
    assert {len(page) for page in found[:-1]} <= {page_size}
    assert (manifest.tokens, manifest.documents) == (len(expected(documents)), len(documents))


def test_files_are_what_the_form_says(tmp_path: Path) -> None:
    """Little-endian tokens end to end, whole shards, hashes of blocks and of shards: checked by hand."""
    manifest = Build(tmp_path).run()
    files = contents(tmp_path)
    names = [shard.name for shard in manifest.shards]
    assert sorted(files) == sorted([MANIFEST, *(f"{n}.bin" for n in names), *(f"{n}.sha256" for n in names)])
    data = b"".join(files[f"{name}.bin"] for name in names)
    assert np.frombuffer(data, "<u2").tolist() == expected(DOCUMENTS)
    assert [shard.tokens for shard in manifest.shards[:-1]] == [256] * (len(names) - 1)
    for shard in manifest.shards:
        raw, hashes = files[shard.data], files[shard.hashes]
        assert shard.sha256 == hashlib.sha256(raw).hexdigest()
        assert shard.blocks == hashlib.sha256(hashes).hexdigest()
        assert hashes == b"".join(hashlib.sha256(raw[i : i + 128]).digest() for i in range(0, len(raw), 128))
    facts = json.loads(files[MANIFEST])
    assert facts["tokenizer"] == {
        "name": "bytes",
        "fingerprint": ByteTokenizer.fingerprint,
        "vocab_size": 257,
        "end": 256,
    }
    assert facts["origin"]["fingerprint"] == MemorySource(DOCUMENTS, 3).fingerprint


def test_pages_of_a_build_do_not_show(tmp_path: Path) -> None:
    """However many documents are tokenized at a time, the shards are the same."""
    one, two = Build(tmp_path / "one", page_size=1).run(), Build(tmp_path / "two", page_size=17).run()
    assert one.shards == two.shards


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    """Ids beyond 65,535 come back as they were."""

    class Wide(ByteTokenizer):
        vocab_size, end = 70_000, 69_999

    build = Build(tmp_path)
    build.tokenizer = Wide()
    plan = plan_of(SPEC, CONFIG, build.source, build.tokenizer)
    build.plan = plan
    assert build.run().dtype == "uint32"
    wide = [69_999 if token == 256 else token for token in expected(DOCUMENTS)]
    source = opened(tmp_path)
    assert np.concatenate([source.tokens(page) for page in range(source.pages)]).tolist() == wide


@pytest.mark.parametrize("pages", range(0, 20, 3))
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path, pages: int) -> None:
    """Wherever it was killed: what is done is not done again, and every file is the same."""
    Build(tmp_path / "whole").run()
    build, asked = Build(tmp_path / "broken"), []

    def killed(first: int) -> Iterator[Page]:
        for number, page in enumerate(build.pages(first)):
            if number == pages:
                raise KeyboardInterrupt
            yield page

    with pytest.raises(KeyboardInterrupt):
        build.run(killed)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "broken").glob("*.bin")}

    def again(first: int) -> Iterator[Page]:
        asked.append(first)
        return build.pages(first)

    build.run(again)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert asked[0] >= pages - 6 or not before  # at most one shard's pages are read again
    assert build.told[-1] == build.source.pages


def test_a_finished_build_is_left_alone(tmp_path: Path) -> None:
    """A second call reads nothing of the corpus and says what is there."""
    manifest = Build(tmp_path).run()

    def never(first: int) -> Iterator[Page]:
        raise AssertionError("nothing is left to do")

    assert Build(tmp_path).run(never) == manifest


@pytest.mark.parametrize("finished", [True, False])
def test_another_build_is_refused(tmp_path: Path, finished: bool) -> None:
    """Another corpus or other sizes in the same place; the message says what differs."""
    build = Build(tmp_path)

    def killed(first: int) -> Iterator[Page]:
        yield from list(build.pages(first))[:15]
        raise KeyboardInterrupt

    if finished:
        build.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            build.run(killed)
    with pytest.raises(ConfigurationError, match="another block_tokens"):
        Build(tmp_path, block_tokens=32).run()
    with pytest.raises(ConfigurationError, match="another origin"):
        Build(tmp_path, [*DOCUMENTS, "more"]).run()


def test_nothing_can_be_opened_before_it_is_complete(tmp_path: Path) -> None:
    """The manifest comes last."""
    build = Build(tmp_path)

    def killed(first: int) -> Iterator[Page]:
        yield from build.pages(first)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.run(killed)
    assert MANIFEST not in contents(tmp_path)


class Watched:
    """A store that counts what is read, and spoils what it is told to."""

    def __init__(self, folder: Path) -> None:
        self._store = FolderStore(folder)
        self.where = "watched"
        self.read_bytes = 0
        self.spoil = 0
        self.spoiled_name = ".bin"

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self._given(name, self._store.read(name, start, stop))

    def tail(self, name: str, count: int) -> tuple[bytes, int]:
        raise Transient("never asked")

    def whole(self, name: str, limit: int) -> bytes:
        return self._given(name, self._store.whole(name, limit))

    def close(self) -> None:
        return

    def _given(self, name: str, data: bytes) -> bytes:
        self.read_bytes += len(data)
        if self.spoil and name.endswith(self.spoiled_name):
            self.spoil -= 1
            return data[:-1] + bytes([data[-1] ^ 1])
        return data


def test_a_page_costs_its_blocks(tmp_path: Path) -> None:
    """A page reads the blocks it touches and, once a shard, the list of hashes; a cache, not even these."""
    Build(tmp_path / "shards").run()
    store, cache = Watched(tmp_path / "shards"), BlockCache(tmp_path / "cache", 1 << 20)
    source = opened(tmp_path / "shards", 20, store, cache)
    source.tokens(6)  # tokens 120 to 139: blocks 1 and 2 of shard 0, which has 4
    assert store.read_bytes == 2 * 128 + 4 * 32
    source.tokens(7)  # tokens 140 to 159: block 2 again
    opened(tmp_path / "shards", 20, store, BlockCache(tmp_path / "cache", 1 << 20)).tokens(6)
    assert store.read_bytes == 2 * 128 + 4 * 32


@pytest.mark.parametrize("name", [".bin", ".sha256"])
def test_wrong_bytes_are_never_tokens(tmp_path: Path, name: str) -> None:
    """One bit of a block or of a list of hashes: read again, and an outage if it stays wrong."""
    Build(tmp_path).run()
    store = Watched(tmp_path)
    store.spoiled_name = name
    store.spoil = 2
    assert opened(tmp_path, 20, store).tokens(6).tolist() == expected(DOCUMENTS)[120:140]
    store.spoil = 3
    with pytest.raises(SourceUnavailable, match=r"3 times .* came with the hash"):
        opened(tmp_path, 20, store).tokens(6)


def test_threads_may_read_in_any_order(tmp_path: Path) -> None:
    """Four of them get what one gets in order, with a cache too small for all."""
    Build(tmp_path / "shards").run()
    source = opened(tmp_path / "shards", 13, cache=BlockCache(tmp_path / "cache", 1000))
    pages = random.Random(1).choices(range(source.pages), k=200)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(source.tokens, pages))
    tokens = expected(DOCUMENTS)
    assert [page.tolist() for page in found] == [tokens[p * 13 : p * 13 + 13] for p in pages]


def test_unknown_pages_are_refused(tmp_path: Path) -> None:
    """A page number that does not exist is an error."""
    Build(tmp_path).run()
    source = opened(tmp_path)
    for page in (-1, source.pages):
        with pytest.raises(DataError, match=f"no page {page}"):
            source.tokens(page)


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        facts = json.loads(content)
        change(facts)
        return json.dumps(facts).encode()

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: b"<html>",
        lambda content: content[:-5],
        lambda content: b"[]",
        changed(lambda f: f.update(format="dt-shards/9")),
        changed(lambda f: f.update(dtype="float32")),
        changed(lambda f: f.update(shards=[])),
        changed(lambda f: f.update(block_tokens=0)),
        changed(lambda f: f.update(block_tokens=100)),
        changed(lambda f: f.update(extra=1)),
        changed(lambda f: f["tokenizer"].update(vocab_size=70_000)),
        changed(lambda f: f["tokenizer"].update(end=257)),
        changed(lambda f: f["shards"][0].update(tokens=255)),
        changed(lambda f: f["shards"][0].update(name="../../etc/passwd")),
        changed(lambda f: f["shards"][0].update(sha256="no")),
        changed(lambda f: f["shards"].reverse()),
    ],
)
def test_bad_manifests_are_refused(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """Whatever contradicts the form is told, before anything is read by it."""
    Build(tmp_path).run()
    with pytest.raises(DataError, match=r"manifest.json"):
        read_manifest(spoil((tmp_path / MANIFEST).read_bytes()))
