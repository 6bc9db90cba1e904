"""The fault table as tests: a few of its cells each time, all of it and the churn with the slow tests."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio
from rich.progress import Progress

from tests.faults import churn
from tests.faults.cells import COUNT, cell_named, cells, play
from tests.faults.crowd import Crowd
from tests.faults.table import markdown

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Crowd]:
    """The processes, which stay from cell to cell; those that a cell kills are replaced."""
    async with Crowd(tmp_path_factory.mktemp("crowd"), range(COUNT)) as members:
        yield members


@pytest.mark.parametrize(
    "name",
    [
        "SIGKILL CONNECT reducer direct",
        "SIGKILL EXCHANGE reducer direct",
        "SIGKILL EXCHANGE sender libp2p",
        "SIGSTOP EXCHANGE reducer libp2p",
        "SIGSTOP EXCHANGE sender direct",
        "SIGSTOP COMMIT sender direct",
        "sends NaN EXCHANGE sender direct",
        "wrong size CONNECT direct",
        "wrong group: other members CONNECT direct",
        "two leaders, torn CONNECT direct",
        "partition CONNECT direct",
    ],
)
async def test_a_cell_keeps_its_promise(crowd: Crowd, name: str) -> None:
    """Ends in time, names the culprit alone, one average or none, and the next round succeeds."""
    row = await play(crowd, cell_named(name), busy=True)
    assert row.broken == [], (row.named, row.spent)


async def test_the_daemon_does_not_outlive_the_neuron(crowd: Crowd) -> None:
    """Not even when the neuron is killed without a chance to clean up."""
    await crowd.mend()  # whom the last cell left dead
    neuron = crowd.members[COUNT - 1]
    assert _runs(neuron.daemon)
    neuron.fit = False
    neuron.process.send_signal(signal.SIGKILL)
    async with asyncio.timeout(10):
        while _runs(neuron.daemon):  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(0.05)
    await crowd.mend()


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_all_cells_keep_their_promises(crowd: Crowd) -> None:
    """The whole table."""
    rows = [await play(crowd, cell, busy=True) for cell in cells()]
    broken = [row for row in rows if row.broken]
    assert not broken, markdown(broken, "broken")


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_two_hundred_rounds_with_members_that_die() -> None:
    """Every round completes in time, and no process holds more and more."""
    with Progress(disable=True) as progress:
        tally = await churn.run(200, 8, 0.01, 250_000, 1, progress)
    assert tally.completed == 200
    assert tally.broken == []


async def test_each_cell_has_a_name_of_its_own() -> None:
    """So that one can be run alone."""
    names = [cell.name for cell in cells()]
    assert len(set(names)) == len(names)
