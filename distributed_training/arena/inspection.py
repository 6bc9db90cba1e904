"""Commands over records: `leaderboard`, `compare` and `verify`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from distributed_training.arena.contest.audit import is_result, judged_again
from distributed_training.arena.contest.submission import source_id
from distributed_training.arena.corpus import read_corpus
from distributed_training.arena.leaderboard import (
    Trials,
    compare,
    comparison_table,
    entries,
    read_trials,
    rows,
    table,
)
from distributed_training.arena.pareto import plot
from distributed_training.arena.trial import read_record
from distributed_training.arena.verify import Runner, Verdict, find_source, plan_of, subject_of, verify
from template.config import option
from template.errors import ConfigurationError, RecordMismatch


@dataclass(frozen=True, kw_only=True)
class LeaderboardConfig:
    """Records side by side."""

    records: tuple[str, ...] = option("folders or files of records", positional=True)
    budget: float | None = option("simulated seconds: rank by the loss within them, as the contest does", default=None)
    confidence: float = option("of the intervals", default=0.95)
    plot: Path | None = option("file for a picture: loss against bytes and time", default=None)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Two entries, paired by seed."""

    records: tuple[str, ...] = option("two files, folders, or PATH of PATH-SEED.json", positional=True)
    budget: float | None = option("simulated seconds: compare the loss within them, too", default=None)
    confidence: float = option("of the intervals", default=0.95)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """A record, run again on the CPU; or a contest's round, judged again from its records."""

    records: tuple[str, ...] = option("records, or results of rounds", positional=True)
    source: Path | None = option("a submission's source; default: where a contest keeps it", default=None)
    text: Path | None = option("folder of text files; default: the standard library's sources", default=None)


def show_leaderboard(config: LeaderboardConfig, console: Console) -> None:
    """Raises ConfigurationError or RecordMismatch."""
    found = rows(entries(read_trials(map(Path, config.records))), _checked(config.confidence), config.budget)
    console.print(table(found, f"{found[0].seeds} seeds, intervals of {config.confidence:.0%}"))
    if config.plot is not None:
        plot(found, config.plot)


def show_comparison(config: CompareConfig, console: Console) -> None:
    """Raises ConfigurationError or RecordMismatch."""
    if len(config.records) != 2:
        raise ConfigurationError(f"compare takes two entries; found {len(config.records)}")
    sides = [read_trials([Path(path)]) for path in config.records]
    entries([trial for side in sides for trial in side if side])  # refuses records of different tasks
    one, other = (_single(path, entries(side)) for path, side in zip(config.records, sides, strict=True))
    found = compare(one[1], other[1], _checked(config.confidence), config.budget)
    console.print(comparison_table(found, (one[0], other[0])))


def verify_records(config: VerifyConfig, runner: Runner, console: Console) -> None:
    """Raises RecordMismatch for the first one that does not come out the same."""
    torch.set_num_threads(1)
    if not config.records:
        raise ConfigurationError("verify takes at least one record")
    for path in map(Path, config.records):
        if _is_result(path):
            _verify_result(path, console)
            continue
        verdict = _verified(path, config, runner)
        if not verdict.same:
            raise RecordMismatch(f"{path}: not the same: {', '.join(verdict.differing)}{_differences(verdict)}")
        console.print(f"{path}: the same, to the bit", soft_wrap=True)


def _is_result(path: Path) -> bool:
    try:
        return is_result(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RecordMismatch(f"{path} is no record: {error!r}") from error


def _verify_result(path: Path, console: Console) -> None:
    differing = judged_again(path)
    if differing:
        raise RecordMismatch(f"{path}: judged again from its records, not the same: {', '.join(differing)}")
    console.print(f"{path}: judged again from its records, the same", soft_wrap=True)


def _verified(path: Path, config: VerifyConfig, runner: Runner) -> Verdict:
    found = read_record(path)
    plan, subject = plan_of(found), subject_of(found)
    source = None
    if subject.submission is not None:
        where = config.source or find_source(path, subject.submission)
        try:
            source = where.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"the source of {path} cannot be read: {error}; give --source") from error
        if source_id(source) != subject.submission:
            raise RecordMismatch(f"{where} is not the source that {path} was made with")
    return verify(found, read_corpus(config.text, subject.tokenizer, plan.size), source, runner)


def _differences(verdict: Verdict) -> str:
    if not verdict.environment:
        return "; the environment is the same"
    texts = (f"{name} was {then}, here {now}" for name, (then, now) in verdict.environment.items())
    return "; " + ", ".join(texts)


def _single(path: str, found: dict[str, Trials]) -> tuple[str, Trials]:
    if len(found) != 1:
        raise ConfigurationError(f"{path} has records of {len(found)} entries: {', '.join(found)}; name one")
    ((name, trials),) = found.items()
    return name, trials


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigurationError(f"--confidence must lie in (0, 1); found {confidence}")
    return confidence
