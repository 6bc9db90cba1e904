"""Whether the libp2p daemon holds more and more: its memory over many streams, and over many neighbours that come anew.

    python -m benchmarks.daemon_memory [--seconds 300] [--output benchmarks/results/daemon_memory.md]

Half of the time one peer opens stream after stream to another; half of it a neighbour starts, opens a stream and ends,
again and again. Resident memory is the operating system's figure for the daemon that stays.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress

from distributed_training.averaging.peer import Peer, PeerConfig
from distributed_training.averaging.streams import Stream

PROTOCOL = "dt-memory/1"
WORD = 10  # bytes each way
POINTS = 12  # lines of a table

Points = list[tuple[int, float]]  # how many so far, and the daemon's resident megabytes then


def _config(folder: Path, name: str, initial_peers: tuple[str, ...] = ()) -> PeerConfig:
    return PeerConfig(host="127.0.0.1", port=0, identity_path=folder / name, initial_peers=initial_peers)


def _megabytes(peer: Peer) -> float:
    return float(psutil.Process(peer.daemon_pid).memory_info().rss / 1e6)


async def _answer(stream: Stream) -> None:
    await stream.write(await stream.readexactly(WORD))
    await stream.read(1)


async def _greet(peer: Peer, other: Peer) -> None:
    stream = await peer.open(other.peer_id, other.addresses, PROTOCOL)
    await stream.write(bytes(WORD))
    await stream.readexactly(WORD)
    await stream.close()
    stream.abort()


async def streams(folder: Path, seconds: float, progress: Progress) -> Points:
    """Streams one after another between two peers; the memory of the one that accepts them."""
    bar, points, began = progress.add_task("streams", total=seconds), [], time.monotonic()
    async with Peer(_config(folder, "stays")) as stays, Peer(_config(folder, "opens", stays.addresses)) as opens:
        await stays.serve(PROTOCOL, _answer)
        count = 0
        while (elapsed := time.monotonic() - began) < seconds:
            await _greet(opens, stays)
            count += 1
            if count % 100 == 1:
                points.append((count, _megabytes(stays)))
                progress.update(bar, completed=elapsed)
    return points


async def neighbours(folder: Path, seconds: float, progress: Progress) -> Points:
    """A neighbour that comes, with one identity, as a new process each time; the memory of the one that stays."""
    bar, points, began = progress.add_task("neighbours", total=seconds), [], time.monotonic()
    async with Peer(_config(folder, "host")) as stays:
        await stays.serve(PROTOCOL, _answer)
        count = 0
        while (elapsed := time.monotonic() - began) < seconds:
            async with Peer(_config(folder, "comes", stays.addresses)) as comes:
                await _greet(comes, stays)
            count += 1
            points.append((count, _megabytes(stays)))
            progress.update(bar, completed=elapsed)
    return points


def table(points: Points, what: str) -> list[str]:
    """A few points, evenly spread, as markdown."""
    step = max(1, len(points) // POINTS)
    rows = [*points[::step], points[-1]]
    return [f"| {what} | resident MB |", "|---|---|", *(f"| {count:,} | {size:.1f} |" for count, size in rows), ""]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:
        at = Path(folder)
        opened = asyncio.run(streams(at, arguments.seconds / 2, progress))
        met = asyncio.run(neighbours(at, arguments.seconds / 2, progress))
    title = ["# The libp2p daemon's memory", "", "`python -m benchmarks.daemon_memory`", ""]
    text = "\n".join([*title, *table(opened, "streams so far"), *table(met, "neighbours so far")])
    Console().print(text, markup=False)
    if arguments.output is not None:
        arguments.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
