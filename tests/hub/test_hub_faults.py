"""The hubs on the network under every fault: success after retries or one clear event, and never half a release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import faults
from tests.hub.conftest import library_warns

pytestmark = library_warns

Work = tuple[faults.Kind, faults.Way, faults.Case, str, tuple[str, str], int]


@pytest.fixture(autouse=True)
def clients(library: None, tmp_path: Path) -> Iterator[None]:
    with faults.local_clients(tmp_path):
        yield


def named(work: Work) -> str:
    kind, way, case, place, _, times = work
    return f"{kind} {way} {case.name} {place} {'once' if times == 1 else 'always'}"


SOME = [work for kind in faults.KINDS for work in faults.sample(kind, 6, seed=1)]
ALL = [work for kind in faults.KINDS for work in faults.cells(kind)]


@pytest.mark.parametrize("work", SOME, ids=named)
def test_some_cells_of_the_table(work: Work) -> None:
    """Each on a server of its own; the whole table is among the slow tests."""
    assert faults.run(*work).broken is None


@pytest.mark.slow
@pytest.mark.parametrize("work", ALL, ids=named)
def test_every_cell_of_the_table(work: Work) -> None:
    """As `scripts/hub_table` prints them."""
    assert faults.run(*work).broken is None


@pytest.mark.integration
@pytest.mark.parametrize("kind", faults.KINDS)
def test_an_uploader_killed_before_the_tag_leaves_nothing_to_see(kind: faults.Kind) -> None:
    """SIGKILL of a real process when all files are there; the next publisher completes what it began."""
    assert faults.kill_uploader(kind, "before the tag").broken is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", faults.KINDS)
@pytest.mark.parametrize("moment", faults.KILL_AT)
def test_an_uploader_killed_at_any_moment_leaves_nothing_to_see(kind: faults.Kind, moment: str) -> None:
    """Between files, in the middle of one, before the end."""
    assert faults.kill_uploader(kind, moment).broken is None
