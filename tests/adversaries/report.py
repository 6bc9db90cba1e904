"""Plays the zoo in simulated time and writes what each behaviour earned: a table, a plot, and `docs/incentives.md`.

    scripts/adversaries [NAME ...] [--seeds 3] [--miners 16] [--validators 2] [--epochs 200] [--processes 2] [--fresh]

Runs that were made before with the same numbers and the same code are taken from the results' file; `--fresh` makes
them anew. Status 1 if a behaviour earns more than is wanted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.adversaries.measure import Measured, Size, measure, plain
from tests.adversaries.zoo import CASES, Case

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "adversaries.json"
PLOT = ROOT / "docs" / "incentives.png"
PAGE = ROOT / "docs" / "incentives.md"
BEGIN, END = "<!-- scripts/adversaries: begin -->", "<!-- scripts/adversaries: end -->"
HONEST = "honest"
FALSE_POSITIVES = 1e-3
COLUMNS = ("behaviour", "of miners", "pay", "wanted", "caught", "by", "loss", "epoch", "victims", "wronged")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One case over all seeds; `honest` are the runs without it, of the same seeds."""

    case: Case
    runs: tuple[Measured, ...]
    honest: tuple[Measured, ...]

    @property
    def pay(self) -> float:
        return statistics.mean(run.pay for run in self.runs if run.pay is not None)

    @property
    def most(self) -> float:
        return max(run.pay for run in self.runs if run.pay is not None)

    @property
    def harm(self) -> float:
        """How much the held-out loss is above the honest run's, as a fraction; the mean over seeds."""
        return statistics.mean(run.loss / honest.loss - 1 for run, honest in zip(self.runs, self.honest, strict=True))

    @property
    def slower(self) -> float:
        """How many times as long an epoch takes."""
        return statistics.mean(run.seconds / h.seconds for run, h in zip(self.runs, self.honest, strict=True))

    @property
    def caught(self) -> float | None:
        known = [run.caught for run in self.runs if run.caught is not None]
        return statistics.mean(known) if len(known) == len(self.runs) else None

    @property
    def victims(self) -> float:
        return min(run.victims for run in self.runs if run.victims is not None)

    @property
    def wronged(self) -> float:
        judged = sum(run.judged for run in self.runs)
        return sum(run.wronged for run in self.runs) / judged if judged else 0.0

    @property
    def broken(self) -> bool:
        """Whether it earns more than is wanted, in the mean over the seeds, or honest miners suffer."""
        return (self.case.wanted is not None and self.pay > self.case.wanted) or self.wronged > FALSE_POSITIVES

    def cells(self) -> tuple[str, ...]:
        wanted = "" if self.case.wanted is None else f"≤ {self.case.wanted:.0%}"
        findings = self.runs[0].findings[:2]
        return (
            self.case.name,
            f"{self.case.share:.0%}",
            f"{self.pay:.1%}" + (f" (most {self.most:.1%})" if self.most > 1.1 * self.pay + 0.001 else ""),
            wanted,
            "never" if self.caught is None else f"epoch {self.caught:.1f}",
            "; ".join(findings) or "-",
            f"{self.harm:+.2%}",
            f"x {self.slower:.2f}",
            f"{self.victims:.0%}",
            f"{self.wronged:.2%}",
        )


Key = tuple[str, int]  # the title of a case, or HONEST; the seed


def play(
    chosen: Sequence[Case], size: Size, seeds: int, processes: int, console: Console, *, fresh: bool
) -> list[Line]:
    """All runs, in processes of their own."""
    kept = {} if fresh else _stored(size)
    names = (HONEST, *map(title, chosen))
    missing = [(name, seed) for seed in range(seeds) for name in names if (name, seed) not in kept]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, transient=True) as progress,
        ProcessPoolExecutor(processes, get_context("spawn"), initializer=_one_thread) as pool,
    ):
        bar = progress.add_task("simulating", total=len(missing))
        futures = {pool.submit(_measure, *key, size): key for key in missing}
        for done in as_completed(futures):
            try:
                kept[futures[done]] = _result(done, futures[done])
            except RuntimeError:
                pool.shutdown(cancel_futures=True)
                raise
            _store(kept, size)
            progress.update(bar, advance=1, description=futures[done][0])
            progress.console.print(_told(futures[done], kept[futures[done]]), highlight=False)
    honest = tuple(kept[HONEST, seed] for seed in range(seeds))
    return [
        Line(case=case, runs=tuple(kept[title(case), seed] for seed in range(seeds)), honest=honest) for case in chosen
    ]


def title(case: Case) -> str:
    """Names a case and its share of the miners."""
    return f"{case.name} {case.share:.3f}"


