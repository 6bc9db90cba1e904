"""What a behaviour earns and what it does to others: one simulated run of a case, compared with an honest one."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distributed_training.events import Excluded
from distributed_training.scoring.combine import Outcome, Row
from distributed_training.scoring.explain import EpochScored
from tests.adversaries.subnet.subnet import RATE, Scenario, Story, simulate
from tests.adversaries.zoo import Case


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of every run of a table."""

    miners: int
    validators: int
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run.

    `pay`: of a machine that behaves so, relative to an honest machine's in the same run and time; None if all are
    honest. `caught`: the first epoch in which a validator gave one of them nothing for a reason or shut it out.
    `findings`: the reasons, most frequent first. `victims`: pay of the possible victims relative to the other honest
    miners. `judged`: how often an honest miner was scored; `wronged`: how often it failed an audit, got nothing, or was
    shut out. `loss`: held out, in the end. `seconds`: of simulated time, an epoch. `epochs`: reached.
    """

    pay: float | None
    caught: int | None
    findings: tuple[str, ...]
    victims: float | None
    judged: int
    wronged: int
    loss: float
    seconds: float
    epochs: int


def scenario_of(case: Case | None, size: Size, seed: int) -> Scenario:
    """The run of a case; None: everybody is honest."""
    scenario = Scenario(miners=size.miners, validators=size.validators, epochs=size.epochs, seed=seed)
    if case is None:
        return scenario
    behaviours = case.behaviours(scenario.miner_uids)
    return dataclasses.replace(
        scenario,
        behaviours=behaviours,
        speeds=dict.fromkeys(behaviours, case.speed),
        rates=dict.fromkeys(behaviours, case.rate * RATE),
        fine=case.fine,
    )


def measure(case: Case | None, size: Size, seed: int) -> Measured:
    """Simulate a case and measure it."""
    scenario = scenario_of(case, size, seed)
    story = simulate(scenario)
    cheats = tuple(scenario.behaviours)
    honest = [uid for uid in scenario.miner_uids if uid not in scenario.behaviours]
    usual = _mean(story, honest)
    rows = [(event.epoch, row) for event in _scored(story, scenario) for row in event.rows]
    excluded = [event for uid in scenario.validator_uids for event in story.told(uid, Excluded)]
    caught = [epoch for epoch, row in rows if row.evidence.uid in cheats and _unpaid(row)]
    caught += [event.epoch for event in excluded if event.miner in cheats]
    judged = [row for _, row in rows if row.evidence.uid in honest and row.outcome is not Outcome.KEPT]
    wronged = sum(map(_unpaid, judged)) + sum(event.miner in honest for event in excluded)
    return Measured(
        pay=None if case is None else _relative(_mean(story, cheats) / case.machines, usual),
        caught=min(caught, default=None),
        findings=_findings(rows, cheats, excluded),
        victims=None if case is None else _victims(story, honest, len(cheats)),
        judged=len(judged),
        wronged=wronged,
        loss=story.final_loss,
        seconds=story.seconds / story.epochs,
        epochs=story.epochs,
    )


def _scored(story: Story, scenario: Scenario) -> Iterable[EpochScored]:
    return (event for uid in scenario.validator_uids for event in story.told(uid, EpochScored))


def _mean(story: Story, uids: Iterable[int]) -> float:
    return statistics.mean(story.pay(uid) for uid in uids)


def _relative(pay: float, usual: float) -> float:
    """Infinite where only cheats are paid."""
    if usual:
        return pay / usual
    return math.inf if pay else 0.0


def _unpaid(row: Row) -> bool:
    """Whether an epoch was scored with nothing."""
    return row.outcome is Outcome.FAILED_AUDIT or (row.outcome is Outcome.SCORED and row.score.score == 0)


def _findings(
    rows: Iterable[tuple[int, Row]], cheats: tuple[int, ...], excluded: Iterable[Excluded]
) -> tuple[str, ...]:
    counted: dict[str, int] = {}
    for _, row in rows:
        if row.evidence.uid in cheats and _unpaid(row):
            failed = [str(audit.finding) for audit in row.evidence.audits if not audit.passed]
            for reason in set(failed) or {row.reason}:
                counted[reason] = counted.get(reason, 0) + 1
    shut_out = sum(event.miner in cheats for event in excluded)
    if shut_out:
        counted["shut out of rounds"] = shut_out
    return tuple(sorted(counted, key=lambda reason: -counted[reason]))


def _victims(story: Story, honest: list[int], count: int) -> float | None:
    """The first miners are the ones that may be framed, copied or robbed; those before the cheats, too."""
    victims = {*honest[:count], honest[-1]}
    others = [uid for uid in honest if uid not in victims]
    return _mean(story, victims) / _mean(story, others) if others else None


def plain(measured: Measured) -> Mapping[str, object]:
    """As JSON."""
    return dataclasses.asdict(measured)
