"""A seccomp filter as a BPF program, and how this process puts it over itself: for good, and for all its threads.

`program` is pure: an allow-list (syscalls.py) for one architecture. Threads may be started, processes may not; of
fcntl, ioctl, prctl and futex only what reads or sets things of the process itself. Everything else fails with ENOSYS,
at which libraries take their older ways, and a call by another architecture's numbers ends the process. See seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distributed_training.arena.sandbox.syscalls import ALLOWED, FILTERED

_AUDIT_ARCH: Mapping[str, tuple[int, int]] = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, id
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets into struct seccomp_data
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_CLONE_THREAD, _NEW_NAMESPACES = 0x00010000, 0x7E020080  # CLONE_NEW*: NS, CGROUP, UTS, IPC, USER, PID, NET and TIME
_FUTEX_PRIVATE = 128

# dup, flags, status flags, dup with close-on-exec, size of a pipe; no locks, no leases, no larger pipes
_FCNTL = (0, 1, 2, 3, 4, 1030, 1032)
# TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTL = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS, PR_SET_VMA; above all
# not PR_SET_PDEATHSIG, by which this process dies with its parent
_PRCTL = (3, 15, 16, 21, 23, 39, 0x53564D41)


class NoFilter(Exception):
    """No filter for this machine, or its kernel takes none."""


@dataclass(frozen=True)
class Program:
    """Instructions of classic BPF, 8 bytes each."""

    code: bytes

    def __len__(self) -> int:
        return len(self.code) // 8


def program(machine: str) -> Program:
    """The filter for an architecture, as `platform.machine()` calls it.

    Raises:
        NoFilter: it is not one of those known here.
    """
    if machine not in _AUDIT_ARCH:
        raise NoFilter(f"no seccomp filter for {machine}: only for {' and '.join(_AUDIT_ARCH)}")
    column, architecture = _AUDIT_ARCH[machine]
    code = [
        *(_load(_ARCHITECTURE), _jump(_JUMP_EQUAL, architecture, 1, 0), _return(_KILL)),
        _load(_NUMBER),
        *(part for numbers in ALLOWED.values() for part in _allowed(numbers[column])),
        *_by_argument(FILTERED["fcntl"][column], 1, _FCNTL),
        *_by_argument(FILTERED["ioctl"][column], 1, _IOCTL),
        *_by_argument(FILTERED["prctl"][column], 0, _PRCTL),
        *_private_only(FILTERED["futex"][column]),
        *_threads_only(FILTERED["clone"][column]),
        _return(_FAIL | errno.ENOSYS),
    ]
    return Program(b"".join(code))


def install(filter: Program) -> None:
    """Put the filter over this process; nothing takes it away again.

    Raises:
        NoFilter: the kernel refuses it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(filter.code, len(filter.code))
    header = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(filter), ctypes.addressof(code)))
    for option, *values in ((_PR_SET_NO_NEW_PRIVS, 1, 0), (_PR_SET_SECCOMP, _FILTER, ctypes.addressof(header))):
        arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0)]
        if libc.prctl(ctypes.c_int(option), *arguments):
            raise NoFilter(f"the kernel takes no seccomp filter: {os.strerror(ctypes.get_errno())}")


def install_here() -> None:
    """The filter of this machine, over this process; raises NoFilter."""
    install(program(platform.machine()))


def _allowed(number: int | None) -> tuple[bytes, ...]:
    return () if number is None else (_jump(_JUMP_EQUAL, number, 0, 1), _return(_ALLOW))


def _by_argument(number: int, argument: int, values: Iterable[int]) -> tuple[bytes, ...]:
    """Allow the call with these values of an argument (its lower 32 bits, all that the kernel reads of these)."""
    cases = [part for value in values for part in (_jump(_JUMP_EQUAL, value, 0, 1), _return(_ALLOW))]
    body = [_load(_ARGUMENTS + 8 * argument), *cases, _return(_FAIL | errno.EPERM)]
    return (_jump(_JUMP_EQUAL, number, 0, len(body)), *body)


def _private_only(number: int) -> tuple[bytes, ...]:
    """Others fail with EINVAL, which the C library bears: it waits for the end of a thread by asking again."""
    operation = [_load(_ARGUMENTS + 8), _jump(_JUMP_SET, _FUTEX_PRIVATE, 0, 1)]
    body = [*operation, _return(_ALLOW), _return(_FAIL | errno.EINVAL)]
    return (_jump(_JUMP_EQUAL, number, 0, len(body)), *body)


def _threads_only(number: int) -> tuple[bytes, ...]:
    body = [
        _load(_ARGUMENTS),
        _jump(_JUMP_SET, _NEW_NAMESPACES, 2, 0),
        _jump(_JUMP_SET, _CLONE_THREAD, 0, 1),
        _return(_ALLOW),
        _return(_FAIL | errno.EPERM),
    ]
    return (_jump(_JUMP_EQUAL, number, 0, len(body)), *body)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, 0, 0, offset)


def _jump(kind: int, value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(kind, if_true, if_false, value)


def _return(value: int) -> bytes:
    return _instruction(_RETURN, 0, 0, value)


def _instruction(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
