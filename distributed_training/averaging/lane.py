"""Blocking work beside the event loop: a thread that can be unblocked, and an async stream for use by a thread."""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from template.errors import AveragingError

if TYPE_CHECKING:
    from distributed_training.averaging.streams import Stream

T = TypeVar("T")


async def in_thread(work: Callable[[], T], unblock: Callable[[], None]) -> T:
    """Run blocking `work` in a thread of its own and return what it returns.

    When the caller is cancelled, `unblock` is called (in the loop's thread) and must make `work` end soon, returning or
    raising AveragingError: its end is awaited, so that nothing it uses is touched afterwards.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only where T is None

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - handed to the awaiting task, which raises it
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    _thread.start_new_thread(run, ())  # Thread.start would keep the event loop waiting until the thread runs
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        unblock()
        await asyncio.wait({future})
        error = None if future.cancelled() else future.exception()
        if error is None or isinstance(error, AveragingError):  # it was unblocked: that it failed is no news
            raise
        raise error from None  # it had failed by itself just before


class StreamLane:
    """The blocking side of any async stream: each call is run by the event loop."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._pending: set[concurrent.futures.Future[Any]] = set()
        self._aborted = False

    @property
    def sent(self) -> int:
        return self._stream.bytes_written

    @property
    def received(self) -> int:
        return self._stream.bytes_read

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        self._wait_for(self._stream.write(data))

    def receive_into(self, buffer: memoryview) -> None:
        buffer[:] = self._wait_for(self._stream.readexactly(len(buffer)))

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            pending = list(self._pending)
        for future in pending:
            future.cancel()
        self._stream.abort()

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._aborted:
                work.close()
                raise AveragingError("the stream was dropped")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._pending.add(future)
        try:
            return future.result()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            raise AveragingError("the stream was dropped") from None
        finally:
            with self._lock:
                self._pending.discard(future)
