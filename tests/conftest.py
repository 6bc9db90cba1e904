"""For all tests: settings of hypothesis, and a collector that does not stop the process for long."""

from __future__ import annotations

import gc

from hypothesis import HealthCheck, settings

# a busy machine is no reason to fail, so no deadline an example
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


def pytest_collection_finish() -> None:
    """Keep what the imports of the whole suite left, a million objects, from being looked through again and again:
    each time that stops all threads for most of a second, servers and their clients alike."""
    gc.collect()
    gc.freeze()
