"""What a submission may use. One sandbox holds one node, so each of these is per node."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from template.config import option
from template.errors import ConfigurationError

MEBIBYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of a submission's processes, one a node; at any of them the run ends with the name of the limit."""

    source: int = option("bytes of the submission", default=128 * 1024)
    memory: int = option("MiB of address space of a node's process, 600 of which torch takes", default=4096)
    scratch: int = option("MiB of files that it may write", default=16)
    threads: int = option("threads it may start; it computes with those of the run", default=64)
    files: int = option("files it may have open", default=256)
    output: int = option("bytes that it may print", default=64 * 1024)
    cpu: int = option("CPU-seconds of a node", default=3600)
    wall: float = option("seconds for the whole run", default=3600.0)
    start: float = option("seconds until a node's process is ready, before the submission's code begins", default=120.0)
    answer: float = option("seconds for the submission's code to load, and for each step", default=60.0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigurationError(f"limits.{field.name} must be positive; found {getattr(self, field.name)}")
