"""Patience with a store that fails: bounded in tries and time, and no bytes but the right ones."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from distributed_training.data.store import FolderStore, Patience, Patient, SourceRetried
from distributed_training.services.retry import RetryPolicy, Transient
from template.errors import ConfigurationError, SourceUnavailable
from template.telemetry import MemorySink, Telemetry

POLICY = RetryPolicy(tries=4, first_delay=1.0, longest_delay=3.0, longest_retry_after=50.0)


class Time:
    """A clock that waiting moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 + self.now

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a store is read by threads")

    def pause(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        return False


class Failing:
    """A store that fails as told before it answers; each call takes a second."""

    where = "afar"

    def __init__(self, time: Time, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0
        self._time = time

    def whole(self, name: str, limit: int) -> bytes:
        self.calls += 1
        self._time.now += 1.0
        if self.failures:
            raise self.failures.pop(0)
        return b"answer"

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self.whole(name, 0)[start:stop]

    def tail(self, name: str, count: int) -> tuple[bytes, int]:
        return self.whole(name, 0)[-count:], 6

    def close(self) -> None:
        return


@pytest.fixture
def time() -> Time:
    return Time()


def patient(store: Failing, time: Time, sink: MemorySink | None = None, **changes: float) -> Patient:
    patience = Patience(policy=POLICY, **{"seconds": 100.0, "rest": 60.0, **changes})
    telemetry = Telemetry([sink] if sink else [])
    return Patient(store, patience, telemetry=telemetry, clock=time, pause=time.pause, jitter=lambda: 1.0)


def test_failures_are_ridden_out_and_told(time: Time) -> None:
    """Every kind of read comes through; each wait doubles up to the longest and is an event with its reason."""
    sink = MemorySink()
    store = Failing(time, *[Transient("HTTP 503")] * 3)
    assert patient(store, time, sink).read("a", 1, 3) == b"ns"
    assert time.waits == [1.0, 2.0, 3.0]
    assert [(r["kind"], r["tried"], r["reason"]) for r in sink.records] == [
        (SourceRetried.__name__, i, "HTTP 503") for i in (1, 2, 3)
    ]
    assert patient(Failing(time, Transient("x")), time).tail("a", 2) == (b"er", 6)
    assert patient(Failing(time, Transient("x")), time).whole("a", 9) == b"answer"


def test_tries_are_bounded(time: Time) -> None:
    """After the policy's tries it is an outage, with the last reason."""
    store = Failing(time, *[Transient(f"reason {i}") for i in range(9)])
    with pytest.raises(SourceUnavailable, match="afar was tried 4 times in 10 s in vain: reason 3"):
        patient(store, time).whole("a", 9)
    assert store.calls == 4


def test_time_is_bounded(time: Time) -> None:
    """No try begins that would begin after the time is over."""
    store = Failing(time, *[Transient("slow")] * 9)
    with pytest.raises(SourceUnavailable, match="3 times"):
        patient(store, time, seconds=6.5).whole("a", 9)
    assert time.now <= 6.5


def test_what_cannot_be_mended_is_not_tried_again(time: Time) -> None:
    """A file that is not there will not be there in a second."""
    store = Failing(time, SourceUnavailable("HTTP 404"))
    with pytest.raises(SourceUnavailable, match="404"):
        patient(store, time).whole("a", 9)
    assert (store.calls, time.waits) == (1, [])


def test_servers_wish_to_wait_is_honoured(time: Time) -> None:
    """Up to a bound; a server that asks for an hour is left alone."""
    assert patient(Failing(time, Transient("429", retry_after=20.0)), time).whole("a", 9) == b"answer"
    assert time.waits == [20.0]
    with pytest.raises(SourceUnavailable):
        patient(Failing(time, Transient("429", retry_after=3600.0)), time).whole("a", 9)


def test_after_giving_up_each_call_tries_once(time: Time) -> None:
    """Whoever has many pages to read learns at once that the source is away, and at once that it is back."""
    store = Failing(time, *[Transient("down")] * 6)
    reader = patient(store, time)
    for calls in (4, 5, 6):
        with pytest.raises(SourceUnavailable):
            reader.whole("a", 9)
        assert store.calls == calls
    assert reader.whole("a", 9) == b"answer"
    store.failures = [Transient("again"), Transient("again")]
    assert reader.whole("a", 9) == b"answer"


def test_rest_ends(time: Time) -> None:
    """After a while it is tried as long as before."""
    store = Failing(time, *[Transient("down")] * 6)
    reader = patient(store, time)
    with pytest.raises(SourceUnavailable):
        reader.whole("a", 9)
    time.now += 61.0
    assert reader.whole("a", 9) == b"answer"


def test_closing_ends_waiting(time: Time) -> None:
    """A neuron that stops does not wait for the end of an outage: real threads, real time."""
    store = Failing(time, *[Transient("down")] * 9)
    reader = Patient(store, Patience(policy=RetryPolicy(tries=9, first_delay=50.0), seconds=500.0))
    failed: list[BaseException] = []

    def read() -> None:
        try:
            reader.whole("a", 9)
        except SourceUnavailable as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    reader.close()
    thread.join(20)
    assert not thread.is_alive()
    assert "closed" in str(failed[0])
    with pytest.raises(SourceUnavailable, match="closed"):
        reader.whole("a", 9)


def test_impossible_patience_is_refused() -> None:
    """It would never read, or never give up."""
    for wrong in ({"seconds": 0.0}, {"rest": -1.0}):
        with pytest.raises(ConfigurationError):
            Patience(**wrong)


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    (tmp_path / "a").write_bytes(b"0123456789")
    return FolderStore(tmp_path)


def test_folder_gives_ranges(folder: FolderStore) -> None:
    """The bytes asked for, the end of a file with its size, and all of it."""
    assert folder.read("a", 2, 5) == b"234"
    assert folder.tail("a", 3) == (b"789", 10)
    assert folder.tail("a", 30) == (b"0123456789", 10)
    assert folder.whole("a", 10) == b"0123456789"


def test_folder_never_gives_other_bytes(folder: FolderStore) -> None:
    """A short file, a large one and none are errors."""
    with pytest.raises(SourceUnavailable, match="shorter"):
        folder.read("a", 5, 11)
    with pytest.raises(SourceUnavailable, match="larger than 9"):
        folder.whole("a", 9)
    for read in (lambda: folder.tail("b", 1), lambda: folder.whole("b", 1)):
        with pytest.raises(SourceUnavailable, match="cannot be read"):
            read()
