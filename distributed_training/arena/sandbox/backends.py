"""How a process is shut in, and which of the ways works here: each is tried before it is believed.

| name | what | needs |
|---|---|---|
| bubblewrap | `bwrap` | the program; a user that is not root, for it can map none but its own |
| docker | docker.py: a container of an empty image | an engine here that this user may use |
| namespaces | namespaces.py: the kernel's alone | Linux 5.12, user namespaces |

In all, inside.py adds limits and a system call filter, and looks around (confinement.py) before a submission runs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

from distributed_training.arena.sandbox import namespaces
from distributed_training.arena.sandbox.docker import Docker
from distributed_training.arena.sandbox.environment import (
    DEVICES,
    ENTRY,
    FACTS,
    VARIABLES,
    Environment,
    python_environment,
)
from distributed_training.arena.sandbox.limits import MEBIBYTE, Limits
from distributed_training.arena.sandbox.process import Launch, Process
from distributed_training.arena.sandbox.schema import header_size
from distributed_training.arena.sandbox.wire import ANSWER, Kind
from template.clock import Clock, SystemClock
from template.errors import SandboxUnavailable, SubmissionError

Choice = Literal["auto", "bubblewrap", "docker", "namespaces"]


class Backend(Protocol):
    """A way to shut a command in."""

    @property
    def name(self) -> str:
        """In records and on the terminal."""

    @property
    def remedy(self) -> str:
        """What to do where it does not work."""

    def launch(self, command: Sequence[str], environment: Environment, scratch: int) -> Launch:
        """How to start `command` with that environment and `scratch` bytes of files.

        Raises:
            SandboxUnavailable: it is not installed, or cannot work for this user.
        """


class Bubblewrap:
    """bwrap(1), with its own supervisor in front of the command."""

    name = "bubblewrap"
    remedy = "install bubblewrap (apt install bubblewrap) and run as a user other than root"

    def launch(self, command: Sequence[str], environment: Environment, scratch: int) -> Launch:
        program = shutil.which("bwrap")
        if program is None:
            raise SandboxUnavailable("bwrap is not installed")
        if os.getuid() == 0:
            raise SandboxUnavailable("started by root, bwrap leaves a process root's id outside, which no limit holds")
        return Launch((program, *_bubblewrap_options(environment, scratch), "--", *command), lifeline=False)


def _bubblewrap_options(environment: Environment, scratch: int) -> Iterator[str]:
    nobody = str(namespaces.NOBODY)
    yield from ("--unshare-all", "--unshare-user", "--uid", nobody, "--gid", nobody, "--hostname", "sandbox")
    yield from ("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv", "--chdir", "/")
    yield from ("--size", str(scratch), "--tmpfs", "/tmp")
    for mount in environment.mounts:
        yield from ("--ro-bind", mount.source, mount.target)
    for device in DEVICES:
        yield from ("--dev-bind", device, device)
    for fact in FACTS:
        yield from ("--ro-bind-try", fact, fact)
    for path, target in environment.links:
        yield from ("--symlink", target, path)
    for name, value in VARIABLES.items():
        yield from ("--setenv", name, value)
    yield from ("--remount-ro", "/")


class Namespaces:
    """The kernel's means alone."""

    name = "namespaces"
    remedy = (
        "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1, "
        "kernel.apparmor_restrict_unprivileged_userns=0 and user.max_user_namespaces above 0; in a container, "
        "CAP_SYS_ADMIN or a seccomp profile that allows unshare"
    )

    def launch(self, command: Sequence[str], environment: Environment, scratch: int) -> Launch:
        plan = {
            "command": list(command),
            "mounts": [(mount.source, mount.target) for mount in environment.mounts],
            "links": environment.links,
            "devices": DEVICES,
            "facts": FACTS,
            "variables": VARIABLES,
            "scratch": scratch,
        }
        return Launch(tuple(environment.command(namespaces.__file__, json.dumps(plan))), lifeline=True)


BACKENDS: tuple[Backend, ...] = (Bubblewrap(), Docker(), Namespaces())


@contextmanager
def canary() -> Iterator[str]:
    """The name of a file of this machine, and of a listening abstract socket, which live in its network: nobody in a
    sandbox may see either."""
    with tempfile.NamedTemporaryFile(prefix="sandbox-canary-") as file, socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + file.name)
        listener.listen()
        yield file.name


def start(
    backend: Backend, limits: Limits, seen: str, clock: Clock, *, threads: int = 1, trial: bool = False
) -> Process:
    """Start inside.py; READY comes when it is confined. `seen`: the canary; `trial`: end then.

    Raises:
        SandboxUnavailable: the backend cannot work here.
    """
    environment = python_environment()
    plan = {
        "search": environment.search,
        "limits": resources(limits),
        "canary": seen,
        "threads": threads,
        "trial": trial,
    }
    command = environment.command(ENTRY, json.dumps(plan))
    return Process(backend.launch(command, environment, limits.scratch * MEBIBYTE), limits.output, clock)


def resources(limits: Limits) -> dict[str, int]:
    """As setrlimit(2) has them."""
    return {
        "RLIMIT_AS": limits.memory * MEBIBYTE,
        "RLIMIT_CPU": limits.cpu,
        "RLIMIT_NPROC": limits.threads,
        "RLIMIT_NOFILE": limits.files,
        "RLIMIT_FSIZE": limits.scratch * MEBIBYTE,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }


def await_ready(process: Process, deadline: float) -> None:
    """Until it is confined and ready to load a submission, none of whose code has run.

    Raises:
        SandboxUnavailable: it is not, and why.
    """
    try:
        prefix = bytes(process.read(ANSWER.size, deadline))
        _, size = header_size(prefix, 0, (Kind.READY,))
        process.read(size, deadline)
    except SubmissionError as error:
        raise SandboxUnavailable(f"a sandbox did not start: {process.printed or error}") from error


def find_backend(choice: Choice = "auto", backends: Sequence[Backend] = BACKENDS) -> Backend:
    """The first that works here, or the one of that name if it works.

    Raises:
        SandboxUnavailable: none does; with what was wrong with each, and the remedies.
    """
    wrong: list[str] = []
    for backend in backends:
        if choice in ("auto", backend.name):
            problem = _problem(backend)
            if problem is None:
                return backend
            wrong.append(f"{backend.name}: {problem}; remedy: {backend.remedy}")
    raise SandboxUnavailable(f"no sandbox works here, and without one a submission is not run. {' | '.join(wrong)}")


def _problem(backend: Backend) -> str | None:
    """What keeps a backend from working here."""
    clock, limits = SystemClock(), Limits()
    try:
        with canary() as seen, start(backend, limits, seen, clock, trial=True) as process:
            await_ready(process, clock.monotonic() + limits.start)
    except SandboxUnavailable as error:
        return str(error)
    return None
