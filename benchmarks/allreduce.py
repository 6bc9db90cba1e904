"""Seconds, bytes, processor time and memory of an all-reduce among processes on this machine.

    python -m benchmarks.allreduce [--peers 2 4 8] [--sizes 1M 10M] [--systems direct libp2p hivemind gloo]
                                   [--codec none] [--repetitions 5] [--first-byte 16] [--output benchmarks/results]

`direct` and `libp2p` are this project's round with its data over either plane, encrypted, with identities proved, a
vote, and every state counted; `hivemind` is the stock averager (its all-reduce only, without matchmaking), encrypted;
`gloo` is torch.distributed, neither encrypted nor fault tolerant: the floor. One process a peer, one thread each for
arithmetic. Bytes on the wire are those of the loopback interface: run it where nothing else uses that, e.g. in
`unshare --net sh -c 'ip link set lo up; exec python -m benchmarks.allreduce'`.

Wanted: direct at most twice gloo's time and a quarter of hivemind's; wire at most 1.02 of theory, 2(n-1)/n of the
vector a peer; peak extra memory at most twice the vector; first byte within 200 ms. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
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

ROOT = Path(__file__).parents[1]
SYSTEMS = ("direct", "libp2p", "hivemind", "gloo")
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}
LINE = 1 << 20  # bytes of one answer of a worker

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    system: str
    peers: int
    size: int
    codec: str

    @property
    def theory(self) -> float:
        """Bytes that each peer must send, uncompressed."""
        return 2 * (self.peers - 1) / self.peers * 4 * self.size


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Medians over repetitions: of the slowest peer for seconds, of the mean peer for the rest."""

    case: Case
    seconds: float
    fastest: float
    wire: float
    cpu: float
    memory: float
    first_byte: float | None
    detail: Result


class Worker:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def tell(self, message: Result) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()

    async def answer(self) -> Result:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended; its output is above")
        result: Result = json.loads(line)
        return result


@contextlib.asynccontextmanager
async def workers(count: int) -> AsyncIterator[list[Worker]]:
    """Worker processes, which end with the block."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment.setdefault("HIVEMIND_LOGLEVEL", "ERROR")
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.allreduce_worker",
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE,
        )
        for _ in range(count)
    ]
    try:
        yield [Worker(process) for process in processes]
    finally:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        await asyncio.gather(*(_end(process) for process in processes))


async def _end(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def start(case: Case, members: Sequence[Worker], folder: str) -> None:
    """Bring the workers to where the next line starts a repetition."""
    common = {"system": case.system, "peers": case.peers, "size": case.size, "codec": case.codec, "folder": folder}
    if case.system == "gloo":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for rank, worker in enumerate(members):
            await worker.tell({**common, "rank": rank, "port": port})
        await asyncio.gather(*(worker.answer() for worker in members))
        return
    places: list[Any] = []
    for rank, worker in enumerate(members):
        first = places[0] if places else []
        initial = first["addresses"] if isinstance(first, dict) else first
        await worker.tell({**common, "rank": rank, "initial_peers": initial})
        if not places:
            places.append((await worker.answer())["ready"])
    places += [(await worker.answer())["ready"] for worker in members[1:]]
    if case.system != "hivemind":
        for worker in members:
            await worker.tell({"group": places})


def loopback_bytes() -> int:
    """What this machine has sent to itself so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise SystemExit("no loopback interface in /proc/net/dev")


async def measure(case: Case, repetitions: int) -> Measured:
    """Run one case; the first repetition makes the connections and does not count."""
    rounds: list[list[Result]] = []
    wire: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        async with workers(case.peers) as members:
            await start(case, members, folder)
            for repetition in range(repetitions + 1):
                before = loopback_bytes()
                for worker in members:
                    await worker.tell({"go": repetition + 1})
                results = await asyncio.gather(*(worker.answer() for worker in members))
                if repetition:
                    rounds.append(results)
                    wire.append((loopback_bytes() - before) / case.peers)
    slowest = [max(result["seconds"] for result in results) for results in rounds]

    def middle(key: str) -> float:
        return statistics.median(statistics.fmean(result[key] for result in results) for results in rounds)

    sockets = middle("wire") if "wire" in rounds[0][0] else statistics.median(wire)
    has_first = rounds[0][0].get("first_byte") is not None
    return Measured(
        case=case,
        seconds=statistics.median(slowest),
        fastest=min(slowest),
        wire=sockets,
        cpu=middle("cpu"),
        memory=middle("memory"),
        first_byte=statistics.median(max(r["first_byte"] for r in rs) for rs in rounds) if has_first else None,
        detail={"loopback": statistics.median(wire), **{k: rounds[-1][0].get(k) for k in ("states", "work", "planes")}},
    )


