"""Seconds of a round over links like those of real miners, against what the bytes take at the links' rate.

    python -m benchmarks.links [--peers 4] [--rates 110] [--rtt 50] [--size 10M] [--codec none] [--shares equal]
                               [--nat {idle,reduces}] [--repetitions 2] [--output benchmarks/results/links.md]

Each member is a process in a network namespace of its own with its own libp2p daemon; see wan.py for the network and
what it needs. `--rates` are Mbit/s each way, given once for all or for each peer; with `--shares rates` who has the
faster link reduces more. With `--nat` nobody can connect to the last peer: it must connect to the others. As `idle`
it reduces nothing, as a run's leader would have it; if it `reduces`, the others' parts for it go over libp2p, on the
connections that it made. The first round of a group makes its connections and does not count, but for its CONNECT.

`ideal` is the longest time that any member's bytes take at its link's rate, in the busier direction; wanted: at most
1.25 of it. `plain` is what plain TCP connections take for the same bytes in the same network, in turns with the rounds
(links_plain.py): TCP's own start and losses are in it, and what the switch of wan.py costs. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.allreduce import size_of
from benchmarks.allreduce_worker import Result
from benchmarks.wan import Line, Wan, WanConfig, WanError
from distributed_training.averaging.codec import pair_named

ROOT = Path(__file__).parents[1]
LINE = 1 << 20  # bytes of one answer of a worker
COLUMNS = (
    "peers",
    "Mbit/s",
    "RTT ms",
    "floats",
    "codec",
    "shares",
    "NAT",
    "seconds",
    "ideal",
    "x ideal",
    "plain",
    "x plain",
    "first connect s",
    "connect s",
    "planes",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    rates: tuple[float, ...]
    rtt: float
    size: int
    codec: str
    by_rate: bool
    nat: str | None  # "idle" or "reduces"

    @property
    def shares(self) -> tuple[float, ...]:
        """What each member reduces."""
        shares = list(self.rates) if self.by_rate else [1.0] * len(self.rates)
        if self.nat == "idle":
            shares[-1] = 0.0
        return tuple(share / sum(shares) for share in shares)

    @property
    def encoded(self) -> tuple[int, int]:
        """Bytes of a whole contribution, and of a whole average."""
        pair = pair_named(self.codec)
        return pair.parts.encoded_size(self.size), pair.average.encoded_size(self.size)

    @property
    def ideal(self) -> float:
        """Seconds: each sends its parts of the others' shares and the average of its own to all others, and receives
        as much the other way round."""
        others = len(self.rates) - 1
        part, average = (8 * size / 1e6 for size in self.encoded)
        busier = [
            max((1 - s) * part + s * others * average, s * others * part + (1 - s) * average) for s in self.shares
        ]
        return max(bits / rate for bits, rate in zip(busier, self.rates, strict=True))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Medians over repetitions; seconds are of the slowest member."""

    case: Case
    seconds: float
    plain: float
    first_connect: float
    connect: float
    planes: tuple[str, ...]


class Worker:
    """A process in its namespace: a member (allreduce_worker.py), or plain TCP (links_plain.py)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def tell(self, message: Result) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        await self.process.stdin.drain()

    async def answer(self) -> Result:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended; its output is above")
        result: Result = json.loads(line)
        return result


@contextlib.asynccontextmanager
async def workers(wan: Wan, count: int, module: str) -> AsyncIterator[list[Worker]]:
    """One worker a host, which end with the block."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment.setdefault("HIVEMIND_LOGLEVEL", "ERROR")
    processes = [
        await asyncio.create_subprocess_exec(
            *wan.command(host),
            sys.executable,
            "-m",
            module,
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE,
        )
        for host in range(count)
    ]
    try:
        yield [Worker(process) for process in processes]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def measure(case: Case, repetitions: int, congestion: str | None) -> Measured:
    """Build the network, run the group, and take it down."""
    count = len(case.rates)
    lines = tuple(
        Line(rate=rate, nat=case.nat is not None and host == count - 1) for host, rate in enumerate(case.rates)
    )
    results: list[list[Result]] = []
    plain: list[float] = []
    config = WanConfig(lines=lines, delay=case.rtt / 2000, congestion=congestion)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            Wan(config) as wan,
            workers(wan, count, "benchmarks.allreduce_worker") as members,
            workers(wan, count, "benchmarks.links_plain") as carriers,
        ):
            await _start(case, wan, members, folder)
            await _start_plain(case, wan, carriers)
            for repetition in range(repetitions + 1):
                results.append(await _turn(members, repetition + 1))
                plain.append(max(result["seconds"] for result in await _turn(carriers, repetition + 1)))
    connects = [max(r["states"]["CONNECT"] for r in round_) for round_ in results]
    del results[0], plain[0]
    return Measured(
        case=case,
        seconds=statistics.median(max(r["seconds"] for r in round_) for round_ in results),
        plain=statistics.median(plain),
        first_connect=connects[0],
        connect=statistics.median(connects[1:]),
        planes=tuple(sorted({plane for r in results[-1] for plane in r["planes"]})),
    )