def _measure(name: str, seed: int, size: Size) -> Measured:
    """In a process of its own, which finds the case by its title."""
    return measure(next((case for case in CASES if title(case) == name), None), size, seed)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _result(done: Future[Measured], key: Key) -> Measured:
    try:
        return done.result()
    except Exception as error:
        raise RuntimeError(f"{key[0]}, seed {key[1]}, did not end") from error


def _told(key: Key, run: Measured) -> str:
    pay = "" if run.pay is None else f"pay {run.pay:6.1%}  "
    return f"{key[0]:34} seed {key[1]}  {pay}loss {run.loss:.4f}  {run.seconds:5.1f} s an epoch"


def fingerprint(size: Size) -> str:
    """Of the numbers and of the code that decides: results of other ones are not mixed."""
    files = [*(ROOT / "distributed_training").rglob("*.py"), *(ROOT / "tests" / "adversaries").rglob("*.py")]
    content = hashlib.sha256(repr(size).encode())
    for file in sorted(files):
        if not file.name.startswith("test_") and file.name != Path(__file__).name:
            content.update(file.read_bytes())
    content.update((ROOT / "runs" / "nano.toml").read_bytes())
    return content.hexdigest()


def _stored(size: Size) -> dict[Key, Measured]:
    if not RESULTS.exists():
        return {}
    stored = json.loads(RESULTS.read_text())
    if stored["fingerprint"] != fingerprint(size):
        return {}
    runs = ((run["case"], run["seed"], run["measured"]) for run in stored["runs"])
    return {(case, seed): Measured(**{**m, "findings": tuple(m["findings"])}) for case, seed, m in runs}


def _store(runs: Mapping[Key, Measured], size: Size) -> None:
    listed = [{"case": case, "seed": seed, "measured": plain(run)} for (case, seed), run in sorted(runs.items())]
    text = json.dumps({"fingerprint": fingerprint(size), "size": vars(size), "runs": listed}, indent=1)
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.replace(RESULTS)


def markdown(lines: Iterable[Line], size: Size, seeds: int) -> str:
    """The table, as it stands in the page."""
    text = [
        f"{size.miners} miners, {size.validators} validators, {size.epochs} epochs, {seeds} seeds; "
        f"{time.strftime('%Y-%m-%d')}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    text += ["| " + " | ".join(line.cells()) + " |" for line in lines]
    return "\n".join(text)


def write_page(table: str) -> None:
    """Put the table between the markers of the page."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


def plot(lines: Sequence[Line], path: Path) -> None:
    """Pay and harm of each case."""
    figure = Figure(figsize=(11, 0.26 * len(lines) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    pay, harm = figure.subplots(1, 2, sharey=True)
    names = [f"{line.case.name} ({line.case.share:.0%})" for line in lines]
    places = range(len(lines))
    colours = ["tab:red" if line.broken else "tab:green" for line in lines]
    pay.barh(places, [100 * line.pay for line in lines], color=colours)
    pay.axvline(5, color="grey", linewidth=0.8, linestyle="--")
    pay.set(yticks=list(places), yticklabels=names, xlabel="pay, % of an honest machine's", title="What it earns")
    pay.tick_params(axis="y", labelsize="small")
    pay.invert_yaxis()
    harm.barh(places, [100 * line.harm for line in lines], color="tab:blue")
    harm.set(xlabel="held-out loss above the honest run's, %", title="What it does to the model")
    figure.savefig(path, dpi=110)


def show(lines: Iterable[Line], console: Console) -> None:
    table = Table(title="What cheating pays")
    for column in COLUMNS:
        table.add_column(column)
    for line in lines:
        table.add_row(*line.cells(), style="red" if line.broken else None)
    console.print(table)


def chosen_cases(patterns: Sequence[str]) -> tuple[Case, ...]:
    """The cases whose title holds one of the patterns; all without any."""
    return tuple(case for case in CASES if not patterns or any(pattern in title(case) for pattern in patterns))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--miners", type=int, default=16)
    parser.add_argument("--validators", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--fresh", action="store_true")
    arguments = parser.parse_args()
    console = Console(width=200)
    size = Size(miners=arguments.miners, validators=arguments.validators, epochs=arguments.epochs)
    chosen = chosen_cases(arguments.patterns)
    lines = play(chosen, size, arguments.seeds, arguments.processes, console, fresh=arguments.fresh)
    show(lines, console)
    if chosen == CASES:
        write_page(markdown(lines, size, arguments.seeds))
        plot(lines, PLOT)
        console.print(f"{PAGE} and {PLOT} are written")
    return 1 if any(line.broken for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
