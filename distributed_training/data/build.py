"""The loader of a run, composed from its run spec."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from distributed_training.data.cache import BlockCache
from distributed_training.data.dataset import INDEX_LIMIT, Dataset, DatasetSource, files_address, find_index
from distributed_training.data.http import HttpStore
from distributed_training.data.jsonl import JsonlSource
from distributed_training.data.loader import Loader
from distributed_training.data.parquet import ParquetSource
from distributed_training.data.remote import CorpusConfig, open_address, open_cache, patient, read_file
from distributed_training.data.shards import MANIFEST, MANIFEST_LIMIT, ShardSource
from distributed_training.data.source import Source
from distributed_training.data.store import Patient
from distributed_training.data.text import standard_library, text_folder
from distributed_training.data.tokenizer import load_tokenizer
from distributed_training.data.tokens import Tokenized, TokenSource
from distributed_training.run import DataSpec, RunSpec
from template.config import Secret
from template.errors import ConfigurationError, DataError, SubnetError
from template.telemetry import Event, Telemetry


@dataclass(frozen=True, kw_only=True)
class CorpusOpened(Event):
    """What a neuron trains on. `skipped` names files that were left out because they are not text."""

    source: str
    tokenizer: str
    fingerprint: str
    train_pages: int
    held_out_pages: int
    skipped: tuple[str, ...]


def build_source(
    spec: DataSpec,
    *,
    whole_characters: bool,
    cache: Path | None = None,
    config: CorpusConfig | None = None,
    token: Secret | None = None,
    telemetry: Telemetry | None = None,
) -> Source:
    """The corpus of text that `spec` names. `cache` is a folder for its index and for what is read from afar; None
    reads the corpus at every start. `token`: for a dataset that is not public.

    Raises:
        ConfigurationError: no such folder or dataset, nothing in it, or files of another kind.
        DataError: the corpus is not the one that the run names.
        SourceUnavailable: it cannot be read.
    """
    folder = Path(spec.path).expanduser()
    match spec.source:
        case "stdlib":
            return standard_library(spec.page_size, whole_characters=whole_characters, cache=cache)
        case "text":
            return text_folder(folder, spec.page_size, whole_characters=whole_characters, cache=cache)
        case "parquet":
            return ParquetSource(folder, spec.page_size, cache=cache)
        case "jsonl":
            return JsonlSource(folder, spec.page_size, cache=cache)
        case "huggingface":
            return _open_dataset(spec, cache, config or CorpusConfig(), token, telemetry)
        case "shards":
            raise ConfigurationError("data.source 'shards' holds tokens, not text")


def _open_dataset(
    spec: DataSpec, cache: Path | None, config: CorpusConfig, token: Secret | None, telemetry: Telemetry | None
) -> DatasetSource:
    dataset = Dataset(spec.path, spec.configuration, spec.split, spec.revision, spec.column)
    address = config.index
    ready = (lambda: read_file(address, INDEX_LIMIT, config, telemetry)) if address else None
    store = patient(HttpStore(files_address(dataset), timeouts=config.timeouts, token=token), config, telemetry)
    try:
        index = find_index(dataset, store, cache, ready, token)
    except SubnetError:
        store.close()
        raise
    return DatasetSource(store, index, spec.page_size, open_cache(cache, config))


def build_tokens(
    spec: DataSpec,
    *,
    cache: Path | None = None,
    config: CorpusConfig | None = None,
    token: Secret | None = None,
    telemetry: Telemetry | None = None,
) -> TokenSource:
    """The tokens of the corpus that `spec` names; arguments and errors as those of `build_source`."""
    if spec.source == "shards":
        return _open_shards(spec, cache, config or CorpusConfig(), telemetry)
    tokenizer = load_tokenizer(spec.tokenizer)
    source = build_source(
        spec,
        whole_characters=tokenizer.whole_characters,
        cache=cache,
        config=config,
        token=token,
        telemetry=telemetry,
    )
    return Tokenized(source, tokenizer)


def _open_shards(spec: DataSpec, cache: Path | None, config: CorpusConfig, telemetry: Telemetry | None) -> ShardSource:
    store, blocks = patient(open_address(spec.path, config), config, telemetry), open_cache(cache, config)
    try:
        source = ShardSource(store, _manifest(spec, store, blocks), spec.page_size, blocks)
        if source.tokenizer.name != spec.tokenizer:
            raise ConfigurationError(
                f"data.tokenizer: the shards in {spec.path} are of the tokenizer '{source.tokenizer.name}', "
                f"not '{spec.tokenizer}'"
            )
    except SubnetError:
        store.close()
        raise
    return source


def _manifest(spec: DataSpec, store: Patient, cache: BlockCache | None) -> bytes:
    """The manifest's bytes; one that the run pins may come from the cache, so that a start needs nobody."""
    if not spec.fingerprint:
        return store.whole(MANIFEST, MANIFEST_LIMIT)

    def fetch() -> bytes:
        content = store.whole(MANIFEST, MANIFEST_LIMIT)
        require_pinned(spec, hashlib.sha256(content).hexdigest())
        return content

    return cache.get(f"manifest/{spec.fingerprint}", fetch) if cache else fetch()


def build_loader(
    spec: RunSpec,
    *,
    cache: Path | None = None,
    config: CorpusConfig | None = None,
    token: Secret | None = None,
    telemetry: Telemetry | None = None,
) -> Loader:
    """The loader of the run `spec`. A relative `data.path` counts from the working directory.

    What was opened, and what was left out, goes to `telemetry` as `CorpusOpened`.

    Raises:
        ConfigurationError: corpus or tokenizer is not there or not of the right kind.
        CorpusTooSmall: fewer pages than are held out and one epoch can assign.
        DataError: the corpus is not the one that the run names.
        SourceUnavailable: the corpus cannot be read.
    """
    source = build_tokens(spec.data, cache=cache, config=config, token=token, telemetry=telemetry)
    try:
        require_pinned(spec.data, source.fingerprint)
        loader = Loader(spec.data, spec.run_id, source)
    except DataError:
        source.close()
        raise
    if telemetry:
        telemetry.emit(
            CorpusOpened(
                source=spec.data.source,
                tokenizer=spec.data.tokenizer,
                fingerprint=loader.fingerprint,
                train_pages=loader.split.train_pages,
                held_out_pages=loader.split.held_out,
                skipped=source.skipped,
            )
        )
    return loader


def require_pinned(spec: DataSpec, found: str) -> None:
    """Refuse a corpus that is not the one the run names.

    Raises:
        DataError: with both fingerprints.
    """
    if spec.fingerprint and spec.fingerprint != found:
        raise DataError(
            f"the corpus at {spec.path} has the fingerprint {found}, the run's data.fingerprint is {spec.fingerprint}: "
            "this is another corpus, or a changed one"
        )
