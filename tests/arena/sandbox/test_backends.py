"""Every way to shut a process in, where it works: what is seen from within, and that nothing is left."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from distributed_training.arena.sandbox import backends, docker, namespaces
from distributed_training.arena.sandbox.backends import (
    BACKENDS,
    Backend,
    Bubblewrap,
    Namespaces,
    await_ready,
    canary,
    find_backend,
    start,
)
from distributed_training.arena.sandbox.docker import Docker
from distributed_training.arena.sandbox.environment import VARIABLES, Environment, Mount, python_environment
from distributed_training.arena.sandbox.limits import Limits
from distributed_training.arena.sandbox.process import Launch, Process
from template.errors import ConfigurationError, SandboxUnavailable, SubmissionError
from tests.arena.sandbox.hostile import CLOCK, shut_in, soon

ROOT = Path(__file__).parents[3]
SMALL = Environment((Mount("/usr/lib", "/usr/lib"),), (("/lib", "usr/lib"),), "/usr/bin/python3", ("/project",))


@pytest.fixture(params=[backend.name for backend in BACKENDS])
def each(request: pytest.FixtureRequest) -> Backend:
    try:
        return find_backend(request.param)
    except SandboxUnavailable as error:
        pytest.skip(str(error))


def said(backend: Backend, code: str) -> str:
    """What `code` prints in a sandbox until it ends."""
    with shut_in(backend, code) as process:
        with pytest.raises(SubmissionError, match="ended with status 0"):
            process.read(1, soon())
        return process.printed


@pytest.mark.integration
def test_what_is_seen_from_within(each: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python, this project's packages, an empty folder and two devices; nobody's id; itself; no network; no variable
    but what it is given."""
    code = (
        "import json, os, socket, sys\n"
        "seen = {path: sorted(os.listdir(path)) for path in ('/', '/project', '/dev')}\n"
        "ways = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(('192.0.2.1', 9))\n"
        "seen |= {'user': os.getuid(), 'pid': os.getpid(), 'network': ways}\n"
        "print(json.dumps(seen | {'variables': sorted(os.environ)}), file=sys.stderr)"
    )
    monkeypatch.setenv("DT_PRIVATE", "1")
    seen = json.loads(said(each, code))
    assert seen["/project"] == ["distributed_training", "template"]
    leading = {Path(mount.target).parts[1] for mount in python_environment().mounts}
    assert set(seen["/"]) <= leading | {"dev", "proc", "sys", "tmp", "lib", "lib64", "etc", ".dockerenv"}
    assert {"null", "urandom"} <= set(seen["/dev"])
    assert not {"mem", "kmsg", "kvm", "sda", "vda", "nvme0n1", "nvidia0"} & set(seen["/dev"])
    assert seen["user"] == namespaces.NOBODY
    assert seen["pid"] <= 3
    assert seen["network"] == errno.ENETUNREACH
    assert set(VARIABLES) <= set(seen["variables"])
    assert "DT_PRIVATE" not in seen["variables"]


def gone(processes: Sequence[int], seconds: float = 20.0) -> bool:
    """Whether none of them runs any more, soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(_runs(process) for process in processes):
            return True
        time.sleep(0.02)
    return False


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def marked(mark: str) -> list[int]:
    """The processes of this machine with `mark` in their command lines."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if mark.encode() in line:
                found.append(int(folder.name))
    return found


DAEMONS = """
import os, time
mark = "{mark}"
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(1, b"x")
        time.sleep(1000)
os.write(1, b"x")
time.sleep({seconds})
"""


@pytest.mark.integration
@pytest.mark.parametrize("seconds", [1000, 0])
def test_daemons_die_with_the_sandbox(each: Backend, seconds: int) -> None:
    """Those that left their session, too: when it is closed, and when its first process ends by itself."""
    mark = f"daemons-{os.getpid()}-{seconds}"
    with shut_in(each, DAEMONS.format(mark=mark, seconds=seconds)) as process:
        process.read(4 if seconds else 1, soon())
        processes = marked(mark)
        assert not seconds or len(processes) >= 4
    assert gone([*processes, *marked(mark)])


@pytest.mark.integration
def test_a_supervisor_that_is_killed_leaves_nothing(each: Backend) -> None:
    """Nor can the sandbox outlive the one process of it that stands outside."""
    if each.name == "docker":
        pytest.skip("a container is the engine's: it outlives its guard, though not whoever started that")
    mark = f"unwatched-{os.getpid()}"
    with shut_in(each, DAEMONS.format(mark=mark, seconds=1000)) as process:
        process.read(4, soon())
        processes = marked(mark)
        for child in psutil.Process().children():
            if child.pid in processes:
                child.kill()
        assert gone(processes)


