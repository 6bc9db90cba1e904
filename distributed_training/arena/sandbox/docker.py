"""A container of a docker engine on this machine, from an empty image: all that it holds is shown to it, read only."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence

from distributed_training.arena.sandbox import guard, namespaces
from distributed_training.arena.sandbox.environment import VARIABLES, Environment
from distributed_training.arena.sandbox.process import Launch
from template.errors import SandboxUnavailable

IMAGE = "distributed-training-empty:1"
_EMPTY_ARCHIVE = bytes(10240)  # a tar with no files
_SECONDS = 20.0  # for the engine to answer
_PROCESSES = 256  # in a container; what is inside sets a lower limit of its own


class Docker:
    """`docker run`, under a guard that removes the container."""

    name = "docker"
    remedy = "install docker, start its engine, and let this user use /var/run/docker.sock"

    def launch(self, command: Sequence[str], environment: Environment, scratch: int) -> Launch:
        program = shutil.which("docker")
        if program is None:
            raise SandboxUnavailable("docker is not installed")
        if _asked(program, "image", "inspect", IMAGE) is not None:
            problem = _asked(program, "import", "-", IMAGE)
            if problem is not None:
                raise SandboxUnavailable(problem)
        name = f"sandbox-{secrets.token_hex(8)}"
        container = (program, name, *_options(environment, scratch), IMAGE, *command)
        return Launch(tuple(environment.command(guard.__file__, *container)), lifeline=True)


def _asked(program: str, *arguments: str) -> str | None:
    """None if the engine did it, else what it said; without this process's environment, as the guard asks."""
    try:
        done = subprocess.run(
            [program, *arguments], input=_EMPTY_ARCHIVE, capture_output=True, timeout=_SECONDS, check=False, env={}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"docker: {error}"
    if not done.returncode:
        return None
    return " ".join(done.stderr.decode(errors="replace").split())[:300] or f"docker: status {done.returncode}"


def _options(environment: Environment, scratch: int) -> Iterator[str]:
    nobody = namespaces.NOBODY
    yield from (
        "--rm",
        "--interactive",
        "--network",
        "none",
        "--read-only",
        "--ipc",
        "private",
        "--hostname",
        "sandbox",
    )
    yield from ("--user", f"{nobody}:{nobody}", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    yield from ("--pids-limit", str(_PROCESSES), "--log-driver", "none", "--workdir", "/")
    yield from ("--tmpfs", f"/tmp:rw,noexec,nosuid,nodev,size={scratch},mode=1777")
    for mount in environment.mounts:
        yield from ("--volume", f"{mount.source}:{mount.target}:ro")
    for path, target in environment.links:
        yield from ("--volume", f"/{target.lstrip('/')}:{path}:ro")
    for name, value in VARIABLES.items():
        yield from ("--env", f"{name}={value}")
