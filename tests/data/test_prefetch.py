"""Reading ahead: the same batches as without, before they are asked for, and no outage blocks anybody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from test_loader import DOCUMENTS, SPEC

from distributed_training.data.loader import Loader, MicroBatch
from distributed_training.data.prefetch import BatchWaited, Prefetch, PrefetchConfig
from distributed_training.data.source import MemorySource, Piece
from distributed_training.data.tokenizer import ByteTokenizer
from distributed_training.data.tokens import Tokenized
from template.errors import ConfigurationError, SourceBusy, SourceUnavailable
from template.telemetry import MemorySink, Telemetry

UID = 1
CONFIG = PrefetchConfig(ahead=2, readers=2, next_epoch=1, patience=0.05)


class Gate(MemorySource):
    """A source that reads only while its gate is open, or fails; `reads` are the pages in the order of reading."""

    def __init__(self) -> None:
        super().__init__(DOCUMENTS, SPEC.page_size)
        self.open = threading.Event()
        self.open.set()
        self.broken = threading.Event()
        self.reads: list[int] = []

    def read(self, page: int) -> tuple[Piece, ...]:
        self.reads.append(page)
        assert self.open.wait(20)
        if self.broken.is_set():
            raise SourceUnavailable("down")
        return super().read(page)

    def close(self) -> None:
        self.open.set()


@pytest.fixture
def gate() -> Gate:
    return Gate()


def loader_of(gate: Gate) -> Loader:
    return Loader(SPEC, "loader-0123456789ab", Tokenized(gate, ByteTokenizer()))


@contextmanager
def prefetching(gate: Gate, sink: MemorySink | None = None, config: PrefetchConfig = CONFIG) -> Iterator[Prefetch]:
    with Prefetch(loader_of(gate), UID, config, telemetry=Telemetry([sink] if sink else [])) as prefetch:
        yield prefetch


def ask(prefetch: Prefetch, epoch: int, number: int) -> MicroBatch | None:
    """As a worker asks: again, as long as it is busy."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            return prefetch(epoch, number)
        except SourceBusy:
            continue
    raise AssertionError("never came")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def same(one: MicroBatch | None, other: MicroBatch) -> bool:
    assert one is not None
    return (one.number, one.pages) == (other.number, other.pages) and np.array_equal(one.input_ids, other.input_ids)


@pytest.mark.parametrize("readers", [1, 3])
def test_batches_are_those_of_the_loader(gate: Gate, readers: int) -> None:
    """In every epoch, and None at its end; whatever number a worker begins with after a restart."""
    alone = loader_of(gate)
    with prefetching(gate, config=PrefetchConfig(ahead=3, readers=readers, next_epoch=2)) as prefetch:
        for epoch, number in [(0, 0), (0, 1), (1, 1), (5, 0), (5, 1), (6, 0), (2, 1)]:
            assert same(ask(prefetch, epoch, number), alone.micro_batch(epoch, UID, number))
        assert prefetch(6, 2) is None


def test_what_comes_next_is_read_beforehand(gate: Gate) -> None:
    """The rest of the epoch and the beginning of the next one lie ready when they are asked for."""
    with prefetching(gate) as prefetch:
        ask(prefetch, 0, 0)
        until(lambda: len(gate.reads) == 9)  # (0, 0), (0, 1), (1, 0): three pages each
        gate.open.clear()
        assert prefetch(0, 1) is not None
        assert prefetch(1, 0) is not None
        gate.open.set()


def test_a_batch_that_is_not_there_is_busy(gate: Gate) -> None:
    """The caller gets its thread back soon, and the batch later; the wait is told and counted."""
    sink = MemorySink()
    gate.open.clear()
    with prefetching(gate, sink, PrefetchConfig(ahead=1, next_epoch=0, patience=0.01, noticed=0.02)) as prefetch:
        for _ in range(5):
            with pytest.raises(SourceBusy):
                prefetch(0, 0)
        gate.open.set()
        assert ask(prefetch, 0, 0) is not None
        (record,) = sink.records
        assert record["kind"] == BatchWaited.__name__
        assert record["seconds"] == prefetch.waited_seconds >= 0.05


def test_an_outage_is_passed_on_and_ends(gate: Gate) -> None:
    """It is raised where the batch is wanted, and the next call reads anew."""
    gate.broken.set()
    with prefetching(gate) as prefetch:
        for _ in range(3):
            with pytest.raises(SourceUnavailable, match="down"):
                ask(prefetch, 0, 0)
        gate.broken.clear()
        assert ask(prefetch, 0, 0) is not None


def test_what_failed_beforehand_is_read_again(gate: Gate) -> None:
    """A batch whose reading failed while nobody waited for it is no outage when the source is back."""
    with prefetching(gate) as prefetch:
        gate.broken.set()
        with pytest.raises(SourceUnavailable):
            ask(prefetch, 0, 0)
        until(lambda: all(future.done() for future in prefetch._reading.values()))
        gate.broken.clear()
        assert ask(prefetch, 0, 1) is not None
        assert ask(prefetch, 1, 0) is not None


def test_reading_ahead_is_bounded(gate: Gate) -> None:
    """Another epoch drops what was read for the one before."""
    with prefetching(gate) as prefetch:
        for epoch in (0, 7, 3):
            ask(prefetch, epoch, 0)
            assert set(prefetch._reading) == {(epoch, 1), (epoch + 1, 0)}


def test_closing_ends_reading(gate: Gate) -> None:
    """Also of a source that does not answer."""
    gate.open.clear()
    with prefetching(gate) as prefetch, pytest.raises(SourceBusy):
        prefetch(0, 0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("corpus")]


@pytest.mark.parametrize("wrong", [{"ahead": 0}, {"readers": 0}, {"ahead": 1, "next_epoch": 2}])
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    """They would read nothing."""
    with pytest.raises(ConfigurationError):
        PrefetchConfig(**wrong)