PARENT = """
import os, sys, time
sys.path.insert(0, {root!r})
from distributed_training.arena.sandbox.backends import find_backend
from tests.arena.sandbox.hostile import shut_in
process = shut_in(find_backend({name!r}), {code!r})
os.write(1, b"x")
time.sleep(1000)
"""


@pytest.mark.integration
def test_a_parent_that_is_killed_leaves_nothing(each: Backend) -> None:
    """Nobody was there to clean up; the kernel did."""
    mark = f"orphans-{os.getpid()}"
    code = PARENT.format(root=str(ROOT), name=each.name, code=DAEMONS.format(mark=mark, seconds=1000))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read(1) == b"x"
        end = time.monotonic() + 30
        while len(marked(mark)) < 5 and time.monotonic() < end:
            time.sleep(0.02)
        processes = [process for process in marked(mark) if process != parent.pid]
        parent.send_signal(signal.SIGKILL)
    assert len(processes) >= 4
    assert gone(processes)


@pytest.mark.integration
def test_a_trial_is_ready_and_ends(each: Backend) -> None:
    """Confined and looked at from within."""
    with canary() as seen, start(each, Limits(), seen, CLOCK, trial=True) as process:
        await_ready(process, soon())
        with pytest.raises(SubmissionError, match="ended with status 0"):
            process.read(1, soon())


@pytest.mark.integration
def test_a_sandbox_that_shows_too_much_is_not_used(each: Backend) -> None:
    """Here a file of the machine that can be seen, because it lies among the packages."""
    shown = "/project/template/errors.py"
    with start(each, Limits(), shown, CLOCK, trial=True) as process, pytest.raises(SandboxUnavailable, match="it sees"):
        await_ready(process, soon())


class Open:
    """No sandbox at all, which says that it is one."""

    name, remedy = "open", "do not"

    def launch(self, command: Sequence[str], environment: Environment, scratch: int) -> Launch:
        local = str(ROOT / "distributed_training/arena/sandbox/inside.py")
        plan = command[-1].replace('"/project"', json.dumps(str(ROOT)))
        return Launch((sys.executable, "-I", "-S", "-B", local, plan), lifeline=False)


class Broken:
    """One that does not start."""

    name, remedy = "broken", "repair it"

    def launch(self, command: Sequence[str], environment: Environment, scratch: int) -> Launch:
        return Launch(("/nowhere/sandbox",), lifeline=False)


def test_without_a_sandbox_nothing_is_run() -> None:
    """The error says what is wrong with each, and what helps."""
    with pytest.raises(SandboxUnavailable) as caught:
        find_backend(backends=(Broken(), Bubblewrap()) if os.getuid() == 0 else (Broken(),))
    assert "without one a submission is not run" in str(caught.value)
    assert "broken: /nowhere/sandbox cannot be started: No such file or directory; remedy: repair it" in str(
        caught.value
    )


@pytest.mark.integration
def test_what_is_none_is_found_out() -> None:
    """A process that is not confined sees the canary, and says so."""
    with pytest.raises(SandboxUnavailable, match=r"open: a sandbox did not start: .*it sees the machine's files"):
        find_backend(backends=(Open(),))


