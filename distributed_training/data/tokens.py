"""What a loader reads: the tokens of any page, made from text here or read as they were made before."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from distributed_training.data.source import Source
from distributed_training.data.tokenizer import Tokenizer, Tokens, Vocabulary


class TokenSource(Protocol):
    """A corpus of tokens cut into pages. Reading is thread-safe and touches nothing but what the page needs.

    `fingerprint` and `skipped` are as those of a `Source` (source.py).
    """

    @property
    def pages(self) -> int:
        """The number of pages; at least 1."""

    @property
    def fingerprint(self) -> str:
        """sha256, hex, of the corpus; the tokenizer is not part of it."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of files that were left out."""

    @property
    def tokenizer(self) -> Vocabulary:
        """What made the tokens."""

    def tokens(self, page: int) -> Tokens:
        """The tokens of a page, an end token after each document that ends on it, int64 [n].

        Raises:
            DataError: no such page, or its content is not what the source promises.
            SourceUnavailable: it cannot be read now.
        """

    def close(self) -> None:
        """Give back what is open; whoever waits for a page gets SourceUnavailable."""


class Tokenized:
    """A `TokenSource` that tokenizes a `Source` as it is read."""

    def __init__(self, source: Source, tokenizer: Tokenizer) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._end = np.array([tokenizer.end], np.int64)

    @property
    def pages(self) -> int:
        return self._source.pages

    @property
    def fingerprint(self) -> str:
        return self._source.fingerprint

    @property
    def skipped(self) -> tuple[str, ...]:
        return self._source.skipped

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def tokens(self, page: int) -> Tokens:
        pieces = self._source.read(page)
        parts: list[Tokens] = []
        for piece, tokens in zip(pieces, self._tokenizer.encode_many([p.text for p in pieces]), strict=True):
            parts += [tokens, self._end] if piece.ends else [tokens]
        return np.concatenate(parts)

    def close(self) -> None:
        self._source.close()
