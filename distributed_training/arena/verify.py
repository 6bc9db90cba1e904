"""A published record, run again: on a CPU everything in it must come out the same, to the bit.

What is not compared is the machine and how long it took. The bits of float32 sums depend on the kernels that torch
takes for the processor: where a result differs, the report says what of the environment does, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distributed_training.arena.corpus import Corpus
from distributed_training.arena.links import Link
from distributed_training.arena.record import Subject, environment, record
from distributed_training.arena.simulator import Outcome, Plan, simulate
from distributed_training.run import OptimizerSpec, from_table
from distributed_training.strategies.catalogue import build
from template.errors import ConfigurationError, RecordMismatch

Runner = Callable[[bytes, OptimizerSpec, Plan, Corpus], Outcome]


@dataclass(frozen=True)
class Verdict:
    """`differing`: names of fields that did not come out the same; `environment`: what differs of it, (then, now)."""

    differing: tuple[str, ...]
    environment: Mapping[str, tuple[Any, Any]]

    @property
    def same(self) -> bool:
        """Whether the record is true."""
        return not self.differing


def plan_of(found: Mapping[str, Any]) -> Plan:
    """The plan of a record.

    Raises:
        RecordMismatch: it has none.
    """
    try:
        return from_table(Plan, found["plan"])
    except (KeyError, TypeError, ConfigurationError) as error:
        raise RecordMismatch(f"the record's plan is damaged: {error}") from error


def subject_of(found: Mapping[str, Any]) -> Subject:
    """The subject of a record; raises RecordMismatch if it has none."""
    try:
        subject = dict(found["subject"])
        return Subject(
            **{
                **subject,
                "optimizer": from_table(OptimizerSpec, subject["optimizer"]),
                "links": {name: Link(**link) for name, link in subject["links"].items()},
            }
        )
    except (KeyError, TypeError, ConfigurationError) as error:
        raise RecordMismatch(f"the record's subject is damaged: {error}") from error


def verify(found: Mapping[str, Any], corpus: Corpus, source: bytes | None, runner: Runner) -> Verdict:
    """Run it again. `source` of a submission; of a built-in strategy None.

    Raises:
        RecordMismatch: the record is damaged, or the text here is not the record's.
        ConfigurationError, StrategyError: it cannot be run.
    """
    plan, subject = plan_of(found), subject_of(found)
    if found["corpus"] != corpus.fingerprint:
        raise RecordMismatch(
            f"the text here has the fingerprint {corpus.fingerprint}, the record's {found['corpus']}: give --text, or "
            "run the Python version whose standard library it was"
        )
    device = torch.device("cpu")
    if source is not None:
        outcome = runner(source, subject.optimizer, plan, corpus)
    else:
        outcome = simulate(build(subject.strategy, subject.optimizer, subject.hyperparameters), plan, corpus, device)
    again = _plain(record(subject, plan, corpus, outcome, device))
    then = _plain(found)
    again["subject"]["sandbox"] = then["subject"]["sandbox"]  # of which kind it was changes nothing
    differing = tuple(name for name in again if name != "machine" and again[name] != then.get(name))
    now, machine = environment(device), then.get("machine", {})
    return Verdict(differing, {key: (machine.get(key), now[key]) for key in now if machine.get(key) != now[key]})


def find_source(path: Path, name: str) -> Path:
    """Where a contest keeps the source of a record: sources/ beside the folder that the record is in."""
    return path.resolve().parent.parent / "sources" / f"{name}.py"


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it: tuples become lists, keys text."""
    return dict(json.loads(json.dumps(value)))
