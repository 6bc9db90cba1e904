"""Inside the sandbox, before anything else: limits, a look around whether this is one, and the system call filter.

Whatever made the sandbox (backends.py), its promises are looked at from within each time, so that one which does not
hold on this machine is found by us and not by a stranger. Needs no package.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
from collections.abc import Mapping
from pathlib import Path

from distributed_training.arena.sandbox.seccomp import install_here

_CAPABILITY_VERSION = 0x20080522
FIRST_PROCESSES = 3  # in a process namespace of its own, a supervisor or two come first


class NotConfined(Exception):
    """A promise of the sandbox does not hold."""


def confine(limits: Mapping[str, int], canary: str) -> None:
    """Confine this process for good. `canary`: a file of the machine outside.

    Raises:
        NotConfined: something could be reached that must not be.
        NoFilter: the kernel takes no filter.
        OSError: a limit cannot be set.
    """
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    require_confined(canary)
    install_here()
    _require_alone()


def require_confined(canary: str) -> None:
    """Look around; raises NotConfined with all that is wrong."""
    found = {
        "it runs as root": 0 in (os.getuid(), os.geteuid(), os.getgid(), os.getegid()),
        "it has capabilities": _has_capabilities(),
        "it sees the machine's files": Path(canary).exists(),
        "it sees the machine's processes": os.getpid() > FIRST_PROCESSES,
        "it has a network": {name for _, name in socket.if_nameindex()} > {"lo"},
        "it can write beside its scratch folder": any(
            os.access(path, os.W_OK) for path in ("/", "/usr/lib", "/project")
        ),
    }
    wrong = [what for what, holds in found.items() if holds]
    if wrong:
        raise NotConfined(", ".join(wrong))


def _has_capabilities() -> bool:
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    failed = ctypes.CDLL(None).capget(header, sets)
    return bool(failed) or any(sets)


def _require_alone() -> None:
    try:
        child = os.fork()
    except OSError:
        return
    if child == 0:
        os._exit(0)
    raise NotConfined("it can start processes")
