"""A submission that tries to break out in every way it knows, and tells how each went in the error it ends with.

Run as a script, outside of a sandbox, it does the same: what it tries must work there, or it would prove nothing.
`TARGETS` is put in front of it: the files, ports and process that it goes for.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy

TARGETS: dict[str, Any] = globals().get("TARGETS", {})
libc = ctypes.CDLL(None, use_errno=True)


def called(result: int) -> int:
    """What a call of the C library returned, or its error."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read_secret() -> None:
    Path(TARGETS["secret"]).read_text()


def read_passwords() -> None:
    Path("/etc/shadow").read_text()


def read_repository() -> None:
    Path(TARGETS["repository"], "README.md").read_text()


def read_home() -> None:
    shown = {part for folder in sys.path for part in Path(folder).parts}
    if not set(os.listdir(TARGETS["home"])) - shown:
        raise FileNotFoundError("nothing but what leads to Python")


def read_environment() -> None:
    if TARGETS["variable"] not in os.environ:
        raise KeyError(TARGETS["variable"])


def read_environment_of_the_parent() -> None:
    Path(f"/proc/{TARGETS['process']}/environ").read_bytes()


def tcp() -> None:
    socket.create_connection(("127.0.0.1", TARGETS["port"]), timeout=5).close()


def udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", TARGETS["port"]))


def unix_socket() -> None:
    with socket.socket(socket.AF_UNIX) as sender:
        sender.connect(TARGETS["socket"])


def abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX) as sender:
        sender.connect("\0" + TARGETS["abstract"])


def raw_socket_call() -> None:
    os.close(called(libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0)))


def socket_pair() -> None:
    for side in socket.socketpair():
        side.close()


def fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def raw_fork() -> None:
    child = called(libc.fork())
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def start_program() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def memory_of_another() -> None:
    buffer = ctypes.create_string_buffer(8)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_void_p * 2)(TARGETS["address"], 8)
    called(libc.process_vm_readv(TARGETS["process"], local, 1, remote, 1, 0))


def trace_another() -> None:
    called(libc.ptrace(0x4206, TARGETS["process"], None, None))  # PTRACE_SEIZE, which stops nobody


def memory_file_of_another() -> None:
    Path(f"/proc/{TARGETS['process']}/mem").open("rb").close()


def signal_another() -> None:
    os.kill(TARGETS["process"], 0)


def shared_memory_segment() -> None:
    segment = shared_memory.SharedMemory(create=True, size=16)
    segment.close()
    segment.unlink()


def system_v_memory() -> None:
    segment = called(libc.shmget(0, 16, 0o1600))
    called(libc.shmctl(segment, 0, None))


def memory_without_a_name() -> None:
    os.close(os.memfd_create("hidden"))


def lock_a_shared_file() -> None:
    with open(os.__file__) as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def lock_a_range_of_it() -> None:
    with open(os.__file__) as file:
        fcntl.lockf(file, fcntl.LOCK_SH)


def watch_a_shared_file() -> None:
    os.close(called(libc.inotify_init1(0)))


def wake_waiters_at_a_shared_file() -> None:
    with open(os.__file__, "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as page:
        place = numpy.frombuffer(page, numpy.uint8)
        number = {"x86_64": 202, "aarch64": 98}[os.uname().machine]
        result = libc.syscall(number, ctypes.c_void_p(place.ctypes.data), 1, 1, None, None, 0)
        del place
        called(result)


def memory_of_the_machine() -> None:
    called(libc.sysinfo(ctypes.create_string_buffer(512)))


def new_namespace() -> None:
    called(libc.unshare(0x10000000))


def outlive_the_parent() -> None:
    called(libc.prctl(1, 0))


def become_root() -> None:
    os.setuid(0)


def raise_a_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    del hard


def many_threads() -> None:
    with waiting_threads(TARGETS["threads"]):
        pass


@contextmanager
def waiting_threads(count: int) -> Iterator[None]:
    end = threading.Event()
    threads = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait)
            thread.start()
            threads.append(thread)
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def large_file() -> None:
    with open(os.path.join(TARGETS["scratch"], "large"), "wb") as file:
        for _ in range(40):
            file.write(bytes(1 << 20))


def many_files_in_all() -> None:
    for number in range(40):
        with open(os.path.join(TARGETS["scratch"], str(number)), "wb") as file:
            file.write(bytes(1 << 20))


def write_to_packages() -> None:
    path = Path(TARGETS["packages"], "written")
    path.touch()
    path.unlink()


ATTACKS: tuple[Callable[[], None], ...] = (
    read_secret,
    read_passwords,
    read_repository,
    read_home,
    read_environment,
    read_environment_of_the_parent,
    tcp,
    udp,
    unix_socket,
    abstract_socket,
    raw_socket_call,
    socket_pair,
    fork,
    raw_fork,
    start_program,
    memory_of_another,
    trace_another,
    memory_file_of_another,
    signal_another,
    shared_memory_segment,
    system_v_memory,
    memory_without_a_name,
    lock_a_shared_file,
    lock_a_range_of_it,
    watch_a_shared_file,
    wake_waiters_at_a_shared_file,
    memory_of_the_machine,
    new_namespace,
    outlive_the_parent,
    become_root,
    raise_a_limit,
    many_threads,
    large_file,
    many_files_in_all,
    write_to_packages,
)


def outcome(attack: Callable[[], None]) -> str:
    """`done`, or what kept it from being done."""
    try:
        attack()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the result
        return f"{type(error).__name__}: {error}"[:60]
    return "done"


def report() -> str:
    return json.dumps({attack.__name__: outcome(attack) for attack in ATTACKS})


def strategy(optimizer: object) -> object:
    raise RuntimeError("REPORT" + report() + "END")


if __name__ == "__main__":
    sys.stdout.write("REPORT" + report() + "END")
