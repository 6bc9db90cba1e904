"""Turns the corpus of a run into token shards (shards.py): scripts/build_shards --run runs/x.toml --to FOLDER

The target is a folder or s3://bucket/prefix, whose credentials come from the environment or a profile. Documents are
tokenized by several processes and written in the order of the corpus. After each shard what is done is noted in the
target itself (`progress.json`); a build that was killed goes on there, on whatever machine, and writes the same bytes.
The manifest comes last: what can be opened is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distributed_training.data.build import build_source
from distributed_training.data.canonical import canonical
from distributed_training.data.remote import CorpusConfig, open_shelf, patient
from distributed_training.data.shards import (
    DIGEST,
    MANIFEST,
    MANIFEST_LIMIT,
    TYPES,
    Manifest,
    Origin,
    Shard,
    TokenizerIdentity,
    block_hashes,
    read_manifest,
)
from distributed_training.data.source import Source
from distributed_training.data.store import Absent, Patient, Shelf
from distributed_training.data.tokenizer import Tokenizer, load_tokenizer
from distributed_training.run import DataSpec, load_run
from template.config import HelpRequested, option, parse
from template.console import print_error, print_text
from template.errors import ConfigurationError, DataError, SubnetError

PROGRESS = "progress.json"
_PAGE_ROWS = 1000
_PAGE_BYTES = 1 << 20
_AHEAD = 4  # pages a process


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What to build, and where. Restarting with other values than a build was begun with is refused."""

    run: Path = option("run file whose [data] section names the corpus and the tokenizer")
    to: str = option("folder or s3://bucket/prefix that the shards are written to")
    shard_tokens: int = option("tokens of a shard", default=1 << 26)
    block_tokens: int = option("tokens of a block, the least that is read", default=1 << 15)
    workers: int = option("processes that tokenize; default: one a CPU", default=os.cpu_count() or 1)
    cache: Path | None = option("folder for the index of the corpus", default=None)
    endpoint: str | None = option("address of the S3 API of --to, e.g. of R2; default: Amazon's", default=None)

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or self.shard_tokens < 1 or self.shard_tokens % self.block_tokens:
            raise ConfigurationError("--shard_tokens must be a multiple of --block_tokens")
        if self.workers < 1:
            raise ConfigurationError("--workers must be at least 1")


@dataclass(frozen=True)
class Page:
    """The tokens of one page of the corpus, in the type they are written in, and the documents that end on it."""

    data: bytes
    documents: int


