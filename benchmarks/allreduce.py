"""Seconds, bytes, processor time and memory of an all-reduce among processes on this machine.

    python -m benchmarks.allreduce [--peers 2 4 8] [--sizes 1M 10M] [--systems direct libp2p hivemind gloo]
                                   [--codecs none] [--repetitions 5] [--seconds 480] [--output benchmarks/results]
    python -m benchmarks.allreduce --first-byte 16

`direct` and `libp2p` are this project's round with its data over either plane, encrypted, with identities proved, a
vote, and every state counted; `hivemind` is the stock averager (its all-reduce only, without matchmaking), encrypted;
`gloo` is torch.distributed, neither encrypted nor fault tolerant: the floor. One process a peer, one thread each for
arithmetic.

The systems of a case stand side by side, as far as they fit into memory, and take turns, round by round. Their first
round makes connections and memory; it is not timed, but it is where peak memory is taken. A call ends after `--seconds`
with what it has; what was found is kept in allreduce.json, and the next call goes on with the cases that are missing
there (`--again` measures all anew).

Bytes on the wire are those of the loopback interface: run it where nothing else uses that, e.g. in
`unshare --net sh -c 'ip link set lo up; exec python -m benchmarks.allreduce'`.

Wanted: direct at most twice gloo's time and a quarter of hivemind's; wire at most 1.02 of theory, 2(n-1)/n of the
encoded vector a peer; peak extra memory at most twice the vector; first byte within 200 ms. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import allreduce_report as report
from benchmarks.allreduce_case import SYSTEMS, Case, Comparison, Measured, load, merged, save
from benchmarks.allreduce_fleet import Fleet, Result, WorkerLost, fleet

UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}
ORDER = ("gloo", "direct", "hivemind", "libp2p")  # what is to be compared most closely comes first
MEMORY_SHARE = 0.75  # of what is available, for the systems that stand side by side
ENOUGH_SECONDS = 60.0  # of rounds of one system: then it is not repeated any more, if it has three
FEWEST = 3
NO_TIME = "no time left"


def loopback_bytes() -> int:
    """What this machine has sent to itself so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise SystemExit("no loopback interface in /proc/net/dev")


class Subject:
    """One system in one case: its processes and what they did so far."""

    def __init__(self, case: Case, system: str, processes: Fleet) -> None:
        self.case = case
        self.system = system
        self._fleet = processes
        self.rounds: list[list[Result]] = []
        self._wire: list[float] = []
        self._cpu: list[float] = []
        self._memory = 0.0

    async def start(self, folder: str) -> None:
        """Bring the processes up and through a first round, in which memory is watched."""
        await start(self.case, self.system, self._fleet, folder)
        self._memory = (await self._fleet.watched_round(1)) / self.case.peers

    async def repeat(self) -> None:
        """One round that counts, unless there were enough."""
        if len(self.rounds) >= FEWEST and sum(map(_slowest, self.rounds)) > ENOUGH_SECONDS:
            return
        before, busy = loopback_bytes(), self._fleet.cpu_seconds()
        self.rounds.append(await self._fleet.round(len(self.rounds) + 2))
        self._cpu.append((self._fleet.cpu_seconds() - busy) / self.case.peers)
        self._wire.append((loopback_bytes() - before) / self.case.peers)

    def measured(self) -> Measured:
        seconds = [_slowest(results) for results in self.rounds]
        first = self.rounds[0][0]
        sockets = [statistics.fmean(r["sockets"] for r in rs) for rs in self.rounds] if "sockets" in first else None
        begun = [max(r["first_byte"] for r in rs) for rs in self.rounds] if "first_byte" in first else None
        return Measured(
            seconds=statistics.median(seconds),
            fastest=min(seconds),
            repetitions=len(seconds),
            wire=statistics.median(self._wire),
            sockets=None if sockets is None else statistics.median(sockets),
            cpu=statistics.median(self._cpu),
            memory=self._memory,
            first_byte=None if begun is None else statistics.median(begun),
            detail={key: first[key] for key in ("states", "work", "planes") if key in first},
        )


def _slowest(results: Sequence[Result]) -> float:
    return max(float(result["seconds"]) for result in results)


async def start(case: Case, system: str, members: Fleet, folder: str) -> None:
    """Bring the workers to where the next line starts a round."""
    common = {"system": system, "peers": case.peers, "size": case.size, "codec": case.codec, "folder": folder}
    if system == "gloo":
        with socket.create_server(("127.0.0.1", 0)) as free:
            common["port"] = free.getsockname()[1]
        for rank, worker in enumerate(members.workers):
            await worker.tell({**common, "rank": rank})
        await asyncio.gather(*(worker.answer() for worker in members.workers))
        return
    places: list[Any] = []
    for rank, worker in enumerate(members.workers):
        first = places[0] if places else []
        initial = first["addresses"] if isinstance(first, dict) else first
        await worker.tell({**common, "rank": rank, "initial_peers": initial})
        if not places:
            places.append((await worker.answer())["ready"])
    places += [(await worker.answer())["ready"] for worker in members.workers[1:]]
    if system != "hivemind":
        for worker in members.workers:
            await worker.tell({"group": places})


