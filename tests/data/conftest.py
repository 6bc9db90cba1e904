"""Documents, the layouts in which they lie on disk, and a small tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from corpora import Write, write_jsonl, write_parquet, write_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.servers.hub import HubServer


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


@pytest.fixture
def dataset_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub; the libraries, which read their environment when they are imported, are told of it."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import _detect_agent, _http

    with HubServer(tokens={}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH", "HF_XET_CACHE"):
            monkeypatch.setattr(constants, name, str(tmp_path / "hf" / name))
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "hf" / "harnesses.json"))
        monkeypatch.setattr(_detect_agent, "_registry", None)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(
            datasets.config, "HUB_DATASETS_URL", server.url + "/datasets/{repo_id}/resolve/{revision}/{path}"
        )
        for name in ("HF_CACHE_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "DOWNLOADED_DATASETS_PATH"):
            monkeypatch.setattr(datasets.config, name, str(tmp_path / "hf" / name))
        before = _http._GLOBAL_CLIENT_FACTORY
        yield server
        huggingface_hub.set_client_factory(before)  # closes the session, too
