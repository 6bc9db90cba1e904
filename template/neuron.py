"""The life of a neuron: start, supervised background tasks, graceful stop, exit status.

An entry point is thin:

    async def start() -> Ending:
        sections = parse({...}, prog="miner", description="...")
        set_up_logging(sections["logging"])
        return await run_neuron(lambda tasks: open_miner(sections, tasks), telemetry=..., config=sections["neuron"])

    if __name__ == "__main__":
        sys.exit(main(start))

`open_miner` is an async context manager: it opens resources, starts tasks with `tasks.start(...)` and yields. When the
neuron stops, its tasks are cancelled, the last started first, and then the context manager closes what it opened.

The first SIGINT or SIGTERM stops gracefully, within `close_seconds`; the second stops at once; the third kills.
"""

from __future__ import annotations

import asyncio
import ctypes
import enum
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from template.clock import Clock, SystemClock
from template.config import HelpRequested, option
from template.console import print_error, print_text
from template.errors import ConfigurationError, SubnetError, WalletError
from template.telemetry import Event, Telemetry

log = logging.getLogger(__name__)

ABANDON_SECONDS = 1.0  # what is left to a closing that was told to end at once
THREAD_SECONDS = 5.0  # what is left to threads after everything else has closed
PR_SET_PDEATHSIG = 1
NEVER_MENDED = (ConfigurationError, WalletError)  # errors that another try cannot mend


@dataclass(frozen=True, kw_only=True)
class NeuronConfig:
    """The life of the process."""

    close_seconds: float = option("seconds that a graceful stop may take", default=20.0)
    parent: int | None = option("stop when the process with this id, our parent, ends (Linux)", default=None)

    def __post_init__(self) -> None:
        if self.close_seconds < 0:
            raise ConfigurationError("neuron.close_seconds must not be negative")


@dataclass(frozen=True, kw_only=True)
class Restart:
    """How often a failed task is started again: at most `times`, after delays that double from the first one.

    A task that ran for `healthy_seconds` has its count of failures forgotten. Seconds throughout.
    """

    times: int
    first_delay: float = 1.0
    longest_delay: float = 60.0
    healthy_seconds: float = 600.0

    def delay(self, failures: int) -> float | None:
        """Seconds to wait after so many failures in a row (1, 2, ...); None: give up."""
        if failures > self.times:
            return None
        return float(min(self.longest_delay, self.first_delay * 2 ** min(failures - 1, 60)))


NEVER = Restart(times=0)


@dataclass(frozen=True, kw_only=True)
class TaskFailed(Event):
    """A background task raised. `restart_in` is in seconds; None: the neuron stops because of it."""

    task: str
    error: str
    traceback: str
    failures: int
    restart_in: float | None


@dataclass(frozen=True, kw_only=True)
class NeuronStopped(Event):
    """The neuron has closed. `seconds` from the wish to stop to the end."""

    ending: str
    seconds: float


class Ending(enum.Enum):
    """Why `run_neuron` returned, with the exit status of the process."""

    FINISHED = ("asked to stop by itself", 0)
    TERMINATED = ("SIGTERM", 0)  # a success for who sent it
    INTERRUPTED = ("SIGINT", 130)
    ABANDONED = ("closing did not end in time: something hangs", 1)

    @property
    def status(self) -> int:
        return self.value[1]


