"""The life of a neuron: tasks, restarts, stopping, closing, exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from template.clock import ManualClock, SystemClock
from template.errors import ConfigurationError, Unreachable, WalletError
from template.neuron import Ending, NeuronConfig, Restart, Supervisor, run_neuron, together
from template.telemetry import MemorySink, Telemetry

ROOT = Path(__file__).parents[2]
CONFIG = NeuronConfig()
HASTY = NeuronConfig(close_seconds=0.05)

Start = Callable[[Supervisor], AbstractAsyncContextManager[None]]


class Journal:
    """What happened, in order; makes resources and tasks that write into it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.sink = MemorySink()
        self.telemetry = Telemetry([self.sink], ManualClock())

    @asynccontextmanager
    async def resource(self, name: str, close: float = 0.0) -> AsyncIterator[None]:
        self.lines.append(f"open {name}")
        try:
            yield
        finally:
            await asyncio.sleep(close)
            self.lines.append(f"close {name}")

    async def task(self, name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.lines.append(f"end {name}")

    def start(self, *work: Callable[[], None], close: float = 0.0) -> Start:
        """Opens chain and axon, runs two tasks, and then does the extra work."""

        @asynccontextmanager
        async def opened(tasks: Supervisor) -> AsyncIterator[None]:
            async with self.resource("chain", close), self.resource("axon"):
                tasks.start("first", lambda: self.task("first"))
                tasks.start("second", lambda: self.task("second"))
                asyncio.get_running_loop().call_later(0.01, lambda: [act() for act in work])
                yield

        return opened

    async def run(self, start: Start, config: NeuronConfig = CONFIG) -> Ending:
        return await run_neuron(start, telemetry=self.telemetry, config=config)


@pytest.fixture
def journal() -> Journal:
    return Journal()


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


CLOSED = ["open chain", "open axon", "end second", "end first", "close axon", "close chain"]


@pytest.mark.parametrize(
    ("number", "ending", "status"),
    [(signal.SIGTERM, Ending.TERMINATED, 0), (signal.SIGINT, Ending.INTERRUPTED, 130)],
)
async def test_a_signal_closes_everything_in_reverse(
    journal: Journal, number: int, ending: Ending, status: int
) -> None:
    """Tasks end before what they use, the last opened closes first; the old handlers come back."""
    before = signal.getsignal(number)
    assert await journal.run(journal.start(send(number))) is ending
    assert ending.status == status
    assert journal.lines == CLOSED
    assert signal.getsignal(number) is before
    assert journal.sink.records[-1]["ending"] == ending.name


async def test_the_neuron_can_stop_itself(journal: Journal) -> None:
    """`stop` ends it as a signal does."""

    @asynccontextmanager
    async def start(tasks: Supervisor) -> AsyncIterator[None]:
        async with journal.start(tasks.stop)(tasks):
            yield

    assert await journal.run(start) is Ending.FINISHED
    assert journal.lines == CLOSED


async def test_a_second_signal_does_not_wait(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """A slow close is cut short at the second signal, and what is above it in the stack still closes."""
    began = time.monotonic()
    asyncio.get_running_loop().call_later(0.05, send(signal.SIGTERM))
    ending = await journal.run(journal.start(send(signal.SIGINT), close=30.0))
    assert ending is Ending.INTERRUPTED
    assert time.monotonic() - began < 5
    assert "close axon" in journal.lines
    assert "closing is cut short: second signal" in caplog.text


async def test_the_deadline_cuts_a_slow_close_short(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """A graceful stop is bounded."""
    ending = await journal.run(journal.start(send(signal.SIGTERM), close=30.0), HASTY)
    assert ending is Ending.TERMINATED
    assert "closing is cut short: 0.05 s over" in caplog.text


async def test_what_cannot_be_cancelled_is_abandoned(journal: Journal) -> None:
    """A task that swallows every cancellation does not hold the neuron."""
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    @asynccontextmanager
    async def start(tasks: Supervisor) -> AsyncIterator[None]:
        tasks.start("stubborn", stubborn)
        await asyncio.sleep(0)
        tasks.stop()
        yield

    assert await journal.run(start, HASTY) is Ending.ABANDONED
    release.set()
    await asyncio.sleep(0.01)


async def test_a_signal_while_starting_undoes_what_was_opened(journal: Journal) -> None:
    """A start that waits for a dead chain can be interrupted."""

    @asynccontextmanager
    async def start(tasks: Supervisor) -> AsyncIterator[None]:
        async with journal.resource("chain"):
            asyncio.get_running_loop().call_later(0.01, send(signal.SIGINT))
            await asyncio.sleep(60)
            yield

    assert await journal.run(start) is Ending.INTERRUPTED
    assert journal.lines == ["open chain", "close chain"]


async def test_a_failed_start_closes_and_raises(journal: Journal) -> None:
    """The error of opening is the error of the neuron; tasks that were started have ended."""

    @asynccontextmanager
    async def start(tasks: Supervisor) -> AsyncIterator[None]:
        async with journal.resource("chain"):
            tasks.start("first", lambda: journal.task("first"))
            await asyncio.sleep(0)
            raise Unreachable("no axon")
            yield

    with pytest.raises(Unreachable, match="no axon"):
        await journal.run(start)
    assert journal.lines == ["open chain", "close chain", "end first"]


async def test_cancelling_the_neuron_closes_it(journal: Journal) -> None:
    """A neuron run inside another program ends with its task."""
    running = asyncio.create_task(journal.run(journal.start()))
    await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.wait({running})
    await asyncio.sleep(0.02)
    assert journal.lines == CLOSED


async def fails() -> None:
    raise KeyError("bug")


async def test_a_task_that_fails_for_good_ends_the_neuron(journal: Journal) -> None:
    """Its exception comes out, everything is closed, the event holds the traceback."""

    @asynccontextmanager
    async def start(tasks: Supervisor) -> AsyncIterator[None]:
        async with journal.resource("chain"):
            tasks.start("trainer", fails)
            yield

    with pytest.raises(KeyError, match="bug"):
        await journal.run(start)
    failed = journal.sink.records[0]
    assert (failed["kind"], failed["task"], failed["failures"]) == ("TaskFailed", "trainer", 1)
    assert failed["restart_in"] is None
    assert 'raise KeyError("bug")' in failed["traceback"]
    assert journal.lines == ["open chain", "close chain"]


async def test_a_failure_is_not_lost_in_a_slow_close(journal: Journal) -> None:
    """The task's exception comes out even if closing had to be cut short."""

    @asynccontextmanager
    async def start(tasks: Supervisor) -> AsyncIterator[None]:
        async with journal.resource("chain", close=30.0):
            tasks.start("trainer", fails)
            yield

    with pytest.raises(KeyError, match="bug"):
        await journal.run(start, HASTY)


async def test_restarts_back_off_and_end() -> None:
    """Delays of 1, 2 and 2 seconds, then the neuron is asked to stop."""
    clock, sink, began = ManualClock(), MemorySink(), []
    tasks = Supervisor(telemetry=Telemetry([sink], clock), clock=clock)

    async def work() -> None:
        began.append(clock.monotonic())
        raise Unreachable("gone")

    tasks.start("query", work, Restart(times=3, first_delay=1.0, longest_delay=2.0))
    await asyncio.sleep(0)
    await clock.advance(100)
    assert began == [0, 1, 3, 5]
    assert [record["restart_in"] for record in sink.records] == [1.0, 2.0, 2.0, None]
    with pytest.raises(Unreachable):
        await tasks.wait()
    await tasks.close()


async def test_a_long_healthy_run_forgets_failures() -> None:
    """A task that fails once a day is not given up after a week."""
    clock, sink = ManualClock(), MemorySink()
    tasks = Supervisor(telemetry=Telemetry([sink], clock), clock=clock)

    async def work() -> None:
        await clock.sleep(1000)
        raise Unreachable("gone")

    tasks.start("query", work, Restart(times=1, healthy_seconds=600))
    await asyncio.sleep(0)
    await clock.advance(5010)
    assert [record["failures"] for record in sink.records] == [1, 1, 1, 1, 1]
    assert not tasks.stopping.is_set()
    await tasks.close()


async def test_what_no_retry_can_mend_is_not_retried(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong setting stays wrong; the log has one line without a traceback."""
    tasks = Supervisor(telemetry=Telemetry(), clock=SystemClock())

    async def work() -> None:
        raise ConfigurationError("hub.token is missing")

    with caplog.at_level(logging.ERROR):
        tasks.start("push", work, Restart(times=9))
        with pytest.raises(ConfigurationError):
            await tasks.wait()
    assert caplog.messages == ["task 'push' failed: hub.token is missing; the neuron stops"]
    assert caplog.records[0].exc_info is None
    await tasks.close()


async def test_a_finished_task_is_no_reason_to_stop_and_none_starts_late() -> None:
    """Work may come to its end; after the stop nothing is started."""
    tasks = Supervisor(telemetry=Telemetry(), clock=SystemClock())
    tasks.start("once", lambda: asyncio.sleep(0))
    await asyncio.sleep(0.01)
    assert not tasks.stopping.is_set()
    await tasks.close()
    with pytest.raises(RuntimeError, match="'late' started while the neuron stops"):
        tasks.start("late", lambda: asyncio.sleep(0))


def test_a_negative_patience_is_refused() -> None:
    """The setting is named."""
    with pytest.raises(ConfigurationError, match=r"neuron\.close_seconds"):
        NeuronConfig(close_seconds=-1)


# --- real processes

PROGRAM = """
import asyncio, sys, threading, time
from contextlib import asynccontextmanager
from template.config import HelpRequested
from template.errors import ConfigurationError
from template.neuron import Ending, NeuronConfig, main, run_neuron
from template.telemetry import Telemetry

@asynccontextmanager
async def opened(tasks):
    print("open", flush=True)
    yield
    print("closed", flush=True)

async def neuron(**config):
    return await run_neuron(opened, telemetry=Telemetry(), config=NeuronConfig(**config))

{body}
sys.exit(main(entry))
"""


def launch(body: str) -> subprocess.Popen[str]:
    code = PROGRAM.format(body=textwrap.dedent(body))
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.integration
def test_a_subnet_error_is_one_line_and_status_two() -> None:
    """No traceback for what a person can mend; newlines and escapes of strangers do not reach the terminal."""
    body = 'async def entry(): raise ConfigurationError("--netuid is missing;\\n\\x1b[2J give it")'
    status, out, err = finish(launch(body))
    assert (status, out, err) == (2, "", "error: --netuid is missing; \\x1b[2J give it\n")


@pytest.mark.integration
def test_a_bug_is_a_traceback_and_status_one() -> None:
    """What nobody foresaw is shown whole."""
    status, _, err = finish(launch("async def entry(): raise KeyError('bug')"))
    assert status == 1
    assert "Traceback" in err
    assert "KeyError: 'bug'" in err


@pytest.mark.integration
def test_help_is_printed_with_status_zero() -> None:
    """Help goes to standard output."""
    assert finish(launch("async def entry(): raise HelpRequested('usage: [x]\\n')")) == (0, "usage: [x]\n", "")


@pytest.mark.integration
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signals_to_a_real_process(number: int, expected: int) -> None:
    """Both close it; the status tells them apart."""
    process = launch("entry = neuron")
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    process.send_signal(number)
    assert finish(process) == (expected, "closed\n", "")


@pytest.mark.integration
def test_a_hanging_thread_does_not_keep_the_process() -> None:
    """A worker that never returns is left behind after a bounded wait, and that is said."""
    body = """
    import template.neuron
    template.neuron.THREAD_SECONDS = 0.2
    async def entry():
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
        return Ending.FINISHED
    """
    status, _, err = finish(launch(body))
    assert status == 1
    assert "what still ran was left behind" in err


@pytest.mark.integration
def test_a_child_ends_with_its_parent() -> None:
    """Killed outright, a parent leaves no neuron behind."""
    body = """
    import os, subprocess
    child = "import asyncio,sys;from template.neuron import *;from template.telemetry import Telemetry\\n"
    child += "from contextlib import asynccontextmanager\\n"
    child += "@asynccontextmanager\\nasync def opened(tasks):\\n    print(os.getpid(), flush=True)\\n    yield\\n"
    child += "sys.exit(main(lambda: run_neuron(opened, telemetry=Telemetry(), config=NeuronConfig(parent=PARENT))))"
    async def entry():
        subprocess.Popen([sys.executable, "-c", "import os\\n" + child.replace("PARENT", str(os.getpid()))])
        await asyncio.sleep(60)
    """
    process = launch(body)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.communicate(timeout=30)  # ends when the child has closed its side of the pipes
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    assert time.monotonic() < deadline


@pytest.mark.integration
def test_a_wrong_parent_is_refused() -> None:
    """A parent that ended before we looked is noticed."""
    status, _, err = finish(launch("async def entry(): return await neuron(parent=1234567)"))
    assert status == 2
    assert "process 1234567 is not the parent" in err


async def fail(error: Exception) -> None:
    raise error


async def forever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("cancelled")


async def test_of_loops_that_run_together_the_failure_of_one_ends_all() -> None:
    """As itself, not as a group: an operator's error stays one line."""
    ended: list[str] = []
    with pytest.raises(WalletError, match="no key"):
        await together(forever(ended), fail(WalletError("no key")), forever(ended))
    assert ended == ["cancelled"] * 2


async def test_a_bug_beside_an_operator_s_error_is_not_hidden() -> None:
    """Two errors of ours are one line; an error that is a bug is always shown."""
    with pytest.raises(WalletError):
        await together(fail(WalletError("a")), fail(WalletError("b")))
    with pytest.raises(ExceptionGroup) as caught:
        await together(fail(WalletError("a")), fail(ZeroDivisionError()))
    assert caught.group_contains(ZeroDivisionError)
