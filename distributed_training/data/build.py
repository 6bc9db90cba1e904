"""The loader of a run, composed from its run spec."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distributed_training.data.jsonl import JsonlSource
from distributed_training.data.loader import Loader
from distributed_training.data.parquet import ParquetSource
from distributed_training.data.source import Source
from distributed_training.data.text import standard_library, text_folder
from distributed_training.data.tokenizer import load_tokenizer
from distributed_training.run import DataSpec, RunSpec
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


def build_source(spec: DataSpec, *, whole_characters: bool, cache: Path | None = None) -> Source:
    """The corpus that `spec` names. `cache` is a folder for its index; None reads the corpus at every start.

    Raises:
        ConfigurationError: no such folder, nothing in it, or files of another kind.
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


def build_loader(spec: RunSpec, *, cache: Path | None = None, telemetry: Telemetry | None = None) -> Loader:
    """The loader of the run `spec`. A relative `data.path` counts from the working directory.

    What was opened, and what was left out, goes to `telemetry` as `CorpusOpened`.

    Raises:
        ConfigurationError: corpus or tokenizer is not there or not of the right kind.
        CorpusTooSmall: fewer pages than are held out and one epoch can assign.
        SourceUnavailable: the corpus cannot be read.
    """
    tokenizer = load_tokenizer(spec.data.tokenizer)
    source = build_source(spec.data, whole_characters=tokenizer.whole_characters, cache=cache)
    loader = Loader(spec.data, spec.run_id, source, tokenizer)
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