async def _turn(group: Sequence[Worker], number: int) -> list[Result]:
    """One repetition of all; a result that says what failed ends the benchmark."""
    await asyncio.gather(*(worker.tell({"go": number}) for worker in group))
    answers = await asyncio.gather(*(worker.answer() for worker in group))
    if failed := [answer["failed"] for answer in answers if "failed" in answer]:
        raise SystemExit(failed[0])
    return list(answers)


async def _start(case: Case, wan: Wan, members: Sequence[Worker], folder: str) -> None:
    common = {"system": "direct", "peers": len(members), "size": case.size, "codec": case.codec, "folder": folder}
    places: list[Any] = []
    for rank, member in enumerate(members):
        initial = places[0]["addresses"] if places else []
        order = {**common, "rank": rank, "host": wan.address(rank), "initial_peers": initial}
        await member.tell({**order, "shares": case.shares})
        if not places:
            places.append((await member.answer())["ready"])
    places += [(await member.answer())["ready"] for member in members[1:]]
    await asyncio.gather(*(member.tell({"group": places}) for member in members))


async def _start_plain(case: Case, wan: Wan, carriers: Sequence[Worker]) -> None:
    for rank, carrier in enumerate(carriers):
        await carrier.tell({"host": wan.address(rank)})
    ports = [(await carrier.answer())["ready"] for carrier in carriers]
    places = [(wan.address(rank), port) for rank, port in enumerate(ports)]
    streams = streams_of(case, places)
    await asyncio.gather(*(carrier.tell({"streams": mine}) for carrier, mine in zip(carriers, streams, strict=True)))
    await asyncio.gather(*(carrier.answer() for carrier in carriers))


def streams_of(case: Case, places: Sequence[tuple[str, int]]) -> list[list[dict[str, Any]]]:
    """For each host its streams: one for each member and reducer, the part there and the average back, as in a round.

    A member opens those on which it sends its parts; where the reducer cannot be reached, that one opens them.
    """
    found: list[list[dict[str, Any]]] = [[] for _ in places]
    behind = len(places) - 1 if case.nat is not None else None
    for number, (member, reducer) in enumerate(itertools.permutations(range(len(places)), 2)):
        part, average = (round(size * case.shares[reducer]) for size in case.encoded)
        if case.shares[reducer] == 0:
            continue
        opens, opened = (reducer, member) if reducer == behind else (member, reducer)
        there = {"number": number, "send": part, "receive": average}
        back = {"number": number, "send": average, "receive": part}
        for host, stream in ((member, there), (reducer, back)):
            found[host].append({**stream, "address": places[opened] if host == opens else None})
    return found


def row(measured: Measured) -> list[str]:
    case = measured.case
    rates = sorted(set(case.rates))
    return [
        str(len(case.rates)),
        "/".join(f"{rate:g}" for rate in (rates if len(rates) == 1 else case.rates)),
        f"{case.rtt:g}",
        f"{case.size / 1e6:g}M",
        case.codec,
        "by rate" if case.by_rate else "equal",
        "" if case.nat is None else f"last peer, {case.nat}",
        f"{measured.seconds:.2f}",
        f"{case.ideal:.2f}",
        f"{measured.seconds / case.ideal:.2f}",
        f"{measured.plain:.2f}",
        f"{measured.seconds / measured.plain:.2f}",
        f"{measured.first_connect:.2f}",
        f"{measured.connect:.2f}",
        " ".join(measured.planes),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=[110.0])
    parser.add_argument("--rtt", type=float, default=50.0, help="milliseconds between any two peers, there and back")
    parser.add_argument("--size", type=size_of, default=size_of("10M"))
    parser.add_argument("--codec", default="none")
    parser.add_argument("--shares", choices=["equal", "rates"], default="equal")
    parser.add_argument("--nat", choices=["idle", "reduces"])
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--congestion", help="TCP's congestion control in the namespaces, such as bbr or reno")
    parser.add_argument("--output", type=Path, help="append the row to this markdown table")
    arguments = parser.parse_args()
    rates = arguments.rates if len(arguments.rates) > 1 else arguments.rates * arguments.peers
    case = Case(
        rates=tuple(rates),
        rtt=arguments.rtt,
        size=arguments.size,
        codec=arguments.codec,
        by_rate=arguments.shares == "rates",
        nat=arguments.nat,
    )
    console = Console(width=180)
    try:
        cells = row(asyncio.run(measure(case, arguments.repetitions, arguments.congestion)))
    except WanError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    table = Table(title="A round over links of limited rate")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    table.add_row(*cells)
    console.print(table)
    if arguments.output is not None:
        _append(arguments.output, cells)
    return 0


def _append(path: Path, cells: Sequence[str]) -> None:
    if not path.exists():
        header = [
            "# A round over links of limited rate",
            "",
            f"`python -m benchmarks.links`, {time.strftime('%Y-%m-%d')}",
            "",
        ]
        path.write_text("\n".join([*header, "| " + " | ".join(COLUMNS) + " |", "|---:" * len(COLUMNS) + "|"]) + "\n")
    with path.open("a") as file:
        file.write("| " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    sys.exit(main())
