"""The fault table: what goes wrong in each cell, and what is promised to the members that do nothing wrong.

A cell keeps its promise if all of them end as it says within one deadline and a second of the moment when the fault
struck, those that commit hold the same bits and the right mean, those that abort hold no average and an unchanged
contribution, nobody names anybody but the culprit, the leader drops no honest member (and the culprit, where all saw
it), and the next round without the culprit succeeds at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from distributed_training.averaging.plan import Participant, RoundPlan, StateDeadlines
from tests.faults.crowd import Crowd, Heard, Order, Report, expected, next_group
from tests.faults.sabotage import Kind, Sabotage

Plane = Literal["direct", "libp2p"]
Ends = Literal["DONE", "ABORTED"]
Witnesses = Literal["all", "some", "any", "nobody"]  # how many of the honest members must name the culprit

SIZE = 2_000_000
DEADLINES = StateDeadlines(connect=4.0, exchange=5.0, commit=3.0)
HURRIED = StateDeadlines(connect=4.0, exchange=1.5, commit=1.0)  # EXCHANGE ends before CONNECT may
COUNT = 4
MIDWAY = SIZE * 4 // COUNT * 3 // 4  # bytes sent in EXCHANGE when a signal strikes: nobody has a whole share yet
MARGIN = 1.0  # seconds beyond one deadline
LOADED = 15.0  # the same where other processes want the machine
CULPRIT = 3
HONEST = (0, 1, 2)
LIMIT = 60.0  # seconds after which a member is taken to hang


@dataclass(frozen=True, kw_only=True)
class Watch:
    """One round of a cell: who is told what, whose outcome is judged, how it must end, and whom each may name."""

    orders: Mapping[int, Order]
    plan: RoundPlan
    honest: tuple[int, ...]
    ends: Ends
    names: Mapping[int, frozenset[int]]
    witnesses: Witnesses


@dataclass(frozen=True, kw_only=True)
class Cell:
    """`stage` makes the rounds of the cell; `deadline` is what may pass before the outcome, but for MARGIN."""

    case: str
    state: str
    role: str
    plane: Plane
    deadline: float
    stage: Callable[[Crowd], tuple[Watch, ...]]
    again: tuple[int, ...] = HONEST

    @property
    def name(self) -> str:
        return " ".join(word for word in (self.case, self.state, self.role, self.plane) if word)


@dataclass(kw_only=True)
class Row:
    """What came of a cell; `broken` is empty if it kept its promise."""

    cell: Cell
    seconds: float = 0.0
    ends: dict[int, str] = field(default_factory=dict)
    named: dict[int, tuple[str, ...]] = field(default_factory=dict)
    spent: dict[int, Mapping[str, float]] = field(default_factory=dict)  # seconds in each state
    equal: bool = False
    again: float | None = None
    broken: list[str] = field(default_factory=list)

    def require(self, condition: bool, promise: str) -> None:
        if not condition:
            self.broken.append(promise)


async def play(crowd: Crowd, cell: Cell, *, busy: bool = False) -> Row:
    """Run one cell and judge it.

    On a machine that is busy otherwise there is more time, and one witness is enough: who comes to EXCHANGE late only
    follows the others, and the leader lets an accuser that stands alone reduce nothing in the next attempt.
    """
    await crowd.mend()
    row = Row(cell=cell)
    watches = cell.stage(crowd)
    heard = await asyncio.gather(*(crowd.run(watch.orders, watch.honest, LIMIT) for watch in watches))
    for watch, of_watch in zip(watches, heard, strict=True):
        _judge(row, watch, of_watch, busy=busy)
    row.equal = len({r.average for of_watch in heard for r in of_watch.reports.values() if r.completed}) <= 1
    row.require(row.equal, "two averages")
    await _again(crowd, cell, row)
    return row


def _judge(row: Row, watch: Watch, heard: Heard, *, busy: bool) -> None:
    reports = {uid: report for uid, report in heard.reports.items() if uid in watch.honest}
    row.require(not heard.errors, f"errors {heard.errors}")
    row.require(reports.keys() == set(watch.honest), f"only {sorted(reports)} took part")
    if not reports:
        return
    since = heard.struck if heard.struck is not None else min(report.began for report in reports.values())
    row.seconds = max(row.seconds, *(report.ended - since for report in reports.values()))
    row.require(row.seconds <= row.cell.deadline + (LOADED if busy else MARGIN), f"took {row.seconds:.1f} s")
    row.ends |= {uid: report.state for uid, report in reports.items()}
    row.named |= {
        uid: tuple(f"{f.uid} {f.role} in {f.state}: {f.reason}" for f in report.failures)
        for uid, report in reports.items()
    }
    row.spent |= {uid: report.seconds for uid, report in reports.items()}
    for uid, report in sorted(reports.items()):
        _judge_one(row, watch, uid, report)
    named = [bool(report.named) for report in reports.values()]
    enough = {"all": any(named) if busy else all(named), "some": any(named), "any": True, "nobody": not any(named)}
    row.require(enough[watch.witnesses], f"named by {sum(named)} of {len(named)}")
    if watch.ends == "ABORTED":
        _judge_next_group(row, watch, reports, sure=all(named))


def _judge_one(row: Row, watch: Watch, uid: int, report: Report) -> None:
    row.require(report.state == watch.ends, f"{uid} ended {report.state}")
    row.require(report.named <= watch.names[uid], f"{uid} names {sorted(report.named)}")
    row.require(report.kept, f"{uid} changed its contribution")
    row.require((report.average is not None) == report.completed, f"{uid} has half an average")
    if report.samples is not None:
        mean = expected(watch.plan, [m.uid for m in watch.plan.members])
        row.require(np.allclose(report.samples, mean, rtol=1e-5, atol=1e-6), f"{uid} has a wrong mean")


def _judge_next_group(row: Row, watch: Watch, reports: Mapping[int, Report], *, sure: bool) -> None:
    """What the leader makes of the reports: none that is honest in everybody's eyes is lost."""
    group = set(next_group(watch.plan, reports))
    suspects = frozenset().union(*watch.names.values())
    honest = set(watch.honest) - suspects
    row.require(honest <= group, f"the leader would go on with {sorted(group)}")
    if watch.witnesses == "all" and sure and honest:
        row.require(not suspects & group, f"the leader would go on with {sorted(group)}")


