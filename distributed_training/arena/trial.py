"""A record as it is read again: what leaderboards, comparisons and the contest decide by.

`reached` is the loss that counts in the contest: that of the last evaluation within a budget of simulated time over a
link. Evaluated is the mean of all nodes' parameters, which nodes that are apart do not have: one exchange of all
parameters is added to their time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_training.arena.links import Link
from distributed_training.arena.record import VERSION
from template.errors import RecordMismatch

ALIKE = 1e-7  # RMS distance of nodes from their mean that rounding explains
LONGEST = 16  # letters of a name that is shown whole
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Mark:
    """An evaluation: held-out loss after `step` steps, the nodes' distance from their mean, seconds by link."""

    step: int
    loss: float
    spread: float
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of an entry. `name`: of the strategy; `sent` and `received`: bytes by node; `task`: what two trials must
    have in common to be compared at all, besides the seed.
    """

    name: str
    source: str | None
    seed: int
    task: str
    nodes: int
    steps: int
    parameters: int
    links: Mapping[str, Link]
    curve: tuple[Mark, ...]
    sent: tuple[int, ...]
    received: tuple[int, ...]
    params_sha256: str

    @property
    def loss(self) -> float:
        """At the end."""
        return self.curve[-1].loss

    @property
    def most_sent(self) -> int:
        """Bytes, of the node that sent most."""
        return max(self.sent)

    def seconds(self, link: str) -> float:
        """Simulated, of all steps."""
        return self.curve[-1].seconds[link]


def reached(trial: Trial, link: str, budget: float) -> float:
    """The held-out loss that `budget` seconds over `link` are enough for."""
    final = _FLOAT * trial.parameters
    extra = trial.links[link].seconds(final, final)
    within = [m for m in trial.curve if m.seconds[link] + (extra if m.spread > ALIKE else 0.0) <= budget]
    return (within or trial.curve[:1])[-1].loss


def metric(trial: Trial, budget: float) -> float:
    """The mean of what is reached over all links: what the contest is about; lower is better."""
    return math.fsum(reached(trial, link, budget) for link in trial.links) / len(trial.links)


def seconds_to(trial: Trial, link: str, loss: float) -> float | None:
    """Simulated seconds until the curve, straight between evaluations, is down at `loss`; None if it never is."""
    for before, after in zip(trial.curve, trial.curve[1:], strict=False):
        if after.loss <= loss:
            share = (before.loss - loss) / (before.loss - after.loss) if before.loss > loss else 0.0
            return before.seconds[link] + share * (after.seconds[link] - before.seconds[link])
    return None


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file, its version checked.

    Raises:
        RecordMismatch: it cannot be read, or is of another version.
    """
    try:
        found = json.loads(path.read_text())
        version = found["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordMismatch(f"{path} is no record of a run: {error!r}") from error
    if version != VERSION:
        raise RecordMismatch(f"{path} is a record of version {version!r}; this program reads version {VERSION}")
    return dict(found)


def read_trial(path: Path) -> Trial:
    """The trial in a file; raises RecordMismatch, naming it."""
    try:
        return trial_of(read_record(path))
    except RecordMismatch as error:
        raise RecordMismatch(f"{path}: {error}") from error


def trial_of(record: Mapping[str, Any]) -> Trial:
    """What of a record counts.

    Raises:
        RecordMismatch: a field is missing or impossible.
    """
    try:
        subject, plan = record["subject"], record["plan"]
        trial = Trial(
            name=_name(subject),
            source=subject["submission"],
            seed=int(plan["seed"]),
            task=_task(record),
            nodes=int(plan["nodes"]),
            steps=int(plan["steps"]),
            parameters=int(record["parameters"]),
            links={str(name): Link(**link) for name, link in subject["links"].items()},
            curve=tuple(map(_mark, record["curve"])),
            sent=tuple(int(node["sent"]) for node in record["nodes"]),
            received=tuple(int(node["received"]) for node in record["nodes"]),
            params_sha256=str(record["params_sha256"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordMismatch(f"the record is damaged: {error!r}") from error
    _check(trial)
    return trial


def _name(subject: Mapping[str, Any]) -> str:
    """Of a submission also the beginning of its hash: a hotkey may have several."""
    name, source = str(subject["strategy"]), subject["submission"]
    if source is None:
        return name
    return f"{name if len(name) <= LONGEST else name[:8] + '…'} {source[:8]}"


def _check(trial: Trial) -> None:
    steps = [mark.step for mark in trial.curve]
    losses = all(math.isfinite(mark.loss) for mark in trial.curve)
    if not steps or steps[0] != 0 or steps[-1] != trial.steps or steps != sorted(set(steps)) or not losses:
        raise RecordMismatch("the record is damaged: its curve does not lead from step 0 to the last one")
    if any(set(mark.seconds) != set(trial.links) for mark in trial.curve):
        raise RecordMismatch("the record is damaged: its curve has other links than it declares")


def _mark(point: Mapping[str, Any]) -> Mark:
    seconds = {str(name): float(value) for name, value in point["seconds"].items()}
    return Mark(int(point["step"]), float(point["loss"]), float(point["spread"]), seconds)


def _task(record: Mapping[str, Any]) -> str:
    """Model, corpus, nodes, samples, steps, evaluation, links and declared speed, as text."""
    plan = {name: value for name, value in record["plan"].items() if name != "seed"}
    subject = {name: record["subject"][name] for name in ("model", "tokenizer", "flops", "links")}
    return json.dumps([plan, subject, record["corpus"]], sort_keys=True)
