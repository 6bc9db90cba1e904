"""One attack for each promise: tried by a submission in a sandbox, and outside of it, where it works."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from distributed_training.arena.corpus import Corpus
from distributed_training.arena.sandbox.backends import Backend, await_ready, canary
from distributed_training.arena.sandbox.limits import Limits
from distributed_training.arena.sandbox.submission import run_submission
from template.errors import SubmissionError
from tests.arena.sandbox import probe
from tests.arena.sandbox.hostile import confined, soon
from tests.arena.small import CPU, SPEC, plan

ROOT = Path(__file__).parents[3]
PROBE = Path(probe.__file__).read_text()
VARIABLE = "DT_SECRET_OF_THE_TESTS"
HELD = ctypes.create_string_buffer(b"private")
LIMITS = Limits(scratch=16, threads=16, answer=50.0)
JUNK = """
import os
for number in range(3, 9):
    try: os.write(number, b"x" * 100)
    except OSError: pass
"""
NAMES = [attack.__name__ for attack in probe.ATTACKS]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Any]]:
    """Things to go for, all of which are there."""
    name = f"arena-{os.getpid()}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # a socket's path must be short
        (folder / "secret").write_text("secret")
        listeners = [stack.enter_context(socket.socket(family)) for family in (socket.AF_INET, *[socket.AF_UNIX] * 2)]
        for listener, address in zip(listeners, (("127.0.0.1", 0), str(folder / "s"), "\0" + name), strict=True):
            listener.bind(address)
            listener.listen()
        yield {
            "secret": str(folder / "secret"),
            "repository": str(ROOT),
            "home": str(Path.home()),
            "variable": VARIABLE,
            "port": listeners[0].getsockname()[1],
            "socket": str(folder / "s"),
            "abstract": name,
            "process": os.getpid(),
            "address": ctypes.addressof(HELD),
            "scratch": "/tmp",
            "threads": 50,
            "packages": "/project/template",
        }


def reported(text: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(text.partition("REPORT")[2].partition("END")[0])
    return found


def probing(targets: dict[str, Any]) -> bytes:
    front = "from __future__ import annotations\n"
    return PROBE.replace(front, f"{front}TARGETS = {targets!r}\n").encode()


@pytest.fixture(scope="module")
def within(targets: dict[str, Any], corpus: Corpus, backend: Backend) -> dict[str, str]:
    """What came of the attacks in a sandbox."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "1")
        with pytest.raises(SubmissionError) as caught:
            run_submission(probing(targets), SPEC, plan(1, 1), corpus, CPU, backend, LIMITS)
    assert caught.value.reason == "failed"
    return reported(str(caught.value))


@pytest.fixture(scope="module")
def outside(targets: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of them without one, by the same user, in folders of the tests."""
    folder = tmp_path_factory.mktemp("control")
    free = {**targets, "scratch": str(folder), "packages": str(folder)}
    (folder / "probe.py").write_bytes(probing(free))
    environment = {**os.environ, VARIABLE: "1"}
    command = [sys.executable, str(folder / "probe.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=True)
    return reported(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_tried_in_a_sandbox_works(name: str, within: dict[str, str]) -> None:
    """Files, environment, network, processes, memory of others, ways to signal past the ledger, rights, room."""
    assert within[name] != "done"


# Without root these are refused everywhere; what a kernel or a container forbids anyway proves nothing, and is no loss.
PRIVILEGED = {"read_passwords", "become_root", "raise_a_limit", "new_namespace", "memory_of_another", "trace_another"}


@pytest.mark.parametrize("name", sorted(set(NAMES) - PRIVILEGED - {"memory_file_of_another", "read_home"}))
def test_it_works_outside(name: str, outside: dict[str, str]) -> None:
    """Or the attack would not be one."""
    assert outside[name] == "done"


@pytest.mark.parametrize(
    ("source", "reason", "message"),
    [
        ("import os; os._exit(3)", "ended", "ended with status 3"),
        (JUNK, "answer", "no answer"),
    ],
    ids=["exit", "junk"],
)
def test_a_submission_that_does_not_load(
    source: str, reason: str, message: str, corpus: Corpus, backend: Backend
) -> None:
    """Ends, or writes to whatever descriptors it finds: one error that names it."""
    with pytest.raises(SubmissionError) as caught:
        run_submission(source.encode(), SPEC, plan(1, 2), corpus, CPU, backend, LIMITS)
    assert caught.value.reason == reason, caught.value
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        ("import ctypes; ctypes.string_at(0)", "ended", "ended by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9); os.abort()", "ended", "ended by SIG"),
        ("x = bytearray(1 << 36)", "ended", "MemoryError"),
        ("x = [bytearray(1 << 20) for _ in iter(int, 1)]", "ended", "MemoryError"),
        ("while True: print('x' * 10_000)", "output", "more than 65536 bytes"),
        ("while True: pass", "ended", "ended by SIGKILL"),
        ("import threading\nfor _ in range(4): threading.Thread(target=all, args=[iter(object, 1)]).start()",
         "ended", "ended by SIGKILL"),
        ("import time; time.sleep(1e6)", "late", "in time"),
    ],
    ids=["crash", "abort", "allocation", "growth", "output", "busy", "busy-threads", "asleep"],
)  # fmt: skip
def test_what_uses_too_much(code: str, reason: str, message: str, backend: Backend) -> None:
    """Of memory, output, CPU time or anybody's patience: it ends, and says at what."""
    limits = Limits(memory=300, cpu=2)
    with canary() as seen, confined(backend, code, limits, seen) as process:
        await_ready(process, soon())
        process.write([b"x"], soon())
        with pytest.raises(SubmissionError, match=message) as caught:
            process.read(1, soon(1.5 if reason == "late" else 30.0))
    assert caught.value.reason == reason
