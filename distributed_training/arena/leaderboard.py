"""Records side by side: a row for each entry over its seeds, a table in the terminal, and who is ahead of whom.

Only trials of one task are put beside each other: the same model, text, nodes, steps, links and declared speed.
Intervals are Student's over the seeds. `Comparison` is paired: both trained on the same seeds, so that what a seed
does to both falls out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from distributed_training.arena.contest.interval import Interval, interval
from distributed_training.arena.trial import Trial, metric, read_trial, seconds_to
from template.errors import ConfigurationError

DDP = "ddp"

Trials = Mapping[int, Trial]  # by seed


@dataclass(frozen=True, kw_only=True)
class Row:
    """One entry. `sent`: bytes of the node that sent most; `rate`: the same a parameter and step; by link: `seconds` of
    all steps, and `until` DDP's loss of the same seed is reached (None: it is not, with at least one of them)."""

    name: str
    loss: Interval | None  # None: a single seed
    mean: float
    seeds: int
    sent: float
    rate: float
    seconds: Mapping[str, float]
    until: Mapping[str, float | None]
    metric: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Of A with B: relative gain of each quantity, paired by seed; positive: A is lower. What B has nothing of (bytes,
    if it sends none) is left out."""

    seeds: tuple[int, ...]
    gains: Mapping[str, Interval]


def read_trials(paths: Iterable[Path]) -> list[Trial]:
    """All trials in files and folders; what is below a folder and is called *.json must be a record.

    Raises:
        ConfigurationError: there is none.
        RecordMismatch: a file is not one.
    """
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise ConfigurationError("no record found; `run --output FILE` writes one")
    return [read_trial(file) for file in files]


def _files(path: Path) -> list[Path]:
    """A record, all of a folder, or all seeds of what is called PATH-SEED.json."""
    if path.is_dir():
        return sorted(path.glob("*.json"))
    found = [path] if path.is_file() else sorted(path.parent.glob(f"{path.name}-[0-9]*.json"))
    if not found:
        raise ConfigurationError(f"no record at {path}, nor one called {path}-SEED.json")
    return found


def entries(trials: Sequence[Trial]) -> dict[str, Trials]:
    """Trials by entry and seed.

    Raises:
        ConfigurationError: they are not of one task, or an entry has two different trials of a seed.
    """
    if len({trial.task for trial in trials}) > 1:
        raise ConfigurationError("these records are of different models, texts, steps or links; compare those of one")
    found: dict[str, dict[int, Trial]] = {}
    for trial in trials:
        seeds = found.setdefault(trial.name, {})
        if seeds.setdefault(trial.seed, trial) != trial:
            raise ConfigurationError(f"two different records of '{trial.name}' with seed {trial.seed}")
    return {name: dict(sorted(seeds.items())) for name, seeds in found.items()}


def rows(found: Mapping[str, Trials], confidence: float, budget: float | None = None) -> list[Row]:
    """Best first: by the loss within `budget` if there is one, else by the loss at the end."""
    targets = {seed: trial.loss for seed, trial in found.get(DDP, {}).items()}
    made = [_row(name, list(trials.values()), confidence, targets, budget) for name, trials in found.items()]
    return sorted(made, key=lambda row: row.mean if row.metric is None else row.metric)


def _row(name: str, trials: list[Trial], confidence: float, targets: Mapping[int, float], budget: float | None) -> Row:
    first, losses = trials[0], [trial.loss for trial in trials]
    sent = _mean(trial.most_sent for trial in trials)
    return Row(
        name=name,
        loss=interval(losses, confidence) if len(losses) > 1 else None,
        mean=_mean(losses),
        seeds=len(trials),
        sent=sent,
        rate=sent / first.parameters / first.steps,
        seconds={link: _mean(trial.seconds(link) for trial in trials) for link in first.links},
        until={link: _until(trials, link, targets) for link in first.links},
        metric=None if budget is None else _mean(metric(trial, budget) for trial in trials),
    )


def _until(trials: Sequence[Trial], link: str, targets: Mapping[int, float]) -> float | None:
    times = [seconds_to(trial, link, targets[trial.seed]) if trial.seed in targets else None for trial in trials]
    known = [time for time in times if time is not None]
    return _mean(known) if len(known) == len(times) else None


def compare(mine: Trials, other: Trials, confidence: float, budget: float | None = None) -> Comparison:
    """Over the seeds that both have.

    Raises:
        ConfigurationError: fewer than two of them.
    """
    seeds = tuple(sorted(mine.keys() & other.keys()))
    if len(seeds) < 2:
        raise ConfigurationError(f"both need records of the same seeds, two at least; found {list(seeds)}")
    quantities: dict[str, Callable[[Trial], float]] = {"held-out loss": lambda t: t.loss}
    if budget is not None:
        quantities[f"loss within {budget:g} simulated seconds"] = lambda t: metric(t, budget)
    quantities["bytes sent"] = lambda t: float(t.most_sent)
    for link in mine[seeds[0]].links:
        quantities[f"simulated seconds at {link}"] = lambda t, link=link: t.seconds(link)  # type: ignore[misc]
    return Comparison(
        seeds=seeds,
        gains={
            what: interval([_gain(of(mine[seed]), of(other[seed])) for seed in seeds], confidence)
            for what, of in quantities.items()
            if all(of(other[seed]) for seed in seeds)
        },
    )


def _gain(mine: float, theirs: float) -> float:
    return (theirs - mine) / theirs


def table(found: Sequence[Row], title: str) -> Table:
    """For a terminal."""
    shown = Table("entry", title=title)
    links = list(found[0].seconds)
    columns = ["loss", "±", "seeds", "sent, MB", "B/param/step"]
    if found[0].metric is not None:
        columns.append("loss in budget")
    columns += [f"s at {link}" for link in links] + [f"s to DDP's loss, {link}" for link in links]
    for column in columns:
        shown.add_column(column, justify="right")
    for row in found:
        shown.add_row(row.name, *cells(row))
    return shown


def cells(row: Row) -> list[str]:
    """The columns after the name."""
    half = "-" if row.loss is None else f"{row.loss.high - row.loss.mean:.4f}"
    texts = [f"{row.mean:.4f}", half, str(row.seeds), f"{row.sent / 1e6:,.2f}", f"{row.rate:.4f}"]
    if row.metric is not None:
        texts.append(f"{row.metric:.4f}")
    texts += [f"{seconds:,.1f}" for seconds in row.seconds.values()]
    return texts + ["-" if until is None else f"{until:,.1f}" for until in row.until.values()]


def comparison_table(found: Comparison, names: tuple[str, str]) -> Table:
    """For a terminal."""
    shown = Table("what", title=f"{names[0]} against {names[1]}, {len(found.seeds)} seeds")
    for column in ("gain", "from", "to"):
        shown.add_column(column, justify="right")
    for what, gain in found.gains.items():
        shown.add_row(what, f"{gain.mean:+.2%}", f"{gain.low:+.2%}", f"{gain.high:+.2%}")
    return shown


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
