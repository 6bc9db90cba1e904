"""The filter as the kernel would read it: run by an interpreter of classic BPF that shares nothing with its maker."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from distributed_training.arena.sandbox.seccomp import NoFilter, program
from distributed_training.arena.sandbox.syscalls import ALLOWED, FILTERED

X86, ARM = 0xC000003E, 0xC00000B7
ALLOW, KILL = 0x7FFF0000, 0x80000000
DENIED, UNKNOWN = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
THREAD = 0x3D0F00  # what glibc's pthread_create passes to clone
HEADERS = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def verdict(machine: str, number: int, *arguments: int, architecture: int = X86) -> int:
    """What the program of `machine` returns for a call."""
    values = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *values)
    code = list(struct.iter_unpack("<HBBI", program(machine).code))
    register, at = 0, 0
    while True:
        kind, if_true, if_false, value = code[at]
        at += 1
        if kind == 0x20:
            register = struct.unpack_from("<I", data, value)[0]
        elif kind in (0x15, 0x45):
            at += if_true if (register == value if kind == 0x15 else register & value) else if_false
        elif kind == 0x06:
            return int(value)
        else:
            raise AssertionError(f"unknown instruction {kind:#x}")


@pytest.mark.parametrize("number", [0, 1, 9, 11, 231, 257, 228])  # read, write, mmap, ..., exit_group, openat
def test_what_a_strategy_needs_is_allowed(number: int) -> None:
    """By its number on x86_64."""
    assert verdict("x86_64", number) == ALLOW


@pytest.mark.parametrize(
    "number",
    [41, 42, 53, 57, 58, 59, 62 + 0x40000000, 101, 165, 272, 29, 30, 73, 248, 253, 310, 319, 321, 322, 425, 435, 438],
    ids=lambda n: f"{n:#x}",
)
def test_all_else_is_unknown(number: int) -> None:
    """Sockets, fork, vfork, execve, the x32 ABI, ptrace, mount, unshare, shared memory, flock, keys, inotify, other
    processes' memory, memfd, bpf, io_uring, clone3, pidfd_getfd."""
    assert verdict("x86_64", number) == UNKNOWN


def test_threads_may_be_started_and_processes_may_not() -> None:
    """Nor namespaces, with or without a thread."""
    clone = FILTERED["clone"][0]
    assert verdict("x86_64", clone, THREAD) == ALLOW
    assert verdict("x86_64", clone, 17) == DENIED  # SIGCHLD: fork
    assert verdict("x86_64", clone, 0x4111) == DENIED  # CLONE_VM | CLONE_VFORK | SIGCHLD: posix_spawn
    assert verdict("x86_64", clone, THREAD | 0x10000000) == DENIED
    assert verdict("x86_64", clone, 0x40000000 | 17) == DENIED


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("fcntl", (3, 3), ALLOW),
        ("fcntl", (3, 6), DENIED),  # F_SETLK
        ("fcntl", (3, 37), DENIED),  # F_OFD_SETLK
        ("fcntl", (3, 1024), DENIED),  # F_SETLEASE
        ("fcntl", (3, 1031), DENIED),  # F_SETPIPE_SZ
        ("ioctl", (3, 0x5401), ALLOW),
        ("ioctl", (3, 0x5412), DENIED),  # TIOCSTI
        ("futex", (0, 128), ALLOW),  # FUTEX_WAIT_PRIVATE
        ("futex", (0, 137), ALLOW),  # FUTEX_WAIT_BITSET_PRIVATE
        ("futex", (0, 0), 0x50000 | errno.EINVAL),
        ("futex", (0, 1), 0x50000 | errno.EINVAL),
        ("prctl", (15,), ALLOW),
        ("prctl", (1, 0), DENIED),  # PR_SET_PDEATHSIG
    ],
)
def test_some_calls_are_allowed_by_an_argument(name: str, arguments: tuple[int, ...], expected: int) -> None:
    """The same on both architectures."""
    x86, arm = FILTERED[name]
    assert verdict("x86_64", x86, *arguments) == expected
    assert verdict("aarch64", arm, *arguments, architecture=ARM) == expected


def test_numbers_of_another_architecture_end_the_process() -> None:
    """On x86_64 those of i386, where 11 is execve and not munmap."""
    assert verdict("x86_64", 11, architecture=0x40000003) == KILL
    assert verdict("aarch64", 63, architecture=X86) == KILL


def test_a_machine_without_numbers_has_no_filter() -> None:
    """It says so, instead of filtering by another's."""
    with pytest.raises(NoFilter, match="riscv64"):
        program("riscv64")


@pytest.mark.skipif(not HEADERS.exists(), reason="the kernel's headers are not installed")
def test_numbers_are_the_kernel_s() -> None:
    """Those of x86_64, against its header; those of aarch64 against the generic one, where it spells them out."""
    own = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", HEADERS.read_text()))
    generic = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", Path("/usr/include/asm-generic/unistd.h").read_text()))
    for name, (x86, arm) in {**ALLOWED, **FILTERED}.items():
        assert x86 is None or own[name] == str(x86), name
        assert arm is None or generic.get(name, str(arm)) == str(arm), name
