"""Text to token ids: bytes, or any fast Hugging Face tokenizer by name or folder. Remote code is never run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from template.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Tokens = npt.NDArray[np.int64]

_PROBE = "The quick brown fox jumps over the lazy dog, 0123456789."


class Vocabulary(Protocol):
    """What is known of ids without the tokenizer that made them: all are below `vocab_size`.

    `end` is the id that stands between documents; `fingerprint` (64 hex digits) is the same for two tokenizers only if
    they give the same ids.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...


class Tokenizer(Vocabulary, Protocol):
    """Turns a piece of text into ids. Thread-safe; the ids depend on the text alone.

    `whole_characters` tells that a piece must not cut a UTF-8 character.
    """

    @property
    def whole_characters(self) -> bool: ...

    def encode(self, text: bytes) -> Tokens:
        """Ids of UTF-8 `text`, int64 [n]; all of it, with no special tokens added.

        Raises:
            DataError: the text is not UTF-8 and the tokenizer needs characters.
        """

    def encode_many(self, texts: Sequence[bytes]) -> list[Tokens]:
        """The ids of each text, as `encode` gives them; on several cores where there are some.

        Raises:
            DataError: a text is not UTF-8 and the tokenizer needs characters.
        """

    def decode(self, tokens: Tokens) -> str:
        """The text of `tokens`; what is not text (end tokens, cut characters) may be left out or replaced."""


class ByteTokenizer:
    """Every byte is its own id; 256 ends a document."""

    vocab_size = 257
    end = 256
    whole_characters = False
    fingerprint = hashlib.sha256(b"dt-bytes/1").hexdigest()

    def encode(self, text: bytes) -> Tokens:
        return np.frombuffer(text, np.uint8).astype(np.int64)

    def encode_many(self, texts: Sequence[bytes]) -> list[Tokens]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Tokens) -> str:
        return bytes(int(token) for token in tokens if token < self.end).decode(errors="replace")


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library, whose `end` token is named.

    Text that looks like a special token is encoded as the text it is, so a document cannot end itself.

    Raises:
        ConfigurationError: it has no end token, or encodes text to nothing.
    """

    whole_characters = True

    def __init__(self, backend: Backend, end: str | None, name: str) -> None:
        backend.no_truncation()  # else a tokenizer.json can cut documents short
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        end_id = backend.token_to_id(end) if end is not None else None
        if end_id is None:
            raise ConfigurationError(f"data.tokenizer: '{name}' has no end-of-text token; take another tokenizer")
        self.end: int = end_id
        self.vocab_size = max(backend.get_vocab().values()) + 1
        self.fingerprint = hashlib.sha256(f"{end_id}\n{backend.to_str()}".encode()).hexdigest()
        if not self._works():
            raise ConfigurationError(
                f"data.tokenizer: '{name}' turns text into nothing, its vocabulary was not found; give the name of a "
                "complete tokenizer or a folder with tokenizer.json (or vocab.json and merges.txt)"
            )

    def _works(self) -> bool:
        """Transformers makes an empty tokenizer, without a word, from a folder or arguments that it does not know."""
        ids = self._backend.encode(_PROBE, add_special_tokens=False).ids
        known = set(ids) - {self.end}
        return len(known) > 1

    def encode(self, text: bytes) -> Tokens:
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[bytes]) -> list[Tokens]:
        try:
            characters = [text.decode() for text in texts]
        except UnicodeDecodeError as error:
            raise DataError(f"a piece of text is not UTF-8: {error}") from error
        found = self._backend.encode_batch_fast(characters, add_special_tokens=False)  # fast: without offsets
        return [np.array(encoding.ids, np.int64) for encoding in found]

    def decode(self, tokens: Tokens) -> str:
        return self._backend.decode([int(token) for token in tokens], skip_special_tokens=True)


def load_tokenizer(name: str) -> Tokenizer:
    """`bytes`, or the tokenizer that transformers finds under `name` (a folder or a model on the hub).

    Raises:
        ConfigurationError: there is none, it is not a fast one, or it does not work.
    """
    if name == "bytes":
        return ByteTokenizer()
    from transformers import AutoTokenizer  # heavy, and not needed for bytes

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # tokenizers raises the bare class for files it does not understand
        reason = " ".join(str(error).split())[:300]
        raise ConfigurationError(
            f"data.tokenizer: '{name}' cannot be loaded: give a folder with its files, the name of a tokenizer that "
            f"this machine can fetch, or 'bytes' ({reason})"
        ) from error
    if not tokenizer.is_fast:
        raise ConfigurationError(f"data.tokenizer: '{name}' has no fast version (tokenizer.json); take another one")
    return HuggingFaceTokenizer(tokenizer.backend_tokenizer, tokenizer.eos_token, name)
