"""A sandbox's process seen from outside: three pipes with deadlines, and its certain end.

Nothing here waits without a limit, and nothing keeps more of what the process writes than was asked for: of its answers
as many bytes as the caller expects, of what it prints the last few thousand, up to a limit that ends it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, NoReturn

from distributed_training.arena.sandbox.wire import Body
from template.clock import Clock
from template.errors import SandboxUnavailable, SubmissionError

_PIPE = 1 << 20  # bytes, the largest that a pipe may have without privileges
_CHUNK = 1 << 16
_TAIL = 2000  # characters of what it printed that a message shows
_GRACE = 10.0  # seconds for the kernel to end a process that was killed
PATIENCE = 10.0  # seconds for the status of a process that ended, and for what it printed before


@dataclass(frozen=True)
class Launch:
    """What to start. With a `lifeline` the number of a descriptor is added to the command, at whose end it stops all;
    without one, killing the command does."""

    command: tuple[str, ...]
    lifeline: bool


class Process:
    """A running sandbox; a context manager that ends it with all that it started."""

    def __init__(self, launch: Launch, output: int, clock: Clock, patience: float = PATIENCE) -> None:
        """Start it; `output` is how many bytes it may print. One that closes its pipe has `patience` seconds to end.

        Raises:
            SandboxUnavailable: there is no such program.
        """
        self._clock, self._most, self._patience = clock, output, patience
        self._printed, self._tail = 0, b""
        theirs, self._lifeline = os.pipe()
        self._kill_directly = not launch.lifeline
        try:
            self._process = _started(launch, theirs)
        except OSError as error:
            os.close(self._lifeline)
            raise SandboxUnavailable(f"{launch.command[0]} cannot be started: {error.strerror}") from error
        finally:
            os.close(theirs)
        self._streams = _streams(self._process)
        self._requests, self._answers, errors = (stream.fileno() for stream in self._streams)
        self._errors: int | None = errors
        for pipe in (self._requests, self._answers, errors):
            os.set_blocking(pipe, False)
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(PermissionError):  # many pipes of one user: these stay as they are
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def printed(self) -> str:
        """The end of what it printed."""
        return self._tail.decode(errors="replace")[-_TAIL:].strip()

    def write(self, parts: Sequence[Body], deadline: float) -> None:
        """Send all of it, until `deadline` on the clock.

        Raises:
            SubmissionError: late, ended, or too much printed meanwhile.
        """
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                self._wait(self._requests, select.POLLOUT, deadline)
                try:
                    view = view[os.write(self._requests, view[:_PIPE]) :]
                except BrokenPipeError:
                    self._ended()

    def read(self, size: int, deadline: float) -> bytearray:
        """The next `size` bytes of its answers; raises as `write` does."""
        body = bytearray(size)
        view = memoryview(body)
        while view:
            self._wait(self._answers, select.POLLIN, deadline)
            count = os.readv(self._answers, [view[:_PIPE]])
            if not count:
                self._ended()
            view = view[count:]
        return body

    def close(self) -> None:
        """Kill it and wait until all of its processes are gone; it may be called again."""
        if self._lifeline < 0:
            return
        if self._kill_directly:
            self._process.kill()
        else:
            self._touch()
        os.close(self._lifeline)
        self._lifeline = -1
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its first process dies with it
            self._process.wait(_GRACE)
        for stream in self._streams:
            stream.close()

    def _touch(self) -> None:
        """A process that was forked off this one may still hold the other end: closing alone would not be seen."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._lifeline, b"x")

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        """Until `pipe` is ready, taking in what is printed meanwhile."""
        while True:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise SubmissionError(
                    "the submission did not answer in time (limits.answer, or limits.wall for all of the run)",
                    reason="late",
                )
            poll = select.poll()
            poll.register(pipe, event)
            if self._errors is not None:
                poll.register(self._errors, select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll(1000 * left)}
            if self._errors in ready:
                self._take_output()
            if pipe in ready:
                return

    def _take_output(self) -> None:
        assert self._errors is not None
        chunk = os.read(self._errors, _CHUNK)
        if not chunk:
            self._errors = None
        self._printed += len(chunk)
        self._tail = (self._tail + chunk)[-4 * _TAIL :]
        if self._printed > self._most:
            raise SubmissionError(f"the submission printed more than {self._most} bytes", reason="output")

    def _ended(self) -> NoReturn:
        """Raises SubmissionError with its status and last words."""
        try:
            status = _told(self._process.wait(self._patience))
            self._last_words()
        except subprocess.TimeoutExpired:
            status = "closed its pipe"
        raise SubmissionError(
            f"the submission's process {status}: {self.printed or 'it printed nothing'}", reason="ended"
        )

    def _last_words(self) -> None:
        deadline = self._clock.monotonic() + self._patience
        while self._errors is not None and (left := deadline - self._clock.monotonic()) > 0:
            if select.select([self._errors], [], [], left)[0]:
                self._take_output()


def _started(launch: Launch, lifeline: int) -> subprocess.Popen[bytes]:
    """With pipes, without a variable of this process's environment, in a session of its own."""
    command, passed = list(launch.command), tuple[int, ...]()
    if launch.lifeline:
        command, passed = [*command, str(lifeline)], (lifeline,)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        bufsize=0,
        pass_fds=passed,
        env={},
        cwd="/",
        start_new_session=True,
    )


def _streams(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    """Its standard streams, all of which are pipes."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdin, process.stdout, process.stderr


def _told(status: int) -> str:
    """A status as a shell has it, or as a Popen has it, in words."""
    number = -status if status < 0 else status - 128
    if number == signal.SIGKILL:
        return "was ended by SIGKILL, as when its CPU-seconds are used up or the machine's memory is"
    if number in set(signal.Signals):
        return f"was ended by {signal.Signals(number).name}"
    return f"ended with status {status}"
