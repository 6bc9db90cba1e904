"""The fault table: each way in which a member can fail, against real processes, and whether the others are served.

    python -m tests.faults.table [PATTERN ...] [--times 1] [--output benchmarks/results/faults.md]

A pattern chooses the cells whose name holds it. Ends with status 1 if a cell breaks its promise (cells.py).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.faults.cells import COUNT, DEADLINES, MARGIN, SIZE, Cell, Row, play, selected
from tests.faults.crowd import Crowd

COLUMNS = (
    "case",
    "state",
    "role",
    "plane",
    "outcome after s",
    "at most s",
    "named",
    "ends",
    "same bits",
    "next round s",
    "promise",
)


async def run(cells: Sequence[Cell], times: int, progress: Progress) -> list[Row]:
    """Play the cells one after another, in one crowd."""
    rows = []
    bar = progress.add_task("starting", total=len(cells) * times)
    with tempfile.TemporaryDirectory() as folder:
        async with Crowd(Path(folder), range(COUNT)) as crowd:
            for cell in [cell for cell in cells for _ in range(times)]:
                progress.update(bar, description=cell.name)
                rows.append(await play(crowd, cell))
                progress.advance(bar)
                progress.console.print(
                    f"{cell.name}: {rows[-1].seconds:.2f} s, {'broken' if rows[-1].broken else 'kept'}"
                )
                for promise in rows[-1].broken:
                    progress.console.print(f"[red]{cell.name}: {promise}[/red]")
                if rows[-1].broken:
                    progress.console.print(rows[-1].named)
    return rows


def cells_of(row: Row) -> tuple[str, ...]:
    """The row as text."""
    named = Counter(" ".join(words.split()[:2]) for of in row.named.values() for words in of)
    cell = row.cell
    return (
        cell.case,
        cell.state,
        cell.role,
        cell.plane,
        f"{row.seconds:.2f}",
        f"{cell.deadline + MARGIN:.0f}",
        ", ".join(f"{who} (by {count})" for who, count in sorted(named.items())) or "nobody",
        ", ".join(f"{count} {end}" for end, count in sorted(Counter(row.ends.values()).items())),
        "yes" if row.equal else "no",
        "" if row.again is None else f"{row.again:.2f}",
        "; ".join(row.broken) or "kept",
    )


def markdown(rows: Sequence[Row], title: str) -> str:
    lines = [
        f"# {title}",
        "",
        "`scripts/fault_table`",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    lines += ["| " + " | ".join(cells_of(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    console = Console(width=200)
    chosen = selected(arguments.patterns)
    began = time.monotonic()
    with Progress(console=console, transient=True) as progress:
        rows = asyncio.run(run(chosen, arguments.times, progress))
    title = (
        f"Faults: {COUNT} processes, {SIZE:,} float32, deadlines {DEADLINES.connect:g}/{DEADLINES.exchange:g}/"
        f"{DEADLINES.commit:g} s, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    )
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*cells_of(row), style="red" if row.broken else None)
    console.print(table)
    broken = sum(bool(row.broken) for row in rows)
    console.print(f"{len(rows)} cells in {time.monotonic() - began:.0f} s, {broken} broken")
    if arguments.output is not None:
        arguments.output.write_text(markdown(rows, title))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
