"""Simulated time: an event loop that never waits, but moves its clock to the next thing that is due."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

START = 1_700_000_000.0  # seconds since 1970 at which every simulation begins


class _NeverWaiting(selectors.DefaultSelector):
    """Moves the loop's clock where another selector would sleep."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            raise RuntimeError("every task waits for another: nothing can happen any more")
        self._advance(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose `time` starts at 0 and stands still while anything is computed."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_NeverWaiting(self._move))

    def time(self) -> float:
        return self._now

    def _move(self, seconds: float) -> None:
        self._now += seconds


class Inline(ThreadPoolExecutor):
    """Does at once, in the loop's thread, what `asyncio.to_thread` is asked for: results do not depend on threads."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # handed to whoever awaits it, as by a thread
            done.set_exception(error)
        return done


class VirtualClock:
    """The running loop's time as a `template.clock.Clock`."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def time(self) -> float:
        return START + self.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` in simulated time."""

    async def with_inline_threads() -> T:
        asyncio.get_running_loop().set_default_executor(Inline())
        return await main

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(with_inline_threads())
