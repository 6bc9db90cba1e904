"""The table and the plot of benchmarks/allreduce.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.allreduce_case import SYSTEMS, Case, Comparison, Measured

COLUMNS = (
    "peers",
    "floats",
    "codec",
    "system",
    "seconds",
    "fastest",
    "rounds",
    "x gloo",
    "hivemind / it",
    "MB/s a peer",
    "wire / theory",
    "sockets / theory",
    "CPU-s a peer",
    "x gloo's CPU",
    "memory / vector",
    "first byte ms",
    "load before",
)


def rows(found: Sequence[Comparison]) -> list[list[str]]:
    """Cells in the order of COLUMNS; a system that did not run has its reason in place of seconds."""
    lines: list[list[str]] = []
    for one in sorted(found, key=lambda one: one.case):
        for system in SYSTEMS:
            place = [str(one.case.peers), f"{one.case.size / 1e6:g}M", one.case.codec, system]
            if system in one.systems:
                lines.append(place + _numbers(one, one.systems[system], ours=system in ("direct", "libp2p")))
            elif system in one.missing:
                lines.append([*place, one.missing[system], *[""] * (len(COLUMNS) - 5)])
    return lines


def _numbers(one: Comparison, it: Measured, *, ours: bool) -> list[str]:
    case, gloo, stock = one.case, one.systems.get("gloo"), one.systems.get("hivemind")
    theory = case.theory if ours or it is stock else case.plain
    return [
        f"{it.seconds:.3f}",
        f"{it.fastest:.3f}",
        str(it.repetitions),
        _ratio(it.seconds, gloo and gloo.seconds),
        _ratio(stock.seconds if stock else None, it.seconds),
        f"{theory / it.seconds / 1e6:.0f}",
        f"{it.wire / theory:.3f}",
        _ratio(it.sockets, theory, digits=3),
        f"{it.cpu:.3f}",
        _ratio(it.cpu, gloo and gloo.cpu),
        _ratio(it.memory, 4 * case.size),
        "" if it.first_byte is None else f"{1000 * it.first_byte:.0f}",
        f"{one.load:.1f}",
    ]


def _ratio(above: float | None, below: float | None, digits: int = 2) -> str:
    return "" if above is None or not below else f"{above / below:.{digits}f}"


def table(found: Sequence[Comparison], title: str) -> Table:
    shown = Table(title=title)
    for column in COLUMNS:
        shown.add_column(column, justify="right")
    for cells in rows(found):
        shown.add_row(*cells)
    return shown


def write(found: Sequence[Comparison], folder: Path, title: str, notes: str) -> None:
    """allreduce.md, and the plot allreduce.png of what has no codec."""
    cells = [list(COLUMNS), ["---:"] * len(COLUMNS), *rows(found)]
    lines = [f"# {title}", "", *("| " + " | ".join(line) + " |" for line in cells)]
    (folder / "allreduce.md").write_text("\n".join(lines) + f"\n\n{notes}\n\n![seconds and CPU](allreduce.png)\n")
    plot([one for one in found if one.case.codec == "none"], folder / "allreduce.png")


def plot(found: Sequence[Comparison], path: Path) -> None:
    """Seconds and processor seconds over size, a column for each number of peers."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    groups = sorted({one.case.peers for one in found})
    if not groups:
        return
    figure, axes = plt.subplots(2, len(groups), figsize=(4 * len(groups), 7), sharey="row", sharex=True, squeeze=False)
    for column, peers in enumerate(groups):
        mine = sorted((one for one in found if one.case.peers == peers), key=lambda one: one.case)
        for line, field in enumerate(("seconds", "cpu")):
            for system in SYSTEMS:
                points = [(one.case.size, getattr(one.systems[system], field)) for one in mine if system in one.systems]
                if points:
                    axes[line][column].loglog(*zip(*points, strict=True), marker="o", label=system)
            axes[line][column].grid(visible=True, which="major", alpha=0.3)
        axes[0][column].set_title(f"{peers} peers")
        axes[1][column].set_xlabel("float32 values")
    axes[0][0].set_ylabel("seconds of a round")
    axes[1][0].set_ylabel("CPU-seconds a peer")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def verdict(case: Case, found: Comparison) -> str:
    """One line on what was wanted of a case."""
    ours = found.systems.get("direct")
    if ours is None:
        return f"{case.name}: not measured"
    gloo, stock = found.systems.get("gloo"), found.systems.get("hivemind")
    return (
        f"{case.name}: {_ratio(ours.seconds, gloo and gloo.seconds) or '?'} x gloo, hivemind takes "
        f"{_ratio(stock.seconds if stock else None, ours.seconds) or '?'} x ours, "
        f"memory {_ratio(ours.memory, 4 * case.size)} x, wire {ours.wire / case.theory:.3f} x theory"
    )
