"""Tokenizers: whole text in, whole text out, and none that is silently empty."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from distributed_training.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer, load_tokenizer
from template.errors import ConfigurationError, DataError

END = "<|endoftext|>"
TEXT = "The lazy dog: naïve 漢字 🙂\n\n  indented <|endoftext|> and on."


@pytest.fixture
def folder(bpe: Backend, tmp_path: Path) -> Path:
    """A folder as GPT-2's is published: vocab.json, merges.txt and tokenizer_config.json."""
    bpe.model.save(str(tmp_path))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": END, "bos_token": END, "unk_token": END}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture(params=["bytes", "bpe", "folder"])
def tokenizer(request: pytest.FixtureRequest, bpe: Backend, folder: Path) -> Tokenizer:
    if request.param == "bpe":
        return HuggingFaceTokenizer(Backend.from_str(bpe.to_str()), END, "bpe")
    return load_tokenizer("bytes" if request.param == "bytes" else str(folder))


def test_text_survives(tokenizer: Tokenizer) -> None:
    """Encoding loses nothing, adds nothing, and stays below the size of the vocabulary."""
    tokens = tokenizer.encode(TEXT.encode())
    assert tokens.dtype == np.int64
    assert tokenizer.decode(tokens) == TEXT
    assert 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size
    assert tokenizer.encode(b"").shape == (0,)


def test_no_text_can_spell_the_end_token(tokenizer: Tokenizer) -> None:
    """The end of a document comes from the corpus alone."""
    assert tokenizer.end < tokenizer.vocab_size
    assert tokenizer.end not in tokenizer.encode(TEXT.encode())


@given(st.binary(max_size=50))
def test_bytes_are_their_own_ids(text: bytes) -> None:
    """257 ids: the bytes and the end."""
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(text).tolist() == list(text)
    assert (tokenizer.vocab_size, tokenizer.end) == (257, 256)


def test_folder_gives_the_ids_of_the_library(bpe: Backend, folder: Path) -> None:
    """The published files and the trained tokenizer encode the same."""
    text = "the quick brown fox jumps over the lazy dog"
    expected = bpe.encode(text, add_special_tokens=False).ids
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.encode(text.encode()).tolist() == expected
    assert (tokenizer.vocab_size, tokenizer.end) == (bpe.get_vocab_size(), bpe.token_to_id(END))


def test_long_text_is_not_cut(bpe: Backend) -> None:
    """Not even by a tokenizer whose file asks for truncation and padding."""
    backend = Backend.from_str(bpe.to_str())
    backend.enable_truncation(8)
    backend.enable_padding(length=64)
    tokenizer = HuggingFaceTokenizer(backend, END, "cut")
    assert tokenizer.decode(tokenizer.encode(TEXT.encode() * 50)) == TEXT * 50


def test_fingerprint_tells_tokenizers_apart(bpe: Backend, folder: Path) -> None:
    """The same files give the same one in another process; another end token or vocabulary does not."""
    code = f"from distributed_training.data.tokenizer import load_tokenizer as t; print(t({str(folder)!r}).fingerprint)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    first = load_tokenizer(str(folder)).fingerprint
    assert other.stdout.strip() == first
    prints = [HuggingFaceTokenizer(Backend.from_str(bpe.to_str()), end, "").fingerprint for end in (END, "!")]
    assert len({first, *prints, ByteTokenizer.fingerprint}) == 4


def test_silently_empty_tokenizer_is_refused(tmp_path: Path) -> None:
    """A GPT-2 folder without its vocabulary loads without an error and encodes everything to nothing."""
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(ConfigurationError, match="turns text into nothing"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config.json": "{"},
        {"tokenizer.json": "no", "tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}'},
        {"tokenizer.json": "{}", "tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}'},
        {"vocab.json": "[]", "merges.txt": "x", "tokenizer_config.json": '{"tokenizer_class": "GPT2Tokenizer"}'},
    ],
)
def test_what_cannot_be_loaded_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    """Whatever is wrong with the files, the message names the tokenizer and the choices."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=r"data.tokenizer: .* cannot be loaded: give .* or 'bytes'"):
        load_tokenizer(str(tmp_path))


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    """At once, without asking the hub."""
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("end", [None, "<|nothing|>"])
def test_tokenizer_without_end_token_is_refused(bpe: Backend, end: str | None) -> None:
    """Documents must be told apart."""
    with pytest.raises(ConfigurationError, match="no end-of-text token"):
        HuggingFaceTokenizer(Backend.from_str(bpe.to_str()), end, "endless")


def test_bytes_that_are_not_text_are_refused(bpe: Backend) -> None:
    """A tokenizer of characters cannot read half a character."""
    with pytest.raises(DataError, match="not UTF-8"):
        HuggingFaceTokenizer(Backend.from_str(bpe.to_str()), END, "bpe").encode("é".encode()[:1])


def test_many_texts_are_as_one_by_one(bpe: Backend, documents: list[str]) -> None:
    """On whatever number of cores; text that is not UTF-8 is told among others, too."""
    texts = [document.encode() for document in documents]
    for tokenizer in (HuggingFaceTokenizer(Backend.from_str(bpe.to_str()), "<|endoftext|>", "bpe"), ByteTokenizer()):
        found = tokenizer.encode_many(texts)
        assert [tokens.tolist() for tokens in found] == [tokenizer.encode(text).tolist() for text in texts]
    expected = [bpe.encode(document).ids for document in documents]
    words = HuggingFaceTokenizer(Backend.from_str(bpe.to_str()), "<|endoftext|>", "bpe")
    assert [tokens.tolist() for tokens in words.encode_many(texts)] == expected
    with pytest.raises(DataError, match="not UTF-8"):
        words.encode_many([b"fine", b"\xff"])