@pytest.mark.parametrize("missing", ["program", "user"])
def test_bubblewrap_says_why_it_cannot_work(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not installed, or it is started by root."""
    which: Callable[[str], str | None] = lambda name: None if missing == "program" else f"/usr/bin/{name}"  # noqa: E731
    monkeypatch.setattr(backends.shutil, "which", which)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(SandboxUnavailable, match="not installed" if missing == "program" else "root"):
        Bubblewrap().launch(["true"], SMALL, 1)


def test_bubblewrap_is_told_all_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Namespaces, nobody's id, no capabilities, no variables, death with the parent, what is shown, a size."""
    monkeypatch.setattr(backends.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    launch = Bubblewrap().launch(["python", "x"], SMALL, 4096)
    text = " ".join(launch.command)
    assert launch.command[0] == "/usr/bin/bwrap"
    assert launch.command[-3:] == ("--", "python", "x")
    for part in (
        "--unshare-all",
        "--uid 65534",
        "--cap-drop ALL",
        "--clearenv",
        "--die-with-parent",
        "--size 4096 --tmpfs /tmp",
        "--ro-bind /usr/lib /usr/lib",
        "--symlink usr/lib /lib",
        "--remount-ro /",
    ):
        assert part in text
    assert "--share-net" not in text
    assert not launch.lifeline


FAKE = """#!{python}
import os, sys, time
with open({calls!r}, "a") as calls:
    calls.write(" ".join(sys.argv[1:3]) + "\\n")
match sys.argv[1]:
    case "image":
        sys.exit({missing})
    case "import":
        sys.exit(sys.stdin.buffer.read() != bytes(10240))
    case "run":
        os.write(1, b"x")
        time.sleep(1000)
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called docker that notes how it is called, and whose containers only sleep; the file of its notes."""
    calls = tmp_path / "calls"
    program = tmp_path / "docker"
    program.write_text(FAKE.format(python=sys.executable, calls=str(calls), missing=1))
    program.chmod(0o755)
    monkeypatch.setattr(docker.shutil, "which", lambda name: str(program))
    return calls


@pytest.mark.integration
def test_a_container_is_removed_whatever_happens(engine: Path) -> None:
    """The image is made when there is none; the container has a name of its own, by which it is removed by force."""
    launch = Docker().launch(["true"], SMALL, 1)
    launch = Launch((sys.executable, *launch.command[1:]), lifeline=True)
    with Process(launch, 10_000, CLOCK) as process:
        assert process.read(1, soon()) == b"x"
    image, made, run, removed = engine.read_text().splitlines()
    assert (image, made, run) == ("image inspect", "import -", "run --name")
    assert removed == "rm --force"


@pytest.mark.integration
def test_a_container_is_told_all_promises(engine: Path) -> None:
    """No network, nobody's id, no capabilities, nothing to write to but /tmp of a size; two have different names."""
    first, second = (Docker().launch(["python", "x"], SMALL, 4096).command for _ in range(2))
    text = " ".join(first)
    for part in (
        "--network none",
        "--read-only",
        "--user 65534:65534",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--tmpfs /tmp:rw,noexec,nosuid,nodev,size=4096",
        "--volume /usr/lib:/usr/lib:ro --volume /usr/lib:/lib:ro",
    ):
        assert part in text
    assert first[-3:] == (docker.IMAGE, "python", "x")
    assert len(set(first) ^ set(second)) == 2


@pytest.mark.integration
def test_docker_without_an_engine_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its client says is told; so is that there is none."""
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\necho 'Cannot connect to the engine' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(docker.shutil, "which", lambda name: str(program))
    with pytest.raises(SandboxUnavailable, match="docker: Cannot connect to the engine; remedy: install docker"):
        find_backend("docker")
    monkeypatch.setattr(docker.shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailable, match="docker is not installed"):
        find_backend("docker")


@pytest.mark.parametrize(
    ("uid_map", "known"),
    [("0 0 4294967295\n", True), ("0 1000 1\n", False), ("0 1000 1\n1 100000 65536\n", True), ("5 5 65529\n", False)],
)
def test_in_a_namespace_of_one_user_root_is_that_user(uid_map: str, known: bool) -> None:
    """As a rootless container has it: there nobody else could be mapped."""
    assert namespaces.nobody_is_known(uid_map) is known


def test_namespaces_are_told_what_to_show() -> None:
    """As a plan, and with a lifeline."""
    launch = Namespaces().launch(["python", "x"], SMALL, 4096)
    plan = json.loads(launch.command[-1])
    assert launch.lifeline
    assert plan["mounts"] == [["/usr/lib", "/usr/lib"]]
    assert (plan["command"], plan["scratch"]) == (["python", "x"], 4096)


def test_what_is_shown_holds_no_home_and_no_data() -> None:
    """Of the project the packages alone; nothing twice; not the whole of anything."""
    shown = python_environment()
    sources = [Path(mount.source) for mount in shown.mounts]
    assert {path.name for path in sources if ROOT in path.parents} >= {"distributed_training", "template"}
    assert not {Path("/"), Path.home(), ROOT, Path("/tmp"), Path("/etc"), Path("/usr")} & set(sources)
    assert all(path.exists() for path in sources)
    assert not any(other in path.parents for path in sources for other in sources)


@pytest.mark.parametrize("name", ["memory", "cpu", "wall", "answer", "output"])
def test_limits_are_positive(name: str) -> None:
    """Or they are refused by their names."""
    with pytest.raises(ConfigurationError, match=f"limits.{name} must be positive"):
        Limits(**{name: 0})
