"""Runs a command in namespaces of its own, with the kernel's means alone: no root needed, no program installed.

Started as a script, with a plan as JSON and the number of a descriptor, its lifeline, as its arguments:

    python -I -S namespaces.py PLAN 3 3<lifeline

New user, mount, process, network, IPC, host name and cgroup namespaces; a root file system in memory with what the plan
shows of this machine, to be read only, and /tmp, whose size is limited; user 65534, no capabilities and no way back to
any; no network device that is up. The command is the first process of its namespace: when it ends, or when the
lifeline is touched or cut, which happens when whoever holds the other end dies, the kernel ends all that it started.

It imports nothing of this project and no package, and trusts nothing that comes out of the command: it reads its plan,
and then only waits. Status: the command's, 128 + signal if one ended it, `FAILED` if it could not be started so.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FAILED = 125
NOBODY = 65534
ROOT = "/proc"  # hidden by the new root while it is made: every Linux has it, and nothing is shown of it

_NEW_USER, _NEW_MOUNTS, _NEW_PIDS, _NEW_NETWORK = 0x10000000, 0x00020000, 0x20000000, 0x40000000
_NEW_IPC, _NEW_NAMES, _NEW_CGROUPS = 0x08000000, 0x04000000, 0x02000000
_ALL_NEW = _NEW_USER | _NEW_MOUNTS | _NEW_PIDS | _NEW_NETWORK | _NEW_IPC | _NEW_NAMES | _NEW_CGROUPS
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_EXEC = 1, 2, 4, 8  # MS_* and MOUNT_ATTR_* alike
_REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 32, 4096, 16384, 1 << 18
_DETACH = 2
_MOUNT_SETATTR, _PIVOT_ROOT = 442, {"x86_64": 155, "aarch64": 41}
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PARENT_DEATH_SIGNAL, _DROP_BOUNDING, _NO_NEW_PRIVILEGES, _AMBIENT, _CLEAR_ALL = 1, 24, 38, 47, 4
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check(_libc.mount(*arguments), f"mount {source} on {target}")


def _prctl(option: int, *values: int) -> int:
    padded = (*values, 0, 0, 0, 0)[:4]
    return int(_libc.prctl(ctypes.c_int(option), *map(ctypes.c_ulong, padded)))


def enter_namespaces() -> None:
    """New namespaces of all kinds for this process, and for its children a new one of processes."""
    user, group = os.getuid(), os.getgid()
    if user == 0 and nobody_is_known(Path("/proc/self/uid_map").read_text()):
        with _mapping_from_outside():
            _check(_libc.unshare(_ALL_NEW), "unshare")
        return
    _check(_libc.unshare(_ALL_NEW), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1")


def nobody_is_known(uid_map: str) -> bool:
    """Whether user 65534 exists here. If not, this is a user namespace, and its root is somebody else outside."""
    ranges = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    return any(first <= NOBODY < first + count for first, _, count in ranges)


@contextlib.contextmanager
def _mapping_from_outside() -> Iterator[None]:
    """Of root's users 0, who may read what has to be shown, and 65534, who is all that the command can be, are known in
    the namespace that is entered within. Only somebody outside of it may write that down: a child that stays there."""
    ours, theirs = os.pipe()
    process = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        _map_users(process, ours)
    os.close(ours)
    try:
        yield
        os.write(theirs, b"x")
    finally:
        os.close(theirs)
        _, status = os.waitpid(child, 0)
    if status:
        raise OSError("users cannot be mapped into a namespace")


def _map_users(process: int, entered: int) -> None:
    """In a child: once told that `process` has entered its namespace. Never returns."""
    try:
        if os.read(entered, 1):
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{process}/{name}").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            os._exit(0)
    finally:
        os._exit(1)


def make_root(plan: dict[str, Any]) -> None:
    """A new root with what the plan shows; the old one is gone."""
    facts = {name: Path(name).read_bytes() for name in plan["facts"] if Path(name).exists()}
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    safe = _NO_SETUID | _NO_DEVICES
    _mount("tmpfs", ROOT, "tmpfs", safe, "size=8m,nr_inodes=4096,mode=755")
    scratch = f"size={plan['scratch']},nr_inodes=1024,mode=1777"
    _mount("tmpfs", str(_folder(ROOT + "/tmp")), "tmpfs", safe | _NO_EXEC, scratch)  # first: packages may lie below it
    for source, target in plan["mounts"]:
        _show(source, ROOT + target, safe)
    for source in plan["devices"]:
        _show(source, ROOT + source, _NO_SETUID)
    for path, content in facts.items():
        _place(ROOT + path).write_bytes(content)
    for path, target in plan["links"]:
        _place(ROOT + path).symlink_to(target)
    _change_root()
    _mount("none", "/", "", _REMOUNT | _BIND | _READ_ONLY | safe)


def _folder(path: str) -> Path:
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _place(path: str) -> Path:
    """`path`, in a folder that is there."""
    return _folder(os.path.dirname(path)) / os.path.basename(path)


def _show(source: str, target: str, flags: int) -> None:
    """Bind a file or folder with all that is mounted in it, to be read only."""
    if os.path.isdir(source):
        _folder(target)
    else:
        _place(target).touch()
    _mount(source, target, "", _BIND | _RECURSIVE)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | flags, 0, 0, 0)
    where = (ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(_AT_FDCWD), target.encode(), ctypes.c_uint(_AT_RECURSIVE))
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _check(_libc.syscall(*where, attributes, size), f"mount_setattr {target} (Linux 5.12 or newer)")


def _change_root() -> None:
    os.chdir(ROOT)
    number = _PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(ctypes.c_long(number), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _DETACH), "umount the old root")
    os.chdir("/")


def become_nobody(alive: int) -> None:
    """Give up root's id, every capability and the way back to them; end with the process that holds the other end of
    `alive`."""
    _check(_libc.sethostname(b"sandbox", 7), "sethostname")
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
    for capability in range(64):
        if _prctl(_DROP_BOUNDING, capability):
            break  # past the last one that this kernel knows
    if os.getuid() == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(_AMBIENT, _CLEAR_ALL)
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    _check(_libc.capset(header, none), "capset")
    _check(_prctl(_NO_NEW_PRIVILEGES, 1), "no_new_privs")
    _check(_prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL), "parent death signal")
    if select.select([alive], [], [], 0)[0]:
        raise OSError("whoever started the sandbox has ended")


def run(plan: dict[str, Any], lifeline: int) -> int:
    """Start the command, and wait for its end or the lifeline's."""
    enter_namespaces()
    alive, held = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(held)
        os.close(lifeline)
        _start(plan, alive)
    os.close(alive)
    for descriptor in (0, 1):
        os.close(descriptor)
    process = os.pidfd_open(first)
    ready = select.select([lifeline, process], [], [])[0]
    if process not in ready:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    _, status = os.waitpid(first, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _start(plan: dict[str, Any], alive: int) -> None:
    """In the first process of the namespace: never returns."""
    try:
        make_root(plan)
        become_nobody(alive)
        os.closerange(3, 1 << 10)
        os.execve(plan["command"][0], plan["command"], plan["variables"])
    except OSError as error:
        os.write(2, f"no sandbox: {error}\n".encode())
    finally:
        os._exit(FAILED)


def main() -> int:
    plan = json.loads(sys.argv[1])
    try:
        return run(plan, int(sys.argv[2]))
    except OSError as error:
        os.write(2, f"no sandbox: {error}\n".encode())
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
