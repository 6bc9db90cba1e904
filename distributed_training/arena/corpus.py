"""What the simulated nodes train on: real text as one row of tokens, and windows of it drawn from a seed.

Held-out pages are spread over the corpus (data/split.py), and the evaluation set is drawn from them alone. Batch k of a
node is a pure function of (seed, step, node): every strategy sees the same samples, and anyone can draw them again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distributed_training.arena.model import Batch
from distributed_training.arena.sizes import BYTES, Size
from distributed_training.data.source import Source
from distributed_training.data.split import Split
from distributed_training.data.text import standard_library, text_folder
from distributed_training.data.tokenizer import load_tokenizer
from template.errors import ConfigurationError, CorpusTooSmall

PAGE = 1 << 15  # bytes
HELD_OUT = 20  # one page in so many
_END = b"\0"  # between documents of bytes

Row = np.ndarray[tuple[int], np.dtype[np.uint16]]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens to train on and held-out tokens, uint16 [n] each. `fingerprint`: 64 hex digits over both."""

    train: Row
    held_out: Row
    fingerprint: str

    def batch(self, seed: int, step: int, node: int, size: Size) -> Batch:
        """The samples of a node in one step."""
        return _windows(self.train, f"train/{seed}/{step}/{node}", size.samples, size.block)

    def evaluation(self, seed: int, samples: int, size: Size) -> Batch:
        """The same `samples` for every strategy and step."""
        return _windows(self.held_out, f"evaluation/{seed}", samples, size.block)


def read_corpus(folder: Path | None, tokenizer: str, size: Size, page: int = PAGE) -> Corpus:
    """Text files below `folder`, or the standard library's sources; `tokenizer` "bytes" takes bytes as they are.

    Raises:
        ConfigurationError: no text there, or a tokenizer with more tokens than the model.
        CorpusTooSmall: fewer than 20 pages, or no room for a sample.
    """
    characters = tokenizer != "bytes"
    source = _opened(folder, page, characters)
    if source.pages < HELD_OUT:
        raise CorpusTooSmall(f"the corpus has {source.pages} pages of {page} bytes, and {HELD_OUT} are needed")
    split = Split(source.pages, source.pages // HELD_OUT)
    held_out = set(split.held_out_pages.tolist())
    rows: tuple[list[bytes], list[bytes]] = ([], [])
    for number in range(source.pages):
        rows[number in held_out].extend(piece.text + (_END if piece.ends else b"") for piece in source.read(number))
    train, rest = (_tokens(row, tokenizer, size.vocabulary) for row in rows)
    if min(train.size, rest.size) <= size.block:
        raise CorpusTooSmall(f"{train.size} and {rest.size} tokens have no room for a sample of {size.block}")
    digest = hashlib.sha256(train.tobytes() + b"/" + rest.tobytes()).hexdigest()
    return Corpus(train, rest, digest)


def _opened(folder: Path | None, page: int, characters: bool) -> Source:
    if folder is None:
        return standard_library(page, whole_characters=characters)
    return text_folder(folder, page, whole_characters=characters)


def _tokens(pieces: list[bytes], tokenizer: str, vocabulary: int) -> Row:
    if tokenizer == "bytes":
        if vocabulary < BYTES:
            raise ConfigurationError(f"bytes need a vocabulary of {BYTES}; the model has {vocabulary}")
        return np.frombuffer(b"".join(pieces), np.uint8).astype(np.uint16)
    loaded = load_tokenizer(tokenizer)
    if loaded.vocab_size > vocabulary:
        raise ConfigurationError(
            f"the tokenizer '{tokenizer}' has {loaded.vocab_size} tokens and the model {vocabulary}: "
            "take --tokenizer bytes, or a larger model"
        )
    texts = [piece.removesuffix(_END) for piece in pieces]
    encoded = zip(loaded.encode_many(texts), pieces, strict=True)
    rows = [np.append(ids, loaded.end) if piece.endswith(_END) else ids for ids, piece in encoded]
    return np.concatenate(rows).astype(np.uint16)


def _windows(tokens: Row, key: str, samples: int, block: int) -> Batch:
    digest = hashlib.sha256(f"arena/{key}".encode()).digest()
    raw = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(samples)
    starts = (raw % np.uint64(tokens.size - block)).astype(np.int64)
    windows = torch.from_numpy(tokens[starts[:, None] + np.arange(block + 1)].astype(np.int64))
    return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
