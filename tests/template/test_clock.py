"""The clock that tests move, against the machine's."""

from __future__ import annotations

import asyncio
import time

import pytest

from template.clock import Clock, ManualClock, SystemClock


async def move(clock: Clock, seconds: float) -> None:
    """Let the clock reach `seconds` from now, by hand or by waiting."""
    if isinstance(clock, ManualClock):
        await asyncio.sleep(0)
        await clock.advance(seconds)
    else:
        await asyncio.sleep(seconds)


@pytest.fixture(params=[SystemClock, ManualClock])
def clock(request: pytest.FixtureRequest) -> Clock:
    made: Clock = request.param()
    return made


async def test_sleepers_wake_in_order_of_their_deadlines(clock: Clock) -> None:
    """Not before their time, and the shorter sleep first, whichever began first."""
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        began = clock.monotonic()
        await clock.sleep(seconds)
        assert clock.monotonic() - began >= seconds - 1e-3
        woken.append(seconds)

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (0.06, 0.02, 0.0)]
    await move(clock, 0.12)
    await asyncio.gather(*tasks)
    assert woken == [0.0, 0.02, 0.06]


async def test_both_readings_advance_together(clock: Clock) -> None:
    """Seconds for deadlines and seconds for nonces are the same seconds."""
    monotonic, wall = clock.monotonic(), clock.time()
    await move(clock, 0.05)
    assert clock.monotonic() - monotonic == pytest.approx(clock.time() - wall, abs=0.02)
    assert clock.monotonic() - monotonic >= 0.049


async def test_the_manual_clock_stands_still() -> None:
    """Only `advance` moves it; a sleeper that sleeps again is woken in the same advance."""
    clock, ticks = ManualClock(start=100.0), []

    async def ticker() -> None:
        while True:
            await clock.sleep(1)
            ticks.append(clock.time())

    task = asyncio.create_task(ticker())
    await asyncio.sleep(0.01)
    assert ticks == []
    await clock.advance(3.5)
    assert ticks == [101.0, 102.0, 103.0]
    assert clock.time() == 103.5
    task.cancel()


async def test_a_cancelled_sleeper_is_passed_over() -> None:
    """A deadline that was called off does not break the ones after it."""
    clock = ManualClock()
    first, second = (asyncio.create_task(clock.sleep(s)) for s in (1, 2))
    await asyncio.sleep(0)
    first.cancel()
    await clock.advance(5)
    await asyncio.wait_for(second, 1)
    assert first.cancelled()


def test_the_system_clock_is_the_machines() -> None:
    """Epoch seconds, not an arbitrary start."""
    assert abs(SystemClock().time() - time.time()) < 1
