"""What of this machine's files a sandbox is shown, to be read only: Python, its packages, and this project's code.

Nothing else is: neither home nor /tmp, no corpus and no key. The standard library's and the packages' sources are among
what is shown, so they are no corpus for a contest.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

PROJECT = Path(__file__).resolve().parents[3]
INSIDE = "/project"  # where the sandbox has the packages of this project
PACKAGES = ("distributed_training", "template")
ENTRY = f"{INSIDE}/distributed_training/arena/sandbox/inside.py"
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
# Libraries choose their kernels by these: with others a sandbox would not compute the same bits.
FACTS = (
    "/proc/cpuinfo",
    "/sys/devices/system/cpu/possible",
    "/sys/devices/system/cpu/present",
    "/sys/devices/system/cpu/kernel_max",
)
DEVICES = ("/dev/null", "/dev/urandom")
VARIABLES = {
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # the order of a set is the same in each run
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp",
}


@dataclass(frozen=True)
class Mount:
    """`source`, a file or folder here, as `target` there."""

    source: str
    target: str


@dataclass(frozen=True)
class Environment:
    """`mounts` in the order in which they are made, `links` (path, what it points to), the interpreter, and what a
    process's `sys.path` has besides the standard library."""

    mounts: tuple[Mount, ...]
    links: tuple[tuple[str, str], ...]
    python: str
    search: tuple[str, ...]

    def command(self, entry: str, *arguments: str) -> list[str]:
        """Run a file there, with no site packages of its own accord, no user's settings, and without writing caches.
        Of its variables only `VARIABLES` are there; unlike -I this lets the one for hashes count."""
        return [self.python, "-s", "-P", "-S", "-B", entry, *arguments]


@functools.lru_cache(maxsize=1)
def python_environment() -> Environment:
    """That of this interpreter."""
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    packages = _packages()
    library = [Path(sys.base_prefix).resolve() / name for name in ("lib", "lib64")]
    system = [Path(name) for name in _SYSTEM if Path(name).exists()]
    links = [path for path in system if path.is_symlink()]
    shown = _outermost([python, *packages, *library, *(path for path in system if path not in links)])
    mounts = [Mount(str(path), str(path)) for path in shown]
    mounts += [Mount(str(PROJECT / name), f"{INSIDE}/{name}") for name in PACKAGES]
    return Environment(
        mounts=tuple(mounts),
        links=tuple((str(path), str(path.readlink())) for path in links),
        python=str(python),
        search=(INSIDE, *map(str, packages)),
    )


def _packages() -> list[Path]:
    """The folders that packages lie in."""
    folders = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    folders += [Path(module.__path__[0]).parent for module in (torch, np)]
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Those that exist and lie in no other one, each once, parents first."""
    there = sorted({path.resolve() for path in paths if path.exists()})
    return [path for path in there if not any(other in path.parents for other in there)]
