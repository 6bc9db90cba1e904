"""Calibrates the audits of a run: `python -m distributed_training.calibrate --run runs/nano.toml [--write]`.

Trains the run for a few epochs on this machine, computes records as other honest machines would and as cheats do,
prints both, and what limits follow for [audit] (scoring/calibration.py says how). With `--write` it puts them into
the run spec, and what was measured into NAME.calibration.json beside it, whose hash the spec then holds.

Two machines of different make were seldom seen to differ by more than an order of magnitude more than two ways on one,
in float32; the margin for them is MARGIN. In bfloat16 a computation in float32 is among the ways, which is as far from
any honest machine as the rounding goes, and little is added.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from distributed_training.calibrate.machines import cheating_ways, honest_ways
from distributed_training.calibrate.trials import Extent, Measurements, Trials
from distributed_training.data.build import build_loader
from distributed_training.data.loader import Loader
from distributed_training.run import RunSpec, load_run
from distributed_training.scoring.calibration import (
    CONFIDENCE,
    RATE,
    Limits,
    Tail,
    document,
    limits,
    lower,
    passing,
    updated,
    upper,
)
from distributed_training.scoring.detection import penalty_needed, power_table
from distributed_training.scoring.sampling import audit_rate
from template.config import HelpRequested, option, parse
from template.console import print_error, print_text
from template.errors import ConfigurationError, SubnetError
from template.files import replace_file

LOOKED_AT = 4  # micro-batches, for the samples of a usual one
AUDITED = 16  # miners in the table of detection power
MARGIN = {"float32": 50.0, "bfloat16": 3.0}


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """What to measure."""

    run: Path = option("run file to calibrate")
    write: bool = option("put the limits into the run file, and the measurements beside it", default=False)
    cache: Path | None = option("folder in which the corpus is kept", default=None)
    epochs: int = option("epochs to train and to measure in", default=12)
    batches: int = option("micro-batches a miner and epoch", default=16)
    records: int = option("of those, how many are computed in each way", default=8)
    threads: int = option("threads of a machine that has more of them", default=2)
    margin: float | None = option("times what was measured of records; default: by the precision", default=None)
    contribution_margin: float = option("the same for contributions", default=1.5)

    def __post_init__(self) -> None:
        for name in ("epochs", "batches", "records", "threads"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"--{name} must be at least 1")
        if (self.margin or 1) < 1 or self.contribution_margin < 1:
            raise ConfigurationError("--margin and --contribution_margin must be at least 1")


@dataclass(frozen=True)
class Result:
    """The tails of each honest variation, what each cheat reached, and the limits that follow.

    `second_looks`: the share of honest comparisons of a contribution with one record that do not find it.
    """

    loss: dict[str, Tail]
    gradient: dict[str, Tail]
    whole: Tail
    inflation: Tail
    measured: Measurements
    limits: Limits
    second_looks: float


def concluded(measured: Measurements, margin: float, contribution_margin: float) -> Result:
    """What follows from the measurements; raises StateError if they are too few."""
    loss = {name: upper([pair[0] for pair in pairs]) for name, pairs in measured.honest.items()}
    gradient = {name: upper([pair[1] for pair in pairs]) for name, pairs in measured.honest.items()}
    honest = measured.contributions["honest"]
    alignment, inflation = [pair[0] for pair in honest], upper([pair[1] for pair in honest])
    whole = lower(measured.whole)
    found = limits(
        loss.values(),
        gradient.values(),
        alignment,
        whole,
        [inflation],
        least=statistics.median(measured.least),
        margin=margin,
        contribution_margin=contribution_margin,
    )
    second = sum(each < found.alignment for each in alignment) / len(alignment)
    return Result(loss, gradient, whole, inflation, measured, found, second)


def calibrate(spec: RunSpec, loader: Loader, config: CalibrateConfig, progress: Progress) -> Result:
    """Measure and conclude.

    Raises:
        SubnetError: the run cannot be trained here, or too little was measured.
    """
    if spec.audit.replay is not None:
        raise ConfigurationError(
            f"the strategy '{spec.strategy}' has inner steps, its records are not computed at θ: calibrate the same "
            'run with strategy = "gradient-averaging", and measure audit.replay.tolerance with benchmarks.replay'
        )
    vocab_size = loader.tokenizer.vocab_size
    batches = min(config.batches, loader.micro_batches_per_epoch)
    extent = Extent(epochs=config.epochs, batches=batches, records=min(config.records, batches), ages=(1, 2, 4))
    devices = ("cuda",) if torch.cuda.is_available() else ()
    honest = honest_ways(spec, vocab_size, config.threads, devices)
    cheats = cheating_ways(spec, vocab_size, extent.ages)
    task = progress.add_task(f"calibrating {spec.name}", total=config.epochs)
    trials = Trials(spec, loader, extent)
    measured = trials.run(honest, cheats, lambda done: progress.update(task, completed=done))
    return concluded(measured, margin_of(spec, config), config.contribution_margin)


def margin_of(spec: RunSpec, config: CalibrateConfig) -> float:
    """Times what was measured of records: as told, or by the precision."""
    return MARGIN[spec.precision] if config.margin is None else config.margin


def recorded(spec: RunSpec, config: CalibrateConfig, result: Result) -> dict[str, Any]:
    """Everything that was measured, for the file."""

    def reached(ways: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Any]:
        return {name: _quantiles(pairs) for name, pairs in ways.items()}

    return {
        "run": spec.name,
        "precision": spec.precision,
        "codec": spec.averaging.codec,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "wanted": {"false_positives": RATE, "confidence": CONFIDENCE, "margin": margin_of(spec, config)},
        "extent": {name: getattr(config, name) for name in ("epochs", "batches", "records", "threads")},
        "honest": {
            name: {"loss": dataclasses.asdict(result.loss[name]), "gradient": dataclasses.asdict(result.gradient[name])}
            for name in result.loss
        },
        "contributions": {
            "alignment": _quantiles(result.measured.contributions["honest"]),
            "second_looks": result.second_looks,
            "whole": dataclasses.asdict(result.whole),
            "inflation": dataclasses.asdict(result.inflation),
        },
        "cheats": reached(result.measured.cheats),
        "bad_contributions": reached(result.measured.bad_contributions),
        "passing": {
            name: passing(pairs, result.limits, spec.audit.threshold) for name, pairs in result.measured.cheats.items()
        },
    }


def _quantiles(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    first, second = (sorted(pair[i] for pair in pairs) for i in (0, 1))
    middle = len(pairs) // 2
    return {
        "count": len(pairs),
        "smallest": [first[0], second[0]],
        "median": [first[middle], second[middle]],
        "largest": [first[-1], second[-1]],
    }


def tables(spec: RunSpec, loader: Loader, result: Result) -> list[Table]:
    """What a person wants to see."""
    return [
        _honest_table(result),
        _cheats_table(spec, result),
        _contributions_table(result),
        _power_table(spec, loader),
    ]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _honest_table(result: Result) -> Table:
    table = _table("Honest computations differ by", "way", "times", "loss, most", "limit", "gradient, most", "limit")
    for name, loss in result.loss.items():
        gradient = result.gradient[name]
        numbers = (loss.extreme, loss.limit, gradient.extreme, gradient.limit)
        table.add_row(name, str(loss.count), *(f"{number:.2g}" for number in numbers))
    return table


def _cheats_table(spec: RunSpec, result: Result) -> Table:
    table = _table(
        f"Cheats (limits: loss {result.limits.loss_tolerance:g}, gradient {result.limits.gradient_tolerance:g})",
        "way",
        "times",
        "loss, least",
        "median",
        "gradient, least",
        "median",
        "would pass",
    )
    for name, pairs in result.measured.cheats.items():
        seen = _quantiles(pairs)
        least, middle = seen["smallest"], seen["median"]
        rate = passing(pairs, result.limits, spec.audit.threshold)
        numbers = (least[0], middle[0], least[1], middle[1])
        table.add_row(name, str(len(pairs)), *(f"{number:.2g}" for number in numbers), f"{100 * rate:.1f} %")
    return table


def _contributions_table(result: Result) -> Table:
    table = _table(
        f"Contributions (limits: alignment {result.limits.alignment:g}, inflation {result.limits.inflation:g})",
        "what was put in",
        "times",
        "alignment, least",
        "median",
        "most",
        "inflation, least",
        "median",
        "most",
    )
    for name, pairs in {**result.measured.contributions, **result.measured.bad_contributions}.items():
        seen = _quantiles(pairs)
        numbers = [seen[which][i] for i in (0, 1) for which in ("smallest", "median", "largest")]
        table.add_row(name, str(len(pairs)), *(f"{number:.2f}" for number in numbers))
    whole = result.whole
    table.add_row("honest, all records at once", str(whole.count), f"{whole.extreme:.2f}", f"{whole.median:.2f}")
    table.caption = f"{result.second_looks:.1%} of honest comparisons with one record call for more recomputations"
    return table


def usual_records(spec: RunSpec, loader: Loader, miners: int) -> float:
    """How many records each of so many equal miners makes until there are enough samples."""
    samples = statistics.fmean(loader.micro_batch(0, 0, number).samples for number in range(LOOKED_AT))
    most = loader.micro_batches_per_epoch
    return min(float(most), spec.epoch.target_samples / miners / samples)


def _power_table(spec: RunSpec, loader: Loader) -> Table:
    miners = min(AUDITED, spec.audit.miners_per_epoch, spec.data.max_uids)
    records, penalty = usual_records(spec, loader, miners), spec.scoring.penalty_epochs
    needed = penalty_needed(records, audit_rate(miners, spec.audit))
    table = _table(
        f"One validator, {miners} miners, {records:.1f} records each; {penalty} epochs unpaid after a failed audit, "
        f"faking would pay below {needed}: a miner that fakes ...",
        "share",
        "found in an epoch",
        "95 % within",
        "99 % within",
        "long-run pay",
    )
    for row in power_table(records, miners, spec.audit, penalty, held_epochs=spec.scoring.held_epochs):
        epochs = (f"{n} epochs" if n is not None else "never" for n in (row.epochs_95, row.epochs_99))
        table.add_row(f"{100 * row.share:g} %", f"{100 * row.in_epoch:.1f} %", *epochs, f"{100 * row.pay:.1f} %")
    return table


def write(path: Path, file: bytes, found: Limits) -> Path:
    """Put the limits into the run file, and the measurements beside it; where those are.

    Raises:
        ConfigurationError: the run file has no place for them, or one of the two cannot be written.
    """
    beside = path.with_suffix(".calibration.json")
    try:
        text = updated(path.read_text(), found, file)
        replace_file(beside, file)
        replace_file(path, text.encode())
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: {error.strerror}") from error
    return beside


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status."""
    console = Console()
    try:
        config: CalibrateConfig = parse(
            {"": CalibrateConfig},
            argv,
            prog="python -m distributed_training.calibrate",
            description="Measure what audits of a run may hold against a miner.",
        )[""]
        torch.set_num_threads(1)
        spec = load_run(config.run)
        loader = build_loader(spec, cache=config.cache)
        try:
            with _bar(console) as progress:
                result = calibrate(spec, loader, config, progress)
            for table in tables(spec, loader, result):
                console.print(table)
        finally:
            loader.close()
        if config.write:
            beside = write(config.run, document(recorded(spec, config, result), result.limits), result.limits)
            print_text(f"{config.run} has the limits, {beside} what was measured\n")
    except HelpRequested as request:
        print_text(str(request))
        return 0
    except SubnetError as error:
        print_error(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