COLUMNS = (
    "peers",
    "floats",
    "system",
    "seconds",
    "fastest",
    "x gloo",
    "MB/s a peer",
    "wire / theory",
    "lo / theory",
    "CPU-s a peer",
    "memory / vector",
    "first byte ms",
)


def row(measured: Measured, gloo: float | None) -> list[str]:
    case = measured.case
    return [
        str(case.peers),
        f"{case.size / 1e6:g}M",
        case.system,
        f"{measured.seconds:.3f}",
        f"{measured.fastest:.3f}",
        "" if gloo is None else f"{measured.seconds / gloo:.2f}",
        f"{case.theory / measured.seconds / 1e6:.0f}",
        f"{measured.wire / case.theory:.3f}",
        f"{measured.detail['loopback'] / case.theory:.3f}",
        f"{measured.cpu:.2f}",
        f"{measured.memory / (4 * case.size):.2f}",
        "" if measured.first_byte is None else f"{1000 * measured.first_byte:.0f}",
    ]


def rows(results: Sequence[Measured]) -> list[list[str]]:
    floor = {(m.case.peers, m.case.size): m.seconds for m in results if m.case.system == "gloo"}
    return [row(m, floor.get((m.case.peers, m.case.size))) for m in results]


def write(results: Sequence[Measured], folder: Path, title: str) -> None:
    """The table as markdown, and the plot of seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", "", " | ".join(COLUMNS), " | ".join("---:" for _ in COLUMNS)]
    lines += [" | ".join(cells) for cells in rows(results)]
    (folder / "allreduce.md").write_text("\n".join(lines) + "\n")
    plot(results, folder / "allreduce.png")


def plot(results: Sequence[Measured], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    groups = sorted({m.case.peers for m in results})
    figure, axes = plt.subplots(1, len(groups), figsize=(4 * len(groups), 4), sharey=True, squeeze=False)
    for axis, peers in zip(axes[0], groups, strict=True):
        for system in SYSTEMS:
            points = sorted(
                (m.case.size, m.seconds) for m in results if (m.case.peers, m.case.system) == (peers, system)
            )
            if points:
                axis.loglog(*zip(*points, strict=True), marker="o", label=system)
        axis.set(title=f"{peers} peers", xlabel="float32 values")
        axis.grid(visible=True, which="major", alpha=0.3)
    axes[0][0].set_ylabel("seconds")
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def size_of(text: str) -> int:
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1] in UNITS else int(text)


async def run(arguments: argparse.Namespace, console: Console) -> list[Measured]:
    results: list[Measured] = []
    for peers in arguments.peers:
        for size in arguments.sizes:
            for system in arguments.systems:
                case = Case(system=system, peers=peers, size=size, codec=arguments.codec)
                results.append(await measure(case, arguments.repetitions))
                console.print(f"{system:9} {peers} x {size:,}: {results[-1].seconds:.3f} s  {results[-1].detail}")
    return results


async def first_byte(peers: int, console: Console) -> None:
    """From the start of a round to the first chunk that moves, the slowest of `peers`, connections kept."""
    measured = await measure(Case(system="direct", peers=peers, size=100_000, codec="none"), 5)
    assert measured.first_byte is not None
    console.print(f"first byte, {peers} peers: {1000 * measured.first_byte:.0f} ms  {measured.detail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--sizes", type=size_of, nargs="+", default=[size_of("1M"), size_of("10M")])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--codec", default="none")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--first-byte", type=int, metavar="PEERS", help="measure only this")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    console = Console(width=160)
    if arguments.first_byte:
        asyncio.run(first_byte(arguments.first_byte, console))
        return
    load, when = os.getloadavg()[0], time.strftime("%Y-%m-%d")
    results = asyncio.run(run(arguments, console))
    title = f"All-reduce on loopback, {os.cpu_count()} cores, codec {arguments.codec}, load before {load:.1f} ({when})"
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for cells in rows(results):
        table.add_row(*cells)
    console.print(table)
    write(results, arguments.output, title)


if __name__ == "__main__":
    main()