async def _again(crowd: Crowd, cell: Cell, row: Row) -> None:
    """The next round, at once, of those who are left."""
    plan = crowd.plan(cell.again, size=SIZE // 10, deadlines=DEADLINES)
    began = time.monotonic()
    heard = await crowd.run({uid: Order(plan=plan) for uid in cell.again}, cell.again, LIMIT)
    states = {uid: report.state for uid, report in heard.reports.items()}
    row.require(set(states.values()) == {"DONE"} and len(states) == len(cell.again), f"the next round: {states}")
    row.require(len({report.average for report in heard.reports.values()}) == 1, "the next round: two averages")
    row.again = time.monotonic() - began


# The cells


def cells() -> Iterator[Cell]:
    """All of them, in the order of the table."""
    for plane in ("direct", "libp2p"):
        for kind in ("kill", "stop"):
            for state in ("PREPARE", "CONNECT", "EXCHANGE", "COMMIT"):
                for role in ("sender", "reducer"):
                    if plane == "direct" or state in ("EXCHANGE", "COMMIT"):
                        yield _signal(kind, state, role, plane)
    yield _signal("kill", "COMMIT", "sender", "direct", "its vote needed", quorum=1.0)
    yield _signal("stop", "COMMIT", "sender", "direct", "its vote needed", quorum=1.0)
    for state in ("CONNECT", "EXCHANGE", "COMMIT"):
        yield _signal("stop", state, "reducer", "direct", "short EXCHANGE", deadlines=HURRIED)
    yield _misdeed("slow", "straggler in time", "sender", 0.05, ends="DONE", witnesses="nobody")
    yield _misdeed("slow", "straggler in time", "reducer", 0.05, ends="DONE", witnesses="nobody")
    for role in ("sender", "reducer"):
        yield _misdeed("slow", "straggler too late", role, 2.0)
        yield _misdeed("nothing", "sends nothing", role)
        yield _misdeed("long", "sends longer chunks", role)
    yield _misdeed("slow", "straggler too late", "reducer", 2.0, plane="libp2p")
    yield _misdeed("nothing", "sends nothing", "reducer", plane="libp2p")
    yield _misdeed("nan part", "sends NaN", "sender")
    yield _misdeed("nan average", "sends NaN as the average", "reducer")
    yield _misdeed("much", "sends one chunk more", "sender", ends="DONE", witnesses="any")
    yield _other_plan("wrong size", lambda plan: dataclasses.replace(plan, size=plan.size + 999))
    yield _other_plan("wrong group: other shares", _other_shares)
    yield _other_plan("wrong group: other members", _other_members)
    yield Cell(case="late start", state="CONNECT", role="", plane="direct", deadline=DEADLINES.connect, stage=_late)
    yield Cell(
        case="too late start", state="CONNECT", role="", plane="direct", deadline=DEADLINES.connect, stage=_too_late
    )
    everybody = tuple(range(COUNT))
    for case, stage in (("two leaders, one first", _one_first), ("two leaders, torn", _torn), ("partition", _halves)):
        yield Cell(
            case=case,
            state="CONNECT",
            role="",
            plane="direct",
            deadline=DEADLINES.connect,
            stage=stage,
            again=HONEST[:2] if case == "partition" else everybody,
        )


def cell_named(name: str) -> Cell:
    """The cell of that name."""
    return next(cell for cell in cells() if cell.name == name)


def _signal(
    kind: Kind,
    state: str,
    role: str,
    plane: Plane,
    remark: str = "",
    *,
    quorum: float = 0.67,
    deadlines: StateDeadlines = DEADLINES,
) -> Cell:
    """A process that dies or hangs: lost before the vote, the round fails; lost at the vote, the others commit."""
    signal = {"kill": "SIGKILL", "stop": "SIGSTOP"}[kind]
    ends: Ends = "DONE" if state == "COMMIT" and quorum < 1 else "ABORTED"
    # Some had not met it when it was lost, or had begun EXCHANGE later and only followed the others, or had its part.
    witnesses: Witnesses = "some" if state in ("CONNECT", "EXCHANGE") else "all"
    sabotage = Sabotage(kind=kind, state=state, after=MIDWAY)
    return Cell(
        case=f"{signal}, {remark}" if remark else signal,
        state=state,
        role=role,
        plane=plane,
        deadline=deadlines.connect if state == "PREPARE" else max(deadlines.connect, deadlines.exchange),
        stage=lambda crowd: _one_culprit(
            crowd, role, plane, sabotage, ends=ends, witnesses=witnesses, quorum=quorum, deadlines=deadlines
        ),
    )


def _misdeed(
    kind: Kind,
    case: str,
    role: str,
    seconds: float = 0.0,
    *,
    plane: Plane = "direct",
    ends: Ends = "ABORTED",
    witnesses: Witnesses = "all",
) -> Cell:
    """A process that lives and does wrong in EXCHANGE."""
    sabotage = Sabotage(kind=kind, seconds=seconds)
    return Cell(
        case=case,
        state="EXCHANGE",
        role=role,
        plane=plane,
        deadline=DEADLINES.exchange,
        stage=lambda crowd: _one_culprit(crowd, role, plane, sabotage, ends=ends, witnesses=witnesses),
    )


def _one_culprit(
    crowd: Crowd,
    role: str,
    plane: Plane,
    sabotage: Sabotage,
    *,
    ends: Ends,
    witnesses: Witnesses,
    quorum: float = 0.67,
    deadlines: StateDeadlines = DEADLINES,
) -> tuple[Watch, ...]:
    shares = {CULPRIT: 0.0} if role == "sender" else {}
    plan = crowd.plan(range(COUNT), size=SIZE, deadlines=deadlines, shares=shares, quorum=quorum)
    honest, culprit = Order(plan=plan), Order(plan=plan, direct=plane == "direct", sabotage=sabotage)
    return (_watch(plan, dict.fromkeys(HONEST, honest) | {CULPRIT: culprit}, ends, witnesses),)


def _watch(plan: RoundPlan, orders: Mapping[int, Order], ends: Ends, witnesses: Witnesses) -> Watch:
    """A round with one culprit, whom alone anybody may name."""
    names = dict.fromkeys(HONEST, frozenset({CULPRIT}))
    return Watch(orders=orders, plan=plan, honest=HONEST, ends=ends, names=names, witnesses=witnesses)


def _other_plan(case: str, change: Callable[[RoundPlan], RoundPlan]) -> Cell:
    """A member that has another plan under the same round id."""

    def stage(crowd: Crowd) -> tuple[Watch, ...]:
        plan = crowd.plan(range(COUNT), size=SIZE, deadlines=DEADLINES)
        orders = dict.fromkeys(HONEST, Order(plan=plan)) | {CULPRIT: Order(plan=change(plan))}
        return (_watch(plan, orders, "ABORTED", "some"),)

    return Cell(case=case, state="CONNECT", role="", plane="direct", deadline=DEADLINES.connect, stage=stage)


def _other_shares(plan: RoundPlan) -> RoundPlan:
    return dataclasses.replace(plan, members=tuple(_shared(m, 1.0 + m.uid) for m in plan.members))


def _shared(member: Participant, share: float) -> Participant:
    return dataclasses.replace(member, share=share)


def _other_members(plan: RoundPlan) -> RoundPlan:
    return dataclasses.replace(plan, members=tuple(m for m in plan.members if m.uid != 0))


def _late(crowd: Crowd) -> tuple[Watch, ...]:
    """Begins when half of CONNECT is over."""
    plan = crowd.plan(range(COUNT), size=SIZE, deadlines=DEADLINES)
    late = Order(plan=plan, after=DEADLINES.connect / 2)
    orders = dict.fromkeys(HONEST, Order(plan=plan)) | {CULPRIT: late}
    everybody = tuple(range(COUNT))
    names: dict[int, frozenset[int]] = dict.fromkeys(everybody, frozenset())
    return (Watch(orders=orders, plan=plan, honest=everybody, ends="DONE", names=names, witnesses="nobody"),)


def _too_late(crowd: Crowd) -> tuple[Watch, ...]:
    """Begins when CONNECT is over: named by the others, told so by them, and names nobody itself."""
    plan = crowd.plan(range(COUNT), size=SIZE, deadlines=DEADLINES)
    late = Order(plan=plan, after=DEADLINES.connect + 1)
    others = _watch(plan, dict.fromkeys(HONEST, Order(plan=plan)), "ABORTED", "all")
    itself = Watch(
        orders={CULPRIT: late},
        plan=plan,
        honest=(CULPRIT,),
        ends="ABORTED",
        names={CULPRIT: frozenset()},
        witnesses="nobody",
    )
    return others, itself


def _leaders(crowd: Crowd, first: tuple[int, ...]) -> tuple[Watch, ...]:
    """Two rounds at once, of 0, 1, 2 and of 1, 2, 3: `first` hear of the one before the other, 3 and the rest after."""
    plans = [crowd.plan(uids, size=SIZE, deadlines=DEADLINES) for uids in (HONEST, (1, 2, 3))]
    watches = []
    for number, plan in enumerate(plans):
        group = {m.uid for m in plan.members}
        here = group & set(first) if number == 0 else group - set(first)
        orders = {uid: Order(plan=plan, after=0.0 if uid in here else 0.02) for uid in group}
        missing = group - here
        watches.append(
            Watch(
                orders=orders,
                plan=plan,
                honest=tuple(sorted(here)),
                ends="ABORTED" if missing else "DONE",
                names=dict.fromkeys(here, frozenset(missing)),
                witnesses="all" if missing else "nobody",
            )
        )
    return tuple(watches)


def _one_first(crowd: Crowd) -> tuple[Watch, ...]:
    return _leaders(crowd, HONEST)


def _torn(crowd: Crowd) -> tuple[Watch, ...]:
    return _leaders(crowd, (0, 1))


def _halves(crowd: Crowd) -> tuple[Watch, ...]:
    """Neither half lets anybody of the other in: each names all of the other and nobody of its own."""
    plan = crowd.plan(range(COUNT), size=SIZE, deadlines=DEADLINES)
    peer = {m.uid: m.peer_id for m in plan.members}
    half_of = {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}}
    orders = {uid: Order(plan=plan, allow=frozenset(peer[u] for u in half)) for uid, half in half_of.items()}
    names = {uid: frozenset(set(peer) - half) for uid, half in half_of.items()}
    everybody = tuple(range(COUNT))
    return (Watch(orders=orders, plan=plan, honest=everybody, ends="ABORTED", names=names, witnesses="all"),)


def selected(patterns: Collection[str]) -> list[Cell]:
    """The cells whose name holds one of the patterns, or all."""
    return [cell for cell in cells() if not patterns or any(pattern in cell.name for pattern in patterns)]
