"""The sandbox that works here, or why none does."""

from __future__ import annotations

import pytest

from distributed_training.arena.sandbox.backends import Backend, find_backend
from template.errors import SandboxUnavailable


@pytest.fixture(scope="session")
def backend() -> Backend:
    try:
        return find_backend()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
