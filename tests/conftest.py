"""For all tests: settings of hypothesis, a collector that does not stop the process for long, and the root logger."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is no reason to fail, so no deadline an example
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


def pytest_collection_finish() -> None:
    """Keep what the imports of the whole suite left, a million objects, from being looked through again and again:
    each time that stops all threads for most of a second, servers and their clients alike."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """A program run inside a test sets up logging for the whole process, to a stream that ends with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
