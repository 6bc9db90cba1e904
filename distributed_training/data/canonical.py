"""What is known of a corpus as bytes that depend on nothing else, so that they can be hashed; and where it is kept."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from template.errors import ConfigurationError


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and without spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def save_index(path: Path, content: bytes) -> None:
    """Write an index of the corpus whole or not at all, so that neurons that start together cannot spoil it.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except OSError as error:
        raise ConfigurationError(f"the index of the corpus cannot be kept in {path.parent}: {error}") from error
