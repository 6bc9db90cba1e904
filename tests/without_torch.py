"""A pytest plugin (`-p tests.without_torch`): runs as on a machine where the training libraries are not installed."""

from __future__ import annotations

import sys

for name in ("torch", "hivemind", "transformers", "datasets"):
    sys.modules[name] = None  # type: ignore[assignment]  # importing it now raises ImportError
