"""The loader of a run, from its run spec."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from corpora import Write
from tokenizers import Tokenizer as Backend

from distributed_training.data.build import build_loader
from distributed_training.run import RunSpec, load_run
from template.errors import ConfigurationError, CorpusTooSmall
from template.telemetry import MemorySink, Telemetry

NANO = Path(__file__).parents[2] / "runs" / "nano.toml"


def spec(**changes: Any) -> RunSpec:
    nano = load_run(NANO)
    return replace(nano, data=replace(nano.data, **changes))


def test_nano_run_has_four_samples_a_page() -> None:
    """With 512 bytes a page and 128 a sequence, a micro-batch of two pages has exactly eight samples."""
    loader = build_loader(load_run(NANO))
    batches = [loader.micro_batch(1, uid, number) for uid in range(16) for number in (0, 17, 63)]
    assert {batch.samples for batch in batches} == {8}
    assert {int((batch.labels == -100).sum()) for batch in batches} == {2}
    assert sum(batch.samples for batch in loader.held_out()) == pytest.approx(4 * 64, abs=3)


def test_every_source_can_be_built(write: Write, documents: list[str], tmp_path: Path, bpe: Backend) -> None:
    """With a tokenizer from a folder and a cache; what was opened is told."""
    bpe.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}'
    )
    source = write.__name__.removeprefix("write_")
    small = {"page_size": 5, "pages_per_micro_batch": 1, "pages_per_epoch": 2, "max_uids": 2, "held_out_pages": 3}
    run = spec(source=source, path=str(write(tmp_path / "corpus", documents)), tokenizer=str(tmp_path), **small)
    sink = MemorySink()
    loader = build_loader(run, cache=tmp_path / "cache", telemetry=Telemetry([sink]))
    assert loader.micro_batch(0, 1, 1).samples > 0
    assert loader.fingerprint == build_loader(run, cache=tmp_path / "cache").fingerprint
    (record,) = sink.records
    assert (record["kind"], record["source"], record["held_out_pages"]) == ("CorpusOpened", source, 3)
    assert record["train_pages"] + 3 == loader.source.pages


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    """Each with its own error."""
    with pytest.raises(ConfigurationError, match="there is no folder"):
        build_loader(spec(source="parquet", path=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigurationError, match=r"data.tokenizer: "):
        build_loader(spec(tokenizer=str(tmp_path / "nowhere")))
    with pytest.raises(CorpusTooSmall, match="16 uids x 65536 pages"):
        build_loader(spec(pages_per_epoch=65536))


def test_package_needs_no_torch() -> None:
    """Assignment, sources and loader run where torch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from distributed_training.data.build import build_loader\n"
        "from distributed_training.run import load_run\n"
        f"print(build_loader(load_run({str(NANO)!r})).micro_batch(0, 0, 0).samples)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == "8\n"
