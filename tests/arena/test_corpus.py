"""Text, what is held out of it, and windows that anyone can draw again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed_training.arena.corpus import Corpus, read_corpus
from template.errors import ConfigurationError, CorpusTooSmall
from tests.arena.small import PAGE, SIZE, write_text


def test_every_byte_is_in_one_row(corpus: Corpus, tmp_path: Path) -> None:
    """Documents end with a zero byte, one page in twenty is held out, and nothing is lost."""
    write_text(tmp_path)
    text = b"".join(path.read_bytes() + b"\0" for path in sorted(tmp_path.iterdir()))
    pages = [text[i : i + PAGE] for i in range(0, len(text), PAGE)]
    row = corpus.held_out.astype(np.uint8).tobytes()
    held_out = [page for page in pages if page in row]
    assert len(held_out) == len(pages) // 20
    rest = b"".join(page for page in pages if page not in held_out)
    assert corpus.train.astype(np.uint8).tobytes() == rest


def test_windows_are_functions_of_seed_step_and_node(corpus: Corpus) -> None:
    """Labels are the next tokens of the row; another step, node or seed has other windows."""
    batch = corpus.batch(1, 2, 3, SIZE)
    assert batch.inputs.shape == batch.labels.shape == (SIZE.samples, SIZE.block)
    assert torch.equal(batch.inputs[:, 1:], batch.labels[:, :-1])
    assert torch.equal(batch.inputs, corpus.batch(1, 2, 3, SIZE).inputs)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(batch.inputs, corpus.batch(*other, SIZE).inputs)
    row = corpus.train.tobytes()
    assert all(window.numpy().astype(np.uint16).tobytes() in row for window in batch.inputs)


def test_the_evaluation_set_is_held_out(corpus: Corpus) -> None:
    """Its windows are of the held-out row."""
    row = corpus.held_out.tobytes()
    batch = corpus.evaluation(1, 9, SIZE)
    assert len(batch.inputs) == 9
    assert all(window.numpy().astype(np.uint16).tobytes() in row for window in batch.inputs)


def test_the_fingerprint_is_of_the_text(corpus: Corpus, tmp_path: Path) -> None:
    """The same files, the same 64 digits; one letter more, others."""
    write_text(tmp_path)
    assert read_corpus(tmp_path, "bytes", SIZE, PAGE).fingerprint == corpus.fingerprint
    (tmp_path / "a.txt").write_text((tmp_path / "a.txt").read_text() + "x")
    assert read_corpus(tmp_path, "bytes", SIZE, PAGE).fingerprint != corpus.fingerprint


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    """Fewer pages than one can be held out of, or no room for one sample; bytes that the model has no place for."""
    write_text(tmp_path)
    with pytest.raises(CorpusTooSmall, match="20 are needed"):
        read_corpus(tmp_path, "bytes", SIZE, 4096)
    with pytest.raises(CorpusTooSmall, match="no room for a sample"):
        read_corpus(tmp_path, "bytes", dataclasses.replace(SIZE, block=4000), PAGE)
    with pytest.raises(ConfigurationError, match="vocabulary of 256"):
        read_corpus(tmp_path, "bytes", dataclasses.replace(SIZE, vocabulary=100), PAGE)
