"""Documents, the layouts in which they lie on disk, and a small tokenizer."""

from __future__ import annotations

import pytest
from corpora import Write, write_jsonl, write_parquet, write_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


@pytest.fixture(params=[write_text, write_parquet, write_jsonl], ids=["text", "parquet", "jsonl"])
def write(request: pytest.FixtureRequest) -> Write:
    """Writes documents into a folder, in one of the three layouts; its name is the source's."""
    chosen: Write = request.param
    return chosen


@pytest.fixture
def documents() -> list[str]:
    """Fifty documents: empty, ASCII, and with characters of two, three and four bytes."""
    alphabet = ["a", " ", "é", "漢", "🙂", "\n", "z"]
    return ["".join(alphabet[(i * j + j // 3) % 7] for j in range(i * 3)) for i in range(50)]


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    """A byte-level BPE tokenizer of at most 400 tokens, trained here; `<|endoftext|>` is its end token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the quick brown fox jumps over the lazy dog, 0123456789."] * 20, trainer)
    return backend
