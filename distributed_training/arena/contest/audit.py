"""A published round, judged again from its records and sources: the same standings, or the result is not true.

A round's file lies in rounds/, beside records/ and sources/. Nothing is trained: whether a record is true is found out
by running it again (arena/verify.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_training.arena.contest.bench import open_bench
from distributed_training.arena.contest.referee import VERSION, Candidate, Referee, result_of
from distributed_training.arena.contest.spec import ContestSpec, Round
from distributed_training.arena.contest.state import ContestState, Holder
from distributed_training.arena.corpus import Corpus
from distributed_training.arena.simulator import Outcome, Plan
from distributed_training.run import OptimizerSpec, from_table
from template.errors import ConfigurationError, RecordMismatch


def is_result(found: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a round's and not a run's."""
    return "standings" in found


def judged_again(path: Path) -> tuple[str, ...]:
    """Names of the fields of a round's file that do not come out the same.

    Raises:
        RecordMismatch: it is damaged, or a record or source is missing.
        ConfigurationError: the contest's text is not here.
    """
    try:
        found = json.loads(path.read_text())
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']!r}")
        spec, turn = from_table(ContestSpec, found["spec"]), Round(**found["round"])
        state = _state(found, spec, turn)
        folder = path.resolve().parent.parent
        candidates = [_candidate(candidate, folder) for candidate in found["candidates"]]
        block_hash = str(found["block_hash"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigurationError) as error:
        raise RecordMismatch(f"{path} is no result of a round: {error!r}") from error
    bench = dataclasses.replace(open_bench(spec, folder / "records", _never), may_run=False)
    decision = Referee(bench, folder).decide(state, found["seeds"], candidates, recheck=False)
    again = json.loads(json.dumps(result_of(spec, turn, block_hash, state, candidates, decision)))
    return tuple(name for name in again if again[name] != found.get(name))


def _state(found: Mapping[str, Any], spec: ContestSpec, turn: Round) -> ContestState:
    champion = found["before"]["champion"]
    return ContestState(
        contest_id=spec.contest_id,
        round=turn.number,
        champion=None if champion is None else Holder(**champion),
        earlier=tuple(Holder(**holder) for holder in found["before"]["earlier"]),
    )


def _candidate(found: Mapping[str, Any], folder: Path) -> Candidate:
    if found["problem"] is not None:
        return Candidate(found["hotkey"], found["block"], problem=found["problem"])
    return Candidate(found["hotkey"], found["block"], (folder / "sources" / f"{found['source']}.py").read_bytes())


def _never(source: bytes, optimizer: OptimizerSpec, plan: Plan, corpus: Corpus) -> Outcome:
    raise AssertionError("nothing is run where only records count")
