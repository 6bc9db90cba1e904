"""Reads the micro-batches of one miner ahead of its training, so that training does not wait for a network.

What is read ahead is what the assignment says comes next: the rest of this epoch, and the beginning of the next one,
because an epoch may end at any time. Nothing of it is state: after a restart the same numbers give the same batches.
"""

from __future__ import annotations

import concurrent.futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from distributed_training.data.loader import Loader, MicroBatch
from template.clock import Clock, SystemClock
from template.errors import ConfigurationError, SourceBusy, SourceUnavailable
from template.telemetry import Event, Telemetry

_Key = tuple[int, int]  # epoch, number


@dataclass(frozen=True, kw_only=True)
class BatchWaited(Event):
    """Training waited for a micro-batch longer than it takes to notice: data is slower than training."""

    epoch: int
    number: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PrefetchConfig:
    """`ahead` micro-batches are read before they are needed, by `readers` threads; `next_epoch` of them of the epoch
    after this one. `patience`: seconds that one call waits for a batch; waits longer than `noticed` are told.
    """

    ahead: int = 8
    readers: int = 2
    next_epoch: int = 2
    patience: float = 0.2
    noticed: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.ahead <= 1024 or not 1 <= self.readers <= 64 or not 0 <= self.next_epoch <= self.ahead:
            raise ConfigurationError(
                "a corpus is read 1 to 1024 micro-batches ahead, by 1 to 64 threads, and no more of the next epoch"
            )


class Prefetch:
    """The micro-batches of `uid`, as a training worker asks for them. One caller; use as a context manager."""

    def __init__(
        self,
        loader: Loader,
        uid: int,
        config: PrefetchConfig | None = None,
        *,
        telemetry: Telemetry | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._loader = loader
        self._uid = uid
        self._config = config or PrefetchConfig()
        self._telemetry = telemetry or Telemetry()
        self._clock = clock or SystemClock()
        self._pool = ThreadPoolExecutor(self._config.readers, thread_name_prefix="corpus")
        self._reading: dict[_Key, Future[MicroBatch]] = {}
        self._asked: tuple[_Key, float] | None = None  # what the caller waits for, and since when
        self.waited_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all reading; the loader is closed with it."""
        self._loader.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, epoch: int, number: int) -> MicroBatch | None:
        """Micro-batch `number` of the epoch; None if no more are assigned.

        Raises:
            SourceBusy: it is still being read; ask again.
            SourceUnavailable: it could not be read; the next call tries anew.
            DataError: the text is not what the source promises.
        """
        if number >= self._loader.micro_batches_per_epoch:
            return None
        key = (epoch, number)
        self._ask(key)
        self._read_ahead(key)
        try:
            batch = self._reading[key].result(self._config.patience)
        except concurrent.futures.TimeoutError:
            raise SourceBusy(f"micro-batch {number} of epoch {epoch} is still being read") from None
        except SourceUnavailable:
            del self._reading[key]
            raise
        del self._reading[key]
        self._tell_wait(key)
        return batch

    def _ask(self, key: _Key) -> None:
        """Begin to wait. What failed before anybody waited for it is read anew: the source may be back."""
        if self._asked is not None and self._asked[0] == key:
            return
        self._asked = (key, self._clock.monotonic())
        future = self._reading.get(key)
        if future is not None and future.done() and future.exception() is not None:
            del self._reading[key]

    def _read_ahead(self, key: _Key) -> None:
        wanted = self._window(*key)
        for gone in self._reading.keys() - set(wanted):
            self._reading.pop(gone).cancel()
        for one in wanted:
            if one not in self._reading:
                self._reading[one] = self._pool.submit(self._loader.micro_batch, one[0], self._uid, one[1])

    def _window(self, epoch: int, number: int) -> list[_Key]:
        """What is wanted now, the most urgent first."""
        last, ahead = self._loader.micro_batches_per_epoch, self._config.ahead
        here = [(epoch, n) for n in range(number, min(number + ahead, last))]
        beyond = max(ahead - len(here), self._config.next_epoch)
        return here + [(epoch + 1, n) for n in range(min(beyond, last))]

    def _tell_wait(self, key: _Key) -> None:
        assert self._asked is not None, "set by the call"
        seconds = self._clock.monotonic() - self._asked[1]
        self._asked = None
        self.waited_seconds += seconds
        if seconds > self._config.noticed:
            self._telemetry.emit(BatchWaited(epoch=key[0], number=key[1], seconds=seconds))
