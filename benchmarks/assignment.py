"""Assignment over a corpus of FineWeb's size: every page of 256 uids x 64 epochs, none twice, and how fast.

    python -m benchmarks.assignment [--output benchmarks/results/assignment.md]

The index is simulated (518.5 million rows in row groups of 1,000), the text is not there: what is measured is page
number -> file, row group and row, as a miner finds its own and a validator those that it audits. Each assigned page is
marked in a bit field; a page that is marked already would be a collision.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from distributed_training.data.assignment import Assignment
from distributed_training.data.row_groups import RowMap
from distributed_training.data.split import Split
from tests.data.simulated import fineweb_index

RUN_ID = "gpt2-fineweb-0123456789ab"
UIDS, EPOCHS = 256, 64
HELD_OUT = 16
PAGE_ROWS = 32
PAGES_PER_EPOCH = 512


@dataclass(frozen=True)
class Result:
    """One way of asking."""

    name: str
    pages: int
    seconds: float

    @property
    def row(self) -> str:
        return f"| {self.name} | {self.pages:,} | {self.seconds:.2f} | {self.pages / self.seconds:,.0f} |"


def measure() -> tuple[list[Result], str]:
    """Every page of every uid in every epoch, in the batches in which neurons ask."""
    index = fineweb_index()
    rows = RowMap(index)
    split = Split(-(-rows.rows // PAGE_ROWS), HELD_OUT)
    assignment = Assignment(RUN_ID, split.train_pages, UIDS, PAGES_PER_EPOCH)
    taken = np.zeros(split.pages, np.bool_)
    before = peak()
    passes, collisions, held_out = [], 0, 0
    began, count = time.perf_counter(), 0
    for epoch in range(EPOCHS):
        for uid in range(UIDS):
            pages = split.corpus_pages(assignment.pages(epoch, uid, 0, PAGES_PER_EPOCH))
            rows.locate(pages * PAGE_ROWS)
            count += len(pages)
            collisions += int(taken[pages].sum()) + len(pages) - len(np.unique(pages))
            taken[pages] = True
    passes.append(Result("a uid's epoch at once (512 pages), marked and counted", count, time.perf_counter() - began))
    held_out = int(taken[split.held_out_pages].sum())
    for size in (512, 16, 1):
        passes.append(_timed(assignment, split, rows, size))
    facts = (
        f"{split.pages:,} pages of {PAGE_ROWS} rows, {sum(len(f.rows) for f in index.files):,} row groups in "
        f"{len(index.files)} files. Assigned: {count:,} pages to {UIDS} uids in {EPOCHS} epochs. "
        f"Collisions: {collisions}. Held-out pages assigned: {held_out}. "
        f"Memory that grew while assigning: {peak() - before:.1f} MB."
    )
    return passes, facts


def _timed(assignment: Assignment, split: Split, rows: RowMap, size: int, seconds: float = 5.0) -> Result:
    """Pages in batches of `size`, of uids and epochs in turn, for some seconds."""
    began, asked = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        turn = asked // size
        pages = assignment.pages(turn // UIDS % EPOCHS, turn % UIDS, turn * size % (PAGES_PER_EPOCH - size + 1), size)
        rows.locate(split.corpus_pages(pages) * PAGE_ROWS)
        asked += size
    return Result(f"batches of {size}", asked, time.perf_counter() - began)


def peak() -> float:
    """Resident memory at its highest so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(passes: list[Result], facts: str) -> str:
    """Markdown."""
    lines = [
        "# Assignment over an index of FineWeb's size",
        "",
        f"`python -m benchmarks.assignment` on {platform.machine()}, one thread, numpy {np.__version__}.",
        "",
        facts,
        "",
        "| pages -> file, row group, row | pages | seconds | pages/s |",
        "|---|---|---|---|",
        *(result.row for result in passes),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print, or write to the file given."""
    parser = argparse.ArgumentParser(description="Speed of the assignment.")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    text = table(*measure())
    Console().print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