def side_by_side(case: Case, systems: Sequence[str], available: float) -> tuple[list[list[str]], dict[str, str]]:
    """Groups of systems that fit into memory together, and those that do not fit at all, with the reason."""
    groups: list[list[str]] = []
    missing: dict[str, str] = {}
    for system in (name for name in ORDER if name in systems):
        need = case.footprint(system)
        if not case.runs(system):
            missing[system] = "has no such codec"
        elif need > available:
            missing[system] = f"needs about {need / 1e9:.0f} GB"
        elif groups and sum(case.footprint(name) for name in groups[-1]) + need <= available:
            groups[-1].append(system)
        else:
            groups.append([system])
    return groups, missing


async def take_turns(case: Case, systems: Sequence[str], repetitions: int, missing: dict[str, str]) -> list[Subject]:
    """Run systems side by side; those that failed are in `missing`, and what was done before a cancellation counts."""
    subjects: list[Subject] = []
    async with contextlib.AsyncExitStack() as stack:
        try:
            for system in systems:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                subject = Subject(case, system, await stack.enter_async_context(fleet(case.peers)))
                if await _went(subject.start(folder), system, missing):
                    subjects.append(subject)
            for repetition in range(repetitions):
                for number in range(len(subjects)):  # each time another one goes first
                    subject = subjects[(number + repetition) % len(subjects)]
                    if subject.system not in missing:
                        await _went(subject.repeat(), subject.system, missing)
        except asyncio.CancelledError:
            missing |= {name: NO_TIME for name in systems if name not in missing}
            for subject in subjects:
                if subject.rounds and missing[subject.system] == NO_TIME:
                    del missing[subject.system]
    return [subject for subject in subjects if subject.system not in missing]


async def _went(work: Coroutine[Any, Any, None], system: str, missing: dict[str, str]) -> bool:
    try:
        await work
    except WorkerLost as lost:
        missing[system] = str(lost)
    return system not in missing


async def compare(case: Case, systems: Sequence[str], repetitions: int, end: float) -> Comparison:
    """Run one case, until `end` in time.monotonic at the latest."""
    before = os.getloadavg()[0]
    groups, missing = side_by_side(case, systems, MEMORY_SHARE * psutil.virtual_memory().available)
    found: dict[str, Measured] = {}
    for group in groups:
        running = asyncio.create_task(take_turns(case, group, repetitions, missing))
        await asyncio.wait({running}, timeout=max(0.0, end - time.monotonic()))
        running.cancel()
        for subject in await running:
            found[subject.system] = subject.measured()
    return Comparison(case=case, systems=found, missing=missing, load=before, date=time.strftime("%Y-%m-%d"))


async def run(arguments: argparse.Namespace, console: Console) -> list[Comparison]:
    """The cases that are missing, until the time is over."""
    kept = arguments.output / "allreduce.json"
    found = load(kept)
    wanted = [
        Case(codec=c, peers=n, size=s) for c in arguments.codecs for s in arguments.sizes for n in arguments.peers
    ]
    done = set() if arguments.again else {one.case for one in found}
    left = [case for case in wanted if case not in done]
    end = time.monotonic() + arguments.seconds
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("all-reduce", total=len(left))
        for case in left:
            if time.monotonic() >= end:
                break
            progress.update(bar, description=case.name)
            new = await compare(case, arguments.systems, arguments.repetitions, end)
            if not new.systems:
                progress.console.print(f"{case.name}: {new.missing}")
                continue
            found = merged(found, new)
            save(found, kept)
            progress.console.print(report.verdict(case, new))
            progress.advance(bar)
    return found


async def first_byte(peers: int, console: Console) -> None:
    """From the start of a round to the first chunk that moves, the slowest of `peers`, connections kept."""
    found = await compare(Case(codec="none", peers=peers, size=100_000), ["direct"], 7, time.monotonic() + 120)
    measured = found.systems.get("direct")
    if measured is None or measured.first_byte is None:
        raise SystemExit(f"not measured: {found.missing}")
    console.print(f"first byte, {peers} peers: {1000 * measured.first_byte:.0f} ms  {measured.detail}")


def size_of(text: str) -> int:
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1] in UNITS else int(text)


NOTES = """\
Medians over rounds in turns with the other systems; seconds of the slowest peer, from the start of a round to its
result: for direct and libp2p with the check of the contribution, connections' greetings and the vote, for hivemind
the all-reduce without its matchmaking. Processor seconds are those of the process trees, daemons included, in that time
(for hivemind with the matchmaking). `wire` is counted at the loopback interface, `sockets` by the program; theory
is 2(n-1)/n of the encoded vector. Memory is the peak of the first round beyond what was in use before (PSS), and of the
vector's size. The load is the machine's before the case began: above 1 it was doing other things, and ratios and
processor seconds say more than seconds. All processes share the cores: with more processes than cores the processor is
what limits everybody.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--sizes", type=size_of, nargs="+", default=[size_of("1M"), size_of("10M")])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--codecs", nargs="+", default=["none"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=480.0, help="of this call")
    parser.add_argument("--again", action="store_true", help="measure what was found earlier, too")
    parser.add_argument("--first-byte", type=int, metavar="PEERS", help="measure only this")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    console = Console(width=190)
    if arguments.first_byte:
        asyncio.run(first_byte(arguments.first_byte, console))
        return
    found = asyncio.run(run(arguments, console))
    title = f"All-reduce on loopback, {os.cpu_count()} cores"
    console.print(report.table(found, title))
    report.write(found, arguments.output, title, NOTES)


if __name__ == "__main__":
    main()
