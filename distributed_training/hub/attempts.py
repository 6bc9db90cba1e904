"""Trying a step of a hub on the network several times: the one loop in which all such hubs wait and give up.

A client's call is one try: it returns, raises `Transient` (another try may succeed), or a HubError (it gives the
same). Every try that failed is told to telemetry with its reason; the last one ends in HubUnavailable.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TypeVar

from distributed_training.hub.events import PublishRetried, ReadRetried
from distributed_training.services.retry import RetryPolicy, Transient
from template.clock import Clock
from template.errors import HubError, HubUnavailable
from template.telemetry import Event, Telemetry

T = TypeVar("T")
Retried = Callable[[str, int, float, str], Event]  # step, tried, delay, reason


class Attempts:
    """Carries out the steps of the hub `url`. `call_seconds` bounds one try; `jitter` gives numbers in [0, 1)."""

    def __init__(
        self,
        url: str,
        *,
        policy: RetryPolicy,
        call_seconds: float,
        telemetry: Telemetry,
        clock: Clock,
        jitter: Callable[[], float],
    ) -> None:
        self._url = url
        self._policy = policy
        self._call_seconds = call_seconds
        self._telemetry = telemetry
        self._clock = clock
        self._jitter = jitter

    async def read(self, step: str, call: Callable[[], T]) -> T:
        """A step of reading. Raises HubUnavailable, or what the call refuses for good."""
        return await self._try(step, call, self._read_retried, self._call_seconds)

    async def download(self, step: str, call: Callable[[], T]) -> T:
        """A step that writes a file and bounds itself in time: two at once would write the same file."""
        return await self._try(step, call, self._read_retried, None)

    async def write(self, epoch: int, step: str, call: Callable[[], T]) -> T:
        """A step of publishing or removing the release of `epoch`; raises as `read` does."""
        return await self._try(step, call, functools.partial(self._write_retried, epoch), self._call_seconds)

    async def once(self, call: Callable[[], T]) -> T | None:
        """One try after a step has failed for good, to find out or to tidy; None if it fails, too: that step's error
        is the one to tell.
        """
        try:
            return await asyncio.wait_for(asyncio.to_thread(call), self._call_seconds)
        except (Transient, HubError, TimeoutError):
            return None

    def _read_retried(self, step: str, tried: int, delay: float, reason: str) -> Event:
        return ReadRetried(hub=self._url, step=step, tried=tried, delay=delay, reason=reason)

    def _write_retried(self, epoch: int, step: str, tried: int, delay: float, reason: str) -> Event:
        return PublishRetried(hub=self._url, epoch=epoch, step=step, tried=tried, delay=delay, reason=reason)

    async def _try(self, step: str, call: Callable[[], T], retried: Retried, limit: float | None) -> T:
        """Call in a thread, at most `limit` seconds a time, until it returns, is refused for good or tries run out.

        A call that outlives its limit goes on in its thread until the client's own timeouts end it, and nothing waits
        for it. All it can still do is finish its own step, and every step may be done twice.
        """
        for tried in range(1, self._policy.tries + 1):
            asked: float | None = None
            try:
                return await asyncio.wait_for(asyncio.to_thread(call), limit)
            except TimeoutError:
                reason = f"no end within {limit} s"
            except Transient as failure:
                reason, asked = str(failure), failure.retry_after
            delay = self._policy.delay(tried, self._jitter(), asked)
            if delay is None:
                raise HubUnavailable(f"{self._url}: {step} failed {tried} times, last: {reason}")
            self._telemetry.emit(retried(step, tried, delay, reason))
            await self._clock.sleep(delay)
        raise AssertionError("the policy gives up at its last try")