@dataclass(frozen=True)
class Done:
    """How far a build is: whole shards, and where the next one begins: `skip` tokens into page `page`."""

    shards: tuple[Shard, ...] = ()
    page: int = 0
    skip: int = 0
    documents: int = 0  # of the pages before `page`


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a build."""

    dtype: Literal["uint16", "uint32"]
    shard_tokens: int
    block_tokens: int
    tokenizer: TokenizerIdentity
    origin: Origin

    @property
    def width(self) -> int:
        """Bytes of a token."""
        return int(TYPES[self.dtype].itemsize)

    def manifest(self, shards: tuple[Shard, ...], documents: int) -> Manifest:
        """What is written when all is done."""
        return Manifest(
            dtype=self.dtype,
            shard_tokens=self.shard_tokens,
            block_tokens=self.block_tokens,
            documents=documents,
            tokenizer=self.tokenizer,
            origin=self.origin,
            shards=shards,
        )


def plan_of(spec: DataSpec, config: BuildConfig, source: Source, tokenizer: Tokenizer) -> Plan:
    """The plan of a build of `source`, which was opened with `spec`."""
    identity = TokenizerIdentity(spec.tokenizer, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.end)
    dtype: Literal["uint16", "uint32"] = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    origin = Origin(spec.source, spec.path, source.fingerprint, spec.page_size)
    return Plan(dtype, config.shard_tokens, config.block_tokens, identity, origin)


def tokenized(source: Source, tokenizer: Tokenizer, page: int, dtype: str) -> Page:
    """One page as it is written."""
    pieces, end = source.read(page), np.array([tokenizer.end], TYPES[dtype]).tobytes()
    parts: list[bytes] = []
    for piece, tokens in zip(pieces, tokenizer.encode_many([p.text for p in pieces]), strict=True):
        parts += [tokens.astype(TYPES[dtype]).tobytes(), end if piece.ends else b""]
    return Page(b"".join(parts), sum(piece.ends for piece in pieces))


class Builder:
    """Writes shards to `shelf`. `pages(n)` gives the pages of the corpus from page n on."""

    def __init__(self, plan: Plan, shelf: Shelf, attempt: Patient, told: Callable[[int], None]) -> None:
        self._plan = plan
        self._shelf = shelf
        self._attempt = attempt
        self._told = told

    def build(self, pages: Callable[[int], Iterator[Page]]) -> Manifest:
        """Go on where a build of the same plan stopped, to the end.

        Raises:
            ConfigurationError: the target holds a build of another plan.
            DataError: the corpus holds no tokens.
            SourceUnavailable: corpus or target cannot be reached; what is done stays.
        """
        finished = self._finished()
        if finished is not None:
            return finished
        done = self._progress()
        self._told(done.page)
        done, rest = self._whole_shards(done, pages)
        shards = done.shards
        if rest:
            shards = (*shards, self._write(len(shards), rest))
        if not shards:
            raise DataError("the corpus holds no tokens")
        manifest = self._plan.manifest(shards, done.documents)
        self._put(MANIFEST, canonical(dataclasses.asdict(manifest)))
        self._attempt.attempt(lambda: self._shelf.remove(PROGRESS))
        return manifest

    def _whole_shards(self, done: Done, pages: Callable[[int], Iterator[Page]]) -> tuple[Done, bytes]:
        """Write every shard that is full; what is left over in the end."""
        size, width = self._plan.shard_tokens * self._plan.width, self._plan.width
        held, documents, shards = bytearray(), done.documents, list(done.shards)
        skip = done.skip * width
        for number, page in enumerate(pages(done.page), start=done.page):
            data, skip = page.data[skip:], 0
            held += data
            while len(held) >= size:
                shards.append(self._write(len(shards), bytes(held[:size])))
                del held[:size]
                # the rest of what is held is the end of this page: the next shard begins there
                begin = (len(page.data) - len(held)) // width
                self._note(Done(tuple(shards), number, begin, documents))
            documents += page.documents
            self._told(number + 1)
        return Done(tuple(shards), 0, 0, documents), bytes(held)

    def _write(self, number: int, data: bytes) -> Shard:
        hashes = block_hashes(data, self._plan.block_tokens * self._plan.width)
        shard = Shard(
            name=f"{number:05d}",
            tokens=len(data) // self._plan.width,
            sha256=hashlib.sha256(data).hexdigest(),
            blocks=hashlib.sha256(hashes).hexdigest(),
        )
        assert len(hashes) % DIGEST == 0
        self._put(shard.data, data)
        self._put(shard.hashes, hashes)
        return shard

    def _put(self, name: str, content: bytes) -> None:
        self._attempt.attempt(lambda: self._shelf.put(name, content))

    def _note(self, done: Done) -> None:
        self._put(PROGRESS, canonical({"plan": dataclasses.asdict(self._plan), "done": dataclasses.asdict(done)}))

    def _progress(self) -> Done:
        """What an earlier build noted."""
        content = self._small(PROGRESS)
        if content is None:
            return Done()
        try:
            facts = json.loads(content)
            shards = tuple(Shard(**item) for item in facts["done"].pop("shards"))
            plan, done = facts["plan"], Done(shards=shards, **facts["done"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{PROGRESS} in {self._shelf.where} cannot be read ({error!r}): take it away") from error
        self._require_same(plan)
        return done

    def _finished(self) -> Manifest | None:
        content = self._small(MANIFEST)
        if content is None:
            return None
        manifest = read_manifest(content)
        plan = {field.name: getattr(manifest, field.name) for field in dataclasses.fields(Plan)}
        self._require_same(dataclasses.asdict(Plan(**plan)))
        return manifest

    def _require_same(self, found: dict[str, Any]) -> None:
        wanted = dataclasses.asdict(self._plan)
        if found != wanted:
            other = [name for name in wanted if found.get(name) != wanted[name]]
            raise ConfigurationError(
                f"--to {self._shelf.where} holds shards with another {', '.join(other)}: choose another place"
            )

    def _small(self, name: str) -> bytes | None:
        try:
            return self._attempt.whole(name, MANIFEST_LIMIT)
        except Absent:
            return None


# --- the processes that tokenize

_opened: tuple[Source, Tokenizer, str] | None = None  # of this process, set once when it starts


def _open(spec: DataSpec, cache: Path | None, dtype: str) -> None:
    global _opened  # a process pool's initializer has no other place to leave what it opened
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a CPU already
    tokenizer = load_tokenizer(spec.tokenizer)
    source = build_source(spec, whole_characters=tokenizer.whole_characters, cache=cache, config=_uncached())
    _opened = (source, tokenizer, dtype)


def _page(number: int) -> Page:
    assert _opened is not None, "set by the initializer"
    source, tokenizer, dtype = _opened
    return tokenized(source, tokenizer, number, dtype)


@contextmanager
def _processes(spec: DataSpec, config: BuildConfig, plan: Plan, last: int) -> Iterator[Callable[[int], Iterator[Page]]]:
    """Pages in order, tokenized by several processes a few pages ahead."""
    arguments = (spec, config.cache, plan.dtype)
    with ProcessPoolExecutor(config.workers, get_context("spawn"), _open, arguments) as pool:

        def pages(first: int) -> Iterator[Page]:
            ahead: deque[Future[Page]] = deque()
            for number in range(first, last):
                ahead.append(pool.submit(_page, number))
                if len(ahead) > config.workers * _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

        try:
            yield pages
        finally:
            pool.shutdown(cancel_futures=True)


# --- the command


def _uncached(endpoint: str | None = None) -> CorpusConfig:
    return CorpusConfig(cache_mb=0, s3_endpoint=endpoint)  # every page is read once


def run(config: BuildConfig, progress: Progress) -> Manifest:
    """Build what `config` says, telling `progress`.

    Raises:
        SubnetError: as `Builder.build`, or the corpus cannot be opened.
    """
    spec = _with_large_pages(load_run(config.run).data)
    tokenizer = load_tokenizer(spec.tokenizer)
    source = build_source(spec, whole_characters=tokenizer.whole_characters, cache=config.cache, config=_uncached())
    plan = plan_of(spec, config, source, tokenizer)
    shelf = open_shelf(config.to, _uncached(config.endpoint))
    task = progress.add_task(f"{spec.source} -> {shelf.where}", total=source.pages)
    patience = patient(shelf, _uncached(), None)
    builder = Builder(plan, shelf, patience, lambda pages: progress.update(task, completed=pages))
    try:
        with _processes(spec, config, plan, source.pages) as pages:
            return builder.build(pages)
    finally:
        source.close()
        patience.close()


def _with_large_pages(spec: DataSpec) -> DataSpec:
    """Pages of the build, not of the run: documents are cut as seldom as can be."""
    if spec.source == "shards":
        raise ConfigurationError("data.source of the run file must be a corpus of text; it is 'shards' already")
    size = _PAGE_BYTES if spec.source in ("stdlib", "text") else _PAGE_ROWS
    return dataclasses.replace(spec, page_size=size)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("pages"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn())


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status."""
    try:
        config: BuildConfig = parse(
            {"": BuildConfig}, argv, prog="scripts/build_shards", description="Turn a corpus into token shards."
        )[""]
        with _bar() as progress:
            manifest = run(config, progress)
    except HelpRequested as request:
        print_text(str(request))
        return 0
    except SubnetError as error:
        print_error(str(error))
        return 1
    fingerprint = hashlib.sha256(canonical(dataclasses.asdict(manifest))).hexdigest()
    print_text(
        f"{manifest.tokens:,} tokens of {manifest.documents:,} documents in {len(manifest.shards)} shards\n"
        "[data] of a run that reads them:\n"
        f'  source = "shards"\n  path = "{config.to}"\n  tokenizer = "{manifest.tokenizer.name}"\n'
        f'  fingerprint = "{fingerprint}"'
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
