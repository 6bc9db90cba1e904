"""Rounds in a row while members are killed and started again: each must end in time, and nothing may leak.

    python -m tests.faults.churn [--rounds 200] [--peers 8] [--chance 0.01] [--size 250000] [--seed 1]
                                 [--output benchmarks/results/churn.md]

In each round each member is killed with that chance, in a state drawn at random, and started again. The driver plays
the leader: an attempt that fails is repeated with the group that leader.surviving_group makes of the reports. Ends with
status 1 if an attempt outlasts one deadline and a second, somebody innocent is named, two members hold different
averages, a round never completes, or what a process holds grows.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from distributed_training.averaging import leader
from distributed_training.averaging.plan import RoundPlan, StateDeadlines
from tests.faults.crowd import Crowd, Heard, Order, as_members, expected
from tests.faults.sabotage import Sabotage

DEADLINES = StateDeadlines(connect=5.0, exchange=8.0, commit=5.0)
MARGIN = 1.0  # seconds beyond one deadline
ATTEMPTS = 4
STATES = ("PREPARE", "CONNECT", "EXCHANGE", "COMMIT")
WARM_UP = 20  # rounds of a process after which it should hold what it will hold
JUDGED = 30  # rounds after that, from which growth is judged
MAX_GROWTH = {"rss": 100_000.0, "descriptors": 0.1, "threads": 0.05, "tasks": 0.05}  # a round
# The daemon's heap grows with each peer that comes anew, and stays below this (benchmarks/daemon_memory.py).
MAX_DAEMON = 128_000_000  # bytes


@dataclass(kw_only=True)
class Life:
    """What one process held at the end of each of its rounds."""

    uid: int
    held: list[dict[str, int]] = field(default_factory=list)

    def growth(self) -> dict[str, float]:
        """The slope a round of each figure after the warm-up, by least squares; empty if it lived too shortly."""
        held = self.held[WARM_UP:]
        if len(held) < JUDGED:
            return {}
        at = np.arange(len(held))
        return {key: float(np.polyfit(at, [h[key] for h in held], 1)[0]) for key in held[0]}


@dataclass(kw_only=True)
class Tally:
    """What happened in all."""

    rounds: int = 0
    attempts: int = 0
    completed: int = 0
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    seconds: list[float] = field(default_factory=list)  # of each attempt, at its slowest surviving member
    failed_seconds: list[float] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def require(self, condition: bool, promise: str) -> None:
        if not condition:
            self.broken.append(f"round {self.rounds}: {promise}")


class Churn:
    """Drives the rounds."""

    def __init__(self, crowd: Crowd, size: int, chance: float, seed: int) -> None:
        self.tally = Tally()
        self._crowd = crowd
        self._size = size
        self._chance = chance
        self._random = np.random.default_rng(seed)
        self._lives = {uid: self._born(uid) for uid in crowd.members}
        self._starting: dict[int, asyncio.Task[None]] = {}

    async def round(self) -> None:
        """One round: attempts until one completes."""
        self.tally.rounds += 1
        await self._welcome()
        sabotage = self._draw()
        group = {uid: 1.0 for uid in sorted(self._crowd.members.keys() - self._starting.keys())}
        attempts: list[leader.Attempt] = []
        for number in range(ATTEMPTS):
            plan = self._crowd.plan(group, size=self._size, deadlines=DEADLINES, shares=group, chunk=1 << 14)
            heard = await self._attempt(plan, sabotage if number == 0 else {})
            self._judge(plan, heard, sabotage)
            reports = {uid: report.failures for uid, report in heard.reports.items()}
            attempts.append(leader.Attempt(members=as_members(plan.members), reports=reports))
            if number == 0:
                self._restart(sabotage)
            if any(report.completed for report in heard.reports.values()):
                self.tally.completed += 1
                return
            survivors = leader.surviving_group(attempts, dict.fromkeys(self._crowd.members, 1.0))
            group = {member.uid: member.share for member in survivors}
        self.tally.require(False, f"not completed in {ATTEMPTS} attempts")

    async def close(self) -> None:
        """Wait for those that are being started."""
        await asyncio.gather(*self._starting.values())

    def _draw(self) -> dict[int, Sabotage]:
        """Who is killed in this round, and when."""
        drawn = {}
        for uid in self._crowd.members.keys() - self._starting.keys():
            if self._random.random() < self._chance:
                state = STATES[self._random.integers(len(STATES))]
                drawn[uid] = Sabotage(kind="kill", state=state, after=int(self._random.integers(4 * self._size)))
                self.tally.kills[state] += 1
        return drawn

    async def _attempt(self, plan: RoundPlan, sabotage: Mapping[int, Sabotage]) -> Heard:
        orders = {uid: Order(plan=plan, sabotage=sabotage.get(uid)) for uid in plan_uids(plan)}
        limit = DEADLINES.connect + DEADLINES.exchange + DEADLINES.commit + 10
        return await self._crowd.run(orders, [uid for uid in orders if uid not in sabotage], limit)

    def _judge(self, plan: RoundPlan, heard: Heard, sabotage: Mapping[int, Sabotage]) -> None:
        tally, reports = self.tally, heard.reports
        tally.attempts += 1
        tally.require(not heard.errors and not heard.busy, f"errors {heard.errors}, busy {heard.busy}")
        averages = {report.average for report in reports.values() if report.completed}
        tally.require(len(averages) <= 1, "two averages")
        for uid, report in reports.items():
            took = report.ended - report.began
            (tally.seconds if report.completed else tally.failed_seconds).append(took)
            tally.require(took <= max(DEADLINES.connect, DEADLINES.exchange) + MARGIN, f"{uid} took {took:.1f} s")
            tally.require(report.named <= sabotage.keys(), f"{uid} names {report.failures}")
            tally.require(report.kept and (report.average is not None) == report.completed, f"{uid} lost its state")
            if report.samples is not None:
                right = np.allclose(report.samples, expected(plan, plan_uids(plan)), rtol=1e-5, atol=1e-6)
                tally.require(right, f"{uid} has a wrong mean")
            self._lives[uid].held.append({**report.usage, **self._of_daemon(uid)})

    def _of_daemon(self, uid: int) -> dict[str, int]:
        daemon = psutil.Process(self._crowd.members[uid].daemon)
        return {"daemon rss": daemon.memory_info().rss, "daemon descriptors": daemon.num_fds()}

    def _restart(self, uids: Mapping[int, Sabotage]) -> None:
        for uid in uids:
            self._starting[uid] = asyncio.create_task(self._crowd.replace([uid]))

    async def _welcome(self) -> None:
        """Let those in that are ready."""
        for uid, task in list(self._starting.items()):
            if task.done():
                await task
                del self._starting[uid]
                self._lives[uid] = self._born(uid)

    def _born(self, uid: int) -> Life:
        life = Life(uid=uid)
        self.tally.lives.append(life)
        return life


def plan_uids(plan: RoundPlan) -> list[int]:
    return [m.uid for m in plan.members]


def judge_growth(tally: Tally) -> None:
    """Nothing that a long-lived process holds may grow with the rounds, and no daemon beyond its bound."""
    for life in tally.lives:
        for key, slope in life.growth().items():
            limit = MAX_GROWTH.get(key)
            if limit is not None and slope > limit:
                first, last = life.held[WARM_UP][key], life.held[-1][key]
                tally.broken.append(f"{key} of {life.uid} grows by {slope:.2f} a round, from {first:,} to {last:,}")
        most = max((held["daemon rss"] for held in life.held), default=0)
        if most > MAX_DAEMON:
            tally.broken.append(f"the daemon of {life.uid} takes {most:,} bytes")


async def run(rounds: int, peers: int, chance: float, size: int, seed: int, progress: Progress) -> Tally:
    bar = progress.add_task("rounds", total=rounds)
    with tempfile.TemporaryDirectory() as folder:
        async with Crowd(Path(folder), range(peers)) as crowd:
            churn = Churn(crowd, size, chance, seed)
            for _ in range(rounds):
                await churn.round()
                progress.advance(bar)
            await churn.close()
    judge_growth(churn.tally)
    return churn.tally


def summary(tally: Tally) -> list[str]:
    """The results as lines of text."""
    seconds = np.array(tally.seconds or [0.0])
    failed = np.array(tally.failed_seconds or [0.0])
    kills = ", ".join(f"{count} in {state}" for state, count in tally.kills.items())
    lines = [
        f"{tally.rounds} rounds, {tally.completed} completed, {tally.attempts} attempts",
        f"{sum(tally.kills.values())} members killed ({kills}) and started again",
        f"a completed attempt: median {np.median(seconds):.2f} s, worst {seconds.max():.2f} s at a member",
        f"a failed attempt: median {np.median(failed):.2f} s, worst {failed.max():.2f} s at a survivor",
    ]
    grown = [life.growth() for life in tally.lives]
    for key in next((growth for growth in grown if growth), {}):
        slopes = [growth[key] for growth in grown if growth]
        lines.append(f"growth of {key} a round, {len(slopes)} processes: from {min(slopes):.3g} to {max(slopes):.3g}")
    return [*lines, "kept all promises" if not tally.broken else "broken: " + "; ".join(tally.broken[:20])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--chance", type=float, default=0.01)
    parser.add_argument("--size", type=int, default=250_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    console = Console(width=160)
    began = time.monotonic()
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tally = asyncio.run(
            run(arguments.rounds, arguments.peers, arguments.chance, arguments.size, arguments.seed, progress)
        )
    took = time.monotonic() - began
    title = (
        f"{arguments.rounds} rounds of {arguments.peers} processes, {arguments.size:,} float32, {arguments.chance:.0%} "
        f"chance of SIGKILL a member and round, {os.cpu_count()} cores, {took:.0f} s, {time.strftime('%Y-%m-%d')}"
    )
    lines = [title, *summary(tally)]
    for line in lines:
        console.print(line)
    if arguments.output is not None:
        text = ["# Churn", "", "`python -m tests.faults.churn`", "", *(f"* {line}" for line in lines)]
        arguments.output.write_text("\n".join(text) + "\n")
    return 1 if tally.broken else 0


if __name__ == "__main__":
    sys.exit(main())
