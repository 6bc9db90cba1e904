"""The picture of a leaderboard: loss against bytes, and against simulated time over each link; who is not dominated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from distributed_training.arena.leaderboard import Row

Point = tuple[float, float]


def front(points: Sequence[Point]) -> list[int]:
    """Indices of those that no other is better than in one and at least as good as in the other; lower is better."""
    return [i for i, mine in enumerate(points) if not any(_dominates(other, mine) for other in points)]


def _dominates(one: Point, other: Point) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG."""
    links = list(rows[0].seconds)
    figure = Figure(figsize=(5.5 * (1 + len(links)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(links), sharey=True, squeeze=False)[0]
    _panel(axes[0], rows, [row.rate for row in rows], "bytes sent a parameter and step")
    for axis, link in zip(axes[1:], links, strict=True):
        _panel(axis, rows, [row.seconds[link] for row in rows], f"simulated seconds at {link}")
    axes[0].set_ylabel("held-out loss, nats a token")
    figure.savefig(path, dpi=100)


def _panel(axis: Axes, rows: Sequence[Row], across: Sequence[float], label: str) -> None:
    points = [(x, row.mean) for x, row in zip(across, rows, strict=True)]
    best = set(front(points))
    for index, (row, (x, loss)) in enumerate(zip(rows, points, strict=True)):
        half = 0.0 if row.loss is None else row.loss.high - row.loss.mean
        axis.errorbar(x, loss, yerr=half, marker="o" if index in best else ".", color="C0" if index in best else "C7")
        axis.annotate(row.name, (x, loss), textcoords="offset points", xytext=(5, 4), fontsize="x-small")
    line = sorted(points[index] for index in best)
    axis.plot([x for x, _ in line], [y for _, y in line], color="C0", linewidth=0.8, linestyle=":")
    axis.set_xscale("symlog", linthresh=1e-4) if min(across) <= 0 else axis.set_xscale("log")
    axis.set_xlabel(label)
