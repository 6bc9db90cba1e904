"""Inside the sandbox, before anything else: limits, a look around whether this is one, and the system call filter.

Whatever made the sandbox (backends.py), its promises are looked at from within each time, so that one which does not
hold on this machine is found by us and not by a stranger. Needs no package.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import resource
import socket
from collections.abc import Mapping
from pathlib import Path

from distributed_training.arena.sandbox.seccomp import install_here

_CAPABILITY_VERSION = 0x20080522
_ELSEWHERE = ((socket.AF_INET, ("192.0.2.1", 9)), (socket.AF_INET6, ("2001:db8::1", 9)))  # for documentation
FIRST_PROCESSES = 3  # in a process namespace of its own, a supervisor or two come first


class NotConfined(Exception):
    """A promise of the sandbox does not hold."""


def confine(limits: Mapping[str, int], canary: str) -> None:
    """Confine this process for good. `canary`: a file of the machine outside, and an abstract socket of its network.

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
        "it shares the machine's network": _connects(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + canary),
        "it has a network": any(_connects(family, socket.SOCK_DGRAM, address) for family, address in _ELSEWHERE),
        "no limit of threads holds for its user": _starts_threads_beyond_a_limit(),
        "it can write beside its scratch folder": any(
            os.access(path, os.W_OK) for path in ("/", "/usr/lib", "/project")
        ),
    }
    wrong = [what for what, holds in found.items() if holds]
    if wrong:
        raise NotConfined(", ".join(wrong))


def _connects(family: int, kind: int, address: str | tuple[str, int]) -> bool:
    """Whether there is such a socket, or for datagrams a way to it: none is sent."""
    try:
        with socket.socket(family, kind) as ours:
            ours.connect(address)
    except OSError:
        return False
    return True


def _has_capabilities() -> bool:
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    failed = ctypes.CDLL(None).capget(header, sets)
    return bool(failed) or any(sets)


def _starts_threads_beyond_a_limit() -> bool:
    """With a limit of one thread, which there is already; root has no such limit, whatever it is called inside."""
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, before[1]))
    try:
        _thread.start_new_thread(int, ())
    except RuntimeError:
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, before)
    return True


def _require_alone() -> None:
    try:
        child = os.fork()
    except OSError:
        return
    if child == 0:
        os._exit(0)
    raise NotConfined("it can start processes")
