"""Runs an engine in a thread of its own, so that the event loop beside it always answers.

The thread trains micro-batch after micro-batch; between two of them it does what it was asked: contribute, advance,
pause, or any function of the engine. It therefore never shares the engine. In a run with overlap it goes on with the
next epoch when this one's contribution is set aside or its pages are used up. A failed request goes to whoever asked
and changes nothing; a failure of training itself ends the thread, and `watch` raises it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from distributed_training.averaging.feedback import Attempt
from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.model.layout import Vector
from template.clock import Clock, SystemClock
from template.errors import ConfigurationError, SourceBusy, SourceUnavailable, StateError
from template.telemetry import Event, Telemetry

T = TypeVar("T")
NextBatch = Callable[[int, int], MicroBatch | None]  # (epoch, number); None: nothing is left of this epoch


@dataclass(frozen=True, kw_only=True)
class MicroBatchTrained(Event):
    """One forward and backward pass."""

    epoch: int
    number: int
    samples: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class TrainingWaits(Event):
    """The data source cannot be read now; it is asked again after `retry_seconds`."""

    epoch: int
    number: int
    reason: str
    retry_seconds: float


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """`retry_seconds` between two tries of a source that is down; `close_seconds` for the last micro-batch to end."""

    retry_seconds: float = 5.0
    close_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.retry_seconds <= 0 or self.close_seconds <= 0:
            raise ConfigurationError("retry_seconds and close_seconds must be positive")


@dataclass(frozen=True)
class _Request:
    """A function of the engine, and where its result goes."""

    function: Callable[[Engine], Any]
    result: Future[Any]


class TrainingWorker:
    """The asyncio side of a training thread. Use as `async with TrainingWorker(...) as worker`; starts paused.

    Leaving the block raises a failure of the training that `watch` did not give to anybody.
    """

    def __init__(
        self,
        engine: Engine,
        next_batch: NextBatch,
        *,
        telemetry: Telemetry | None = None,
        config: WorkerConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._engine = engine
        self._next_batch = next_batch
        self._telemetry = telemetry or Telemetry()
        self._config = config or WorkerConfig()
        self._clock = clock or SystemClock()
        self._started = self._clock.monotonic()
        self._busy = 0.0
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._paused = True
        self._closing = False
        self._told = False  # whether somebody was given the failure of the training
        self._ended: asyncio.Future[None]
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> Self:
        if self._thread is not None:
            raise StateError("a training worker is used once")
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, name="training", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
        if error is None and not self._told and (failure := self._failure()) is not None:
            raise failure

    @property
    def busy_seconds(self) -> float:
        """Seconds that went into micro-batches since the start, up to the last one that ended."""
        return self._busy

    @property
    def idle_seconds(self) -> float:
        """Seconds since the start that did not: paused, out of pages, waiting for data, or answering requests."""
        return self._clock.monotonic() - self._started - self._busy

    async def resume(self) -> None:
        """Train from now on."""
        await self.run(lambda _: self._set_paused(False))

    async def pause(self) -> None:
        """Return once no micro-batch is being trained, and train none until `resume`."""
        await self.run(lambda _: self._set_paused(True))

    async def set_aside(self) -> Contribution:
        """The engine's contribution at the next micro-batch boundary; raises StateError if nothing was trained.

        In a run with overlap it is fixed from now on, and training goes on with the next epoch at once.
        """
        return await self.run(lambda engine: engine.set_aside())

    async def apply(self, average: Vector, attempt: Attempt | None = None) -> None:
        """End the epoch with `average` [P], sent by `attempt`; raises and changes nothing as `Engine.apply` does.

        The new state is computed beside the training, which only waits for it to be taken over. Nobody else may change
        the state meanwhile.
        """
        state = await asyncio.to_thread(self._engine.next_state, average)
        await self.run(lambda engine: engine.advance(state, attempt))

    async def run(self, function: Callable[[Engine], T]) -> T:
        """The result of `function(engine)`, called in the training thread between two micro-batches.

        Raises:
            StateError: the thread has ended.
            whatever the function raises.
        """
        if self._thread is None or self._closing or self._ended.done():
            raise StateError("the training worker is not running")
        request = _Request(function, Future())
        self._requests.put(request)
        answer: asyncio.Future[T] = asyncio.wrap_future(request.result)
        try:
            either: set[asyncio.Future[Any]] = {answer, self._ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise StateError("training ended before it could answer") from self._failure()
        finally:
            request.result.cancel()  # a caller that gave up must not have its update applied later
            answer.cancel()

    async def watch(self) -> None:
        """Return when the worker is closed; raise what ended the training if it was not."""
        if self._thread is None:
            raise StateError("the training worker was never started")
        await asyncio.wait({self._ended})
        if (failure := self._failure()) is not None:
            self._told = True
            raise failure

    async def close(self) -> None:
        """End after the micro-batch in progress. A failure of the training is raised by `watch`.

        Raises:
            StateError: the thread did not end in `close_seconds`.
        """
        if self._thread is None:
            return
        self._closing = True
        self._requests.put(_Request(lambda _: None, Future()))  # wakes a waiting thread
        done, _ = await asyncio.wait({self._ended}, timeout=self._config.close_seconds)
        if not done:
            raise StateError(f"the training thread did not end within {self._config.close_seconds} s")
        self._thread.join()  # it has nothing left to do

    def _set_paused(self, value: bool) -> None:
        self._paused = value

    def _failure(self) -> BaseException | None:
        return self._ended.exception() if self._ended.done() else None

    # What follows runs in the training thread.

    def _main(self) -> None:
        error: Exception | None = None
        try:
            while not self._closing:
                self._serve(self._advance())
        except Exception as caught:  # noqa: BLE001  # the edge of the loop: `watch` raises it with its traceback
            error = caught
        self._post(self._end, error)

    def _advance(self) -> float | None:
        """Train one micro-batch if there is one; seconds that may pass before the next try, None for no limit."""
        if self._paused:
            return None
        started = self._clock.monotonic()
        work = self._engine.in_training
        try:
            batch = self._next_batch(work.epoch, work.next_number)
        except SourceBusy:
            return 0.0  # the source has waited a little itself; whoever asked for something comes first
        except SourceUnavailable as error:
            pause = self._config.retry_seconds
            self._emit(TrainingWaits(epoch=work.epoch, number=work.next_number, reason=str(error), retry_seconds=pause))
            return pause
        if batch is None:
            return 0.0 if self._engine.go_ahead() else None
        record = self._engine.train(batch)
        self._busy += self._clock.monotonic() - started
        self._emit(MicroBatchTrained(epoch=work.epoch, number=record.number, samples=record.samples, loss=record.loss))
        return 0.0

    def _serve(self, seconds: float | None) -> None:
        """Answer the requests that are there, having waited at most `seconds` for the first one."""
        try:
            request = self._requests.get(block=seconds != 0.0, timeout=seconds or None)
            while True:
                self._answer(request)
                request = self._requests.get_nowait()
        except queue.Empty:
            return

    def _answer(self, request: _Request) -> None:
        if not request.result.set_running_or_notify_cancel():
            return
        try:
            result = request.function(self._engine)
        except Exception as error:  # noqa: BLE001  # the edge of the loop: raised again where it was asked for
            request.result.set_exception(error)
        else:
            request.result.set_result(result)

    def _emit(self, event: Event) -> None:
        self._post(self._telemetry.emit, event)

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call in the event loop's thread; a loop that is closed has nobody left to tell."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _end(self, error: Exception | None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
