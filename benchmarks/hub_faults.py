"""Prints the fault matrix of the hubs on the network as a table, and writes benchmarks/results/hub_faults.md.

    scripts/hub_table [--sample N]

Real servers on this machine; some minutes. The exit status is 1 if a promise was broken (see tests/hub/faults.py).
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.hub import faults

RESULTS = Path(__file__).parent / "results" / "hub_faults.md"
COLUMNS = ("hub", "way", "fault", "where", "times", "outcome", "retries", "events", "seconds", "promise")


def measure(sample: int | None) -> Iterator[faults.Cell]:
    """Every cell, or some of them."""
    work = [cell for kind in faults.KINDS for cell in faults.cells(kind)]
    kills = [(kind, moment) for kind in faults.KINDS for moment in faults.KILL_AT]
    if sample is not None:
        work, kills = random.Random(0).sample(work, sample), kills[:1]
    for cell in work:
        yield faults.run(*cell)
    for kind, moment in kills:
        yield faults.kill_uploader(kind, moment)


def row(cell: faults.Cell) -> list[str]:
    times = "always" if cell.times == faults.ALWAYS else str(cell.times)
    promise = "kept" if cell.broken is None else f"BROKEN: {cell.broken}"
    counted = [str(cell.retries), str(cell.events), f"{cell.seconds:.1f}"]
    return [cell.kind, cell.way, cell.fault, cell.place, times, cell.outcome, *counted, promise]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    broken = sum(cells[-1] != "kept" for cells in rows)
    return (
        f"""# Hubs under faults

`scripts/hub_table`; {len(rows)} cells, {broken} broken promises, {faults.TRIES} tries a step. "times": how many
requests the fault was for. "events": what told the end, Published or PublishFailed; a download tells its caller.
Every cell ends with a look as a reader (whole or nothing), and the same call once more without the fault (whole).

"""
        + "\n".join(lines)
        + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/hub_table", description="Every fault, on real servers.")
    parser.add_argument("--sample", type=int, default=None, help="only so many cells, and no file is written")
    asked = parser.parse_args()
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    console, rows, started = Console(), [], time.monotonic()
    table = Table(*COLUMNS)
    with tempfile.TemporaryDirectory() as folder, faults.local_clients(Path(folder)):
        for cell in measure(asked.sample):
            rows.append(row(cell))
            table.add_row(*rows[-1])
            if not console.is_terminal:
                console.print(" ".join(rows[-1]), soft_wrap=True)
    if console.is_terminal:
        console.print(table)
    broken = [cells for cells in rows if cells[-1] != "kept"]
    console.print(f"{len(rows)} cells in {time.monotonic() - started:.0f} s, {len(broken)} broken promises")
    if asked.sample is None:
        RESULTS.write_text(markdown(rows))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