class Supervisor:
    """A neuron's background tasks. One that fails is recorded, and started again by its policy or ends the neuron."""

    def __init__(self, *, telemetry: Telemetry, clock: Clock) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self.failure: Exception | None = None
        self.stopping = asyncio.Event()

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]], restart: Restart = NEVER) -> None:
        """Run `work()` in the background until it returns; each restart calls it again.

        Raises:
            RuntimeError: the neuron is stopping.
        """
        if self.stopping.is_set():
            raise RuntimeError(f"task '{name}' started while the neuron stops")
        self._tasks.append(asyncio.create_task(self._supervise(name, work, restart), name=name))

    def stop(self) -> None:
        """Ask the neuron to stop; returns at once."""
        self.stopping.set()

    async def wait(self) -> None:
        """Return when the neuron is to stop.

        Raises:
            Exception: what a task raised that is not started again.
        """
        await self.stopping.wait()
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        """Cancel the tasks, the last started first, each when those after it have ended."""
        self.stopping.set()
        while self._tasks:
            task = self._tasks[-1]
            task.cancel()
            await asyncio.wait({task})
            self._tasks.pop()

    async def _supervise(self, name: str, work: Callable[[], Coroutine[Any, Any, None]], restart: Restart) -> None:
        failures = 0
        while True:
            began = self._clock.monotonic()
            try:
                await work()
                return
            except Exception as error:  # noqa: BLE001 - the edge of a loop: recorded with its traceback below
                healthy = self._clock.monotonic() - began >= restart.healthy_seconds
                failures = 1 if healthy else failures + 1
                delay = None if isinstance(error, NEVER_MENDED) else restart.delay(failures)
                self._record(name, error, failures, delay)
                if delay is None:
                    self._give_up(error)
                    return
            await self._clock.sleep(delay)

    def _record(self, name: str, error: Exception, failures: int, delay: float | None) -> None:
        then = "the neuron stops" if delay is None else f"starting it again in {delay:g} s"
        if isinstance(error, SubnetError):
            log.error("task '%s' failed: %s; %s", name, error, then)
        else:
            log.error("task '%s' failed; %s", name, then, exc_info=error)
        text = "".join(traceback.format_exception(error))
        self._telemetry.emit(
            TaskFailed(task=name, error=repr(error), traceback=text, failures=failures, restart_in=delay)
        )

    def _give_up(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.stopping.set()


async def together(*work: Coroutine[Any, Any, None]) -> None:
    """Run all of them until each has returned or one fails; then the others are cancelled.

    Raises:
        Exception: what failed, as itself; a group only of several failures that are not all of our own making.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            for one in work:
                tasks.create_task(one)
    except BaseExceptionGroup as group:
        ours = group.subgroup(SubnetError)
        if len(group.exceptions) > 1 and (ours is None or len(ours.exceptions) < len(group.exceptions)):
            raise
        raise group.exceptions[0] from None


async def run_neuron(
    start: Callable[[Supervisor], AbstractAsyncContextManager[Any]],
    *,
    telemetry: Telemetry,
    config: NeuronConfig,
    clock: Clock | None = None,
) -> Ending:
    """Open a neuron, run it until a signal, `stop()` or a failed task, and close it. In the main thread only.

    Raises:
        Exception: what `start` raised, or the task that ended the neuron. Everything has been closed by then.
    """
    if config.parent is not None:
        die_with_parent(config.parent)
    clock = clock or SystemClock()
    supervisor = Supervisor(telemetry=telemetry, clock=clock)
    opened = asyncio.Event()
    body = asyncio.create_task(_live(start, supervisor, opened), name="neuron")
    with _signals() as signals, _cancelled_with_us(body):
        await _first_of(body, asyncio.create_task(supervisor.stopping.wait()), asyncio.create_task(signals.first()))
        began = clock.monotonic()
        supervisor.stop()
        if not opened.is_set() and signals.received:
            body.cancel()  # still starting: there is nothing to wait for
        ended = await _close(body, signals, clock, config.close_seconds)
        ending = signals.ending() if ended else Ending.ABANDONED
        telemetry.emit(NeuronStopped(ending=ending.name, seconds=clock.monotonic() - began))
    if body.done() and not body.cancelled():
        body.result()
    elif supervisor.failure is not None and ended:
        raise supervisor.failure
    return ending


async def _live(
    start: Callable[[Supervisor], AbstractAsyncContextManager[Any]], supervisor: Supervisor, opened: asyncio.Event
) -> None:
    async with _closing(supervisor), start(supervisor):
        opened.set()
        async with _closing(supervisor):
            await supervisor.wait()


@asynccontextmanager
async def _closing(supervisor: Supervisor) -> AsyncIterator[None]:
    """End the tasks on the way out: before the resources close, and also those left by a start that failed."""
    try:
        yield
    finally:
        await supervisor.close()


@contextmanager
def _cancelled_with_us(body: asyncio.Task[None]) -> Iterator[None]:
    """Leaving early (we were cancelled) takes the body along."""
    try:
        yield
    finally:
        body.cancel()


async def _close(body: asyncio.Task[None], signals: _Signals, clock: Clock, seconds: float) -> bool:
    """Wait for the end; after the deadline or a second signal cut it short. False if it does not end even then."""
    await _first_of(body, asyncio.create_task(clock.sleep(seconds)), asyncio.create_task(signals.second()))
    if not body.done():
        log.warning("closing is cut short: %s", "second signal" if len(signals.received) > 1 else f"{seconds:g} s over")
        body.cancel()
        await asyncio.wait({body}, timeout=ABANDON_SECONDS)
    return body.done()


async def _first_of(body: asyncio.Task[None], *others: asyncio.Task[Any]) -> None:
    """Wait for any of them; the others are dropped, the body goes on."""
    try:
        await asyncio.wait({body, *others}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for other in others:
            other.cancel()


class _Signals:
    """SIGINT and SIGTERM as they arrive. Python-level handlers, so that the third works even if the loop is stuck."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._events = (asyncio.Event(), asyncio.Event())

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        count = len(self.received)
        if count > len(self._events):
            os._exit(128 + number)
        self._loop.call_soon_threadsafe(self._events[count - 1].set)

    async def first(self) -> None:
        await self._events[0].wait()

    async def second(self) -> None:
        await self._events[1].wait()

    def ending(self) -> Ending:
        if not self.received:
            return Ending.FINISHED
        return Ending.INTERRUPTED if self.received[0] == signal.SIGINT else Ending.TERMINATED


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Handle both signals while inside; the previous handlers come back."""
    signals = _Signals()
    previous = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main(entry: Callable[[], Coroutine[Any, Any, Ending]]) -> int:
    """Run an entry point and give the exit status of the process.

    0: ended, or stopped by SIGTERM; 1: a bug, with its traceback; 2: a `SubnetError`, as one line; 130: interrupted.
    A neuron that cannot be closed (a task or thread that hangs) is left behind, with status 1 if it was to be 0.
    """
    with asyncio.Runner() as runner:
        executor = ThreadPoolExecutor(thread_name_prefix="neuron")
        runner.get_loop().set_default_executor(executor)
        status, ended = _run(runner, entry)
        executor.shutdown(wait=False, cancel_futures=True)
        if not (ended and _threads_end(THREAD_SECONDS)):
            _leave_at_once(status or Ending.ABANDONED.status)
    return status


def _run(runner: asyncio.Runner, entry: Callable[[], Coroutine[Any, Any, Ending]]) -> tuple[int, bool]:
    """The exit status, and whether everything has ended."""
    try:
        ending = runner.run(entry())
    except HelpRequested as help_requested:
        print_text(str(help_requested))
        return 0, True
    except SubnetError as error:
        print_error(str(error))
        return 2, True
    except KeyboardInterrupt:
        return Ending.INTERRUPTED.status, True
    except Exception:  # noqa: BLE001 - the edge of the program: whatever arrives here is a bug
        traceback.print_exc()
        return 1, True
    return ending.status, ending is not Ending.ABANDONED


def _threads_end(seconds: float) -> bool:
    """Wait so long for threads that would keep the process; False if one is still there."""
    deadline = time.monotonic() + seconds
    kept = [t for t in threading.enumerate() if t is not threading.current_thread() and not t.daemon]
    for thread in kept:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in kept)


def _leave_at_once(status: int) -> None:
    """Leave without waiting for threads and tasks; buffers are flushed first."""
    print_error("closing did not end in time; what still ran was left behind")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent ends (Linux).

    The kernel watches the *thread* that started this process: start children from a thread that lives as long as
    they should.

    Args:
        parent: the id of the parent, so that a parent that ended before this call is noticed.

    Raises:
        ConfigurationError: not on Linux, or `parent` is not the parent of this process (any more).
    """
    if sys.platform != "linux":
        raise ConfigurationError("neuron.parent works on Linux only; leave it out and stop the neuron by a signal")
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        raise ConfigurationError(f"the kernel refused neuron.parent: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        raise ConfigurationError(f"process {parent} is not the parent of this process, or has ended")
