"""One corpus for all tests, and one thread for torch."""

from __future__ import annotations

import pytest
import torch

from distributed_training.arena.corpus import Corpus
from tests.arena import small


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small.corpus(tmp_path_factory.mktemp("text"))
