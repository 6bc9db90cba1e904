"""Pipes with deadlines, and the end of a process whatever it does."""

from __future__ import annotations

import os

import pytest

from distributed_training.arena.sandbox.process import PATIENCE, Launch, Process
from template.errors import SandboxUnavailable, SubmissionError
from tests.arena.sandbox.hostile import CLOCK, OUTPUT, process, soon

LARGE = 5_000_000  # more than all pipes hold

pytestmark = pytest.mark.integration


def test_bytes_go_there_and_come_back() -> None:
    """More than a pipe holds, while it prints."""
    with process(f"print('hello', file=sys.stderr, flush=True); write(read({LARGE})[::-1])") as echo:
        sent = os.urandom(LARGE)
        echo.write([sent[:10], sent[10:]], soon())
        assert echo.read(LARGE, soon()) == sent[::-1]
        assert echo.printed == "hello"


@pytest.mark.parametrize("code", ["time.sleep(1000)", "while True: pass", "write(b'x'); time.sleep(1000)"])
def test_who_does_not_answer_is_late(code: str) -> None:
    """Asleep, busy, or after a first byte."""
    with process(code) as silent, pytest.raises(SubmissionError) as caught:
        silent.read(2, soon(0.3))
    assert caught.value.reason == "late"


def test_who_does_not_read_is_late() -> None:
    """The simulator does not wait for it to take what it is sent."""
    with process("time.sleep(1000)") as deaf, pytest.raises(SubmissionError) as caught:
        deaf.write([bytes(LARGE)], soon(0.3))
    assert caught.value.reason == "late"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sys.exit('good bye')", "ended with status 1: good bye"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("os.close(1); time.sleep(1000)", "closed its pipe"),
    ],
)
def test_who_ends_is_told_with_its_last_words(code: str, status: str) -> None:
    """Also if it only looks as if it had."""
    patience = 0.5 if "sleep" in code else PATIENCE
    with process(code, patience) as ended, pytest.raises(SubmissionError, match=status) as caught:
        ended.read(1, soon())
    assert caught.value.reason == "ended"


@pytest.mark.parametrize("code", ["while True: os.write(2, bytes(4096))", "os.close(2); read(1)"])
def test_what_is_printed_is_bounded(code: str) -> None:
    """A flood ends the run, and only its end is kept; who closes standard error is no endless loop."""
    with process(code) as loud, pytest.raises(SubmissionError) as caught:
        loud.read(1, soon(0.5) if "close" in code else soon())
    assert caught.value.reason == ("late" if "close" in code else "output")
    assert len(loud.printed) < OUTPUT


def test_nothing_is_left_when_it_closes() -> None:
    """The process is gone, and so are the descriptors; closing again does nothing."""
    before = len(os.listdir("/proc/self/fd"))
    running = process("write(b'%d\\n' % os.getpid()); time.sleep(1000)")
    number = b""
    while not number.endswith(b"\n"):
        number += running.read(1, soon())
    running.close()
    running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(number), 0)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_program_that_is_not_there() -> None:
    """Says which."""
    with pytest.raises(SandboxUnavailable, match="/nowhere/bwrap"):
        Process(Launch(("/nowhere/bwrap",), lifeline=False), OUTPUT, CLOCK)
