"""What a loader reads: the tokens of any page, made from text here or read as they were made before."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from distributed_training.data.source import Corpus, Source
from distributed_training.data.tokenizer import Tokenizer, Tokens, Vocabulary


class TokenSource(Corpus, Protocol):
    """A corpus of tokens; the tokenizer is no part of the fingerprint."""

    @property
    def tokenizer(self) -> Vocabulary:
        """What made the tokens."""

    def tokens(self, page: int) -> Tokens:
        """The tokens of a page, an end token after each document that ends on it, int64 [n].

        Raises:
            DataError: no such page, or its content is not what the source promises.
            SourceUnavailable: it cannot be read now.
        """


class Tokenized:
    """A `TokenSource` that tokenizes a `Source` as it is read."""

    def __init__(self, source: Source, tokenizer: Tokenizer) -> None:
        self._source = source
        self.tokenizer = tokenizer
        self.pages, self.fingerprint, self.skipped = source.pages, source.fingerprint, source.skipped
        self._end = np.array([tokenizer.end], np.int64)

    def tokens(self, page: int) -> Tokens:
        pieces = self._source.read(page)
        parts: list[Tokens] = []
        for piece, tokens in zip(pieces, self.tokenizer.encode_many([p.text for p in pieces]), strict=True):
            parts += [tokens, self._end] if piece.ends else [tokens]
        return np.concatenate(parts)

    def close(self) -> None:
        self._source.close()
