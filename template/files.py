"""Files that are replaced whole: a kill leaves the old content or the new one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def replace_file(path: Path, content: bytes) -> None:
    """Write `content`, and its folder if it is not there. Raises OSError; the old content is still there then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def replace_json(path: Path, value: Any) -> None:
    """The same with JSON; each field of the outermost object on a line of its own."""
    fields = (f"{json.dumps(name)}: {json.dumps(part, allow_nan=False)}" for name, part in value.items())
    replace_file(path, ("{\n" + ",\n".join(fields) + "\n}\n").encode())
