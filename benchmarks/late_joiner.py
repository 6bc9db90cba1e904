"""Seconds and memory that getting back in step takes: a whole state from one peer, from several, and from the hub.

    python -m benchmarks.late_joiner [--layers 10] [--width 512] [--peers 1 3] [--output benchmarks/results]

Each peer is a process that serves a state on disk over libp2p, encrypted; the late one is a process with a model, its
gradient, accumulated gradient and an old state in memory, as a miner has them. It runs `CatchUp.check` once: download,
every chunk proved, the whole state verified again, adopted, kept in its checkpoint. `extra` is the highest resident
memory from the first question to the kept checkpoint, less that before; wanted: under 1.5 states. `hub` is a directory
on the same disk. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from distributed_training.averaging.peer import Peer, PeerConfig
from distributed_training.averaging.state_transfer import StateOffer, StateServer
from distributed_training.catch_up import CatchUp, CatchUpConfig
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker
from distributed_training.hub.directory import DirectoryHub
from distributed_training.hub.hub import ModelTag
from distributed_training.keeper import Keeper
from distributed_training.model.chunks import Chunks
from distributed_training.peers import KnownPeers
from distributed_training.protocol import PeerBinding
from distributed_training.run import ModelSpec, RunSpec, load_run
from distributed_training.schedule import View
from template.clock import SystemClock
from template.telemetry import MemorySink, Telemetry

ROOT = Path(__file__).parents[1]
VOCABULARY = 257
WAIT_SECONDS = 150.0
MIB = 1 << 20

Arguments = argparse.Namespace


def run_spec(arguments: Arguments) -> RunSpec:
    """The nano run with a model of the asked size."""
    config = {"n_layer": arguments.layers, "n_head": 8, "n_embd": arguments.width}
    return dataclasses.replace(load_run(ROOT / "runs" / "nano.toml"), model=ModelSpec(family="gpt2", config=config))


def prepare(arguments: Arguments) -> None:
    """Write the state of epoch 1, what a server has to know of it, and a release of it."""
    spec = run_spec(arguments)
    engine = Engine(spec, VOCABULARY)
    engine.apply(np.random.default_rng(0).normal(size=engine.layout.size).astype(np.float32))
    engine.save(arguments.folder / "checkpoint")
    (arguments.folder / "digests").write_bytes(engine.state.digests)
    facts = {"state_hash": engine.state_hash, "size": engine.layout.size, "vectors": len(engine.vectors)}
    (arguments.folder / "facts.json").write_text(json.dumps(facts))
    tag = ModelTag(
        run_id=spec.run_id,
        epoch=1,
        state_hash=engine.state_hash,
        samples=1,
        participants=(1,),
        held_out_loss=None,
    )
    hub = DirectoryHub(arguments.folder / "hub", telemetry=Telemetry(), clock=SystemClock())
    asyncio.run(hub.publish(state_folder(arguments), tag))


def state_folder(arguments: Arguments) -> Path:
    folder: Path = arguments.folder / "checkpoint" / "state-00000001"
    return folder


def read_facts(arguments: Arguments) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((arguments.folder / "facts.json").read_text())
    return facts


async def serve(arguments: Arguments) -> None:
    """Offer the state until standard input ends."""
    facts = read_facts(arguments)
    offer = StateOffer(
        state_hash=facts["state_hash"],
        folder=state_folder(arguments),
        chunks=Chunks(4 * facts["size"], 1 + facts["vectors"]),
        digests=(arguments.folder / "digests").read_bytes(),
    )
    run_id, available = run_spec(arguments).run_id, {1: offer}
    config = PeerConfig(host="127.0.0.1", port=0, identity_path=arguments.folder / f"peer{arguments.number}")
    async with (
        Peer(config) as peer,
        StateServer(peer, run_id=run_id, provider=available.get, allow=lambda _: True, admit=lambda _: True),
    ):
        print_line({"peer_id": peer.peer_id, "addresses": peer.addresses})
        await asyncio.to_thread(sys.stdin.read)


def print_line(value: dict[str, Any]) -> None:
    """One line for the parent process."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def join(arguments: Arguments) -> None:
    """Catch up once, and say what it took."""
    spec, sink, clock = run_spec(arguments), MemorySink(), SystemClock()
    servers = json.loads(arguments.servers)
    folder = arguments.folder / "late"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    engine, telemetry, known = Engine(spec, VOCABULARY), Telemetry([sink], clock), KnownPeers()
    views = [view(uid, server, read_facts(arguments)["state_hash"]) for uid, server in enumerate(servers)]
    for seen in views:
        known.add(seen.peer.hotkey, seen.peer.peer_id)
    config = PeerConfig(host="127.0.0.1", port=0, identity_path=folder / "identity")
    async with Peer(config) as peer, TrainingWorker(engine, lambda *_: None) as worker:
        keeper = Keeper(folder / "checkpoint", worker, telemetry)
        await keeper.save()
        catch_up = CatchUp(
            uid=99,
            config=CatchUpConfig(),
            run_id=spec.run_id,
            engine=engine,
            worker=worker,
            transport=peer,
            binding=view(98, {"peer_id": peer.peer_id, "addresses": peer.addresses}, "0" * 64).peer,
            known=known,
            keeper=keeper,
            hub=DirectoryHub(arguments.folder / "hub", telemetry=telemetry, clock=clock),
            folder=folder,
            telemetry=telemetry,
            clock=clock,
            seed=0,
            turn=asyncio.Lock(),
        )
        catch_up.settled = True
        print_line(await measured(catch_up, views) | {"told": told(sink)})


async def measured(catch_up: CatchUp, views: list[View]) -> dict[str, Any]:
    """What one check took. The peak is reset first, so that it is that of the check alone."""
    reset_peak()
    before, started = resident("VmRSS"), SystemClock().monotonic()
    in_step = await catch_up.check(views, [1.0] * len(views), len(views))
    seconds = SystemClock().monotonic() - started
    return {"in_step": in_step, "seconds": seconds, "before": before, "extra": resident("VmHWM") - before}


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def resident(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def told(sink: MemorySink) -> list[dict[str, Any]]:
    return [dict(record) for record in sink.records if record["kind"] in ("CaughtUp", "CatchUpFailed")]


def view(uid: int, server: dict[str, Any], state_hash: str) -> View:
    """A validator at the right state."""
    binding = PeerBinding(
        hotkey="5" * 45 + f"{uid:03d}",
        peer_id=server["peer_id"],
        addresses=tuple(server["addresses"]),
        signature="0x" + "0" * 128,
    )
    return View(uid=uid, is_validator=True, epoch=1, state_hash=state_hash, samples=0, peer=binding)


# What follows runs in the parent process.


async def started(stack: AsyncExitStack, arguments: Arguments, roles: list[list[str]]) -> list[dict[str, Any]]:
    """Start this program once for each role, all at once; the first line that each prints."""
    size = [f"--layers={arguments.layers}", f"--width={arguments.width}", f"--folder={arguments.folder}"]
    processes = [await stack.enter_async_context(child([*size, *role])) for role in roles]
    lines: list[dict[str, Any]] = []
    async with asyncio.timeout(WAIT_SECONDS):
        for process in processes:
            assert process.stdout is not None
            lines.append(json.loads(await process.stdout.readline()))
    return lines


@asynccontextmanager
async def child(arguments: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of this program, which ends when its standard input does."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "benchmarks.late_joiner", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT, limit=MIB)
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def case(arguments: Arguments, peers: int) -> dict[str, Any]:
    """One late joiner beside that many peers; 0: the hub alone has the state, and one peer that cannot be reached."""
    async with AsyncExitStack() as stack:
        roles = [["--role=serve", f"--number={number}"] for number in range(max(peers, 1))]
        servers = await started(stack, arguments, roles)
        if not peers:
            servers[0]["addresses"] = ["/ip4/127.0.0.1/tcp/1"]
        (result,) = await started(stack, arguments, [["--role=join", f"--servers={json.dumps(servers)}"]])
        return result


async def compare(arguments: Arguments) -> list[list[str]]:
    """A row of the table for each case."""
    facts = read_facts(arguments)
    size, rows = 4 * facts["size"] * (1 + facts["vectors"]), []
    for peers in (*arguments.peers, 0):
        result = await case(arguments, peers)
        assert result["in_step"], result
        caught = result["told"][-1]
        shares = ", ".join(f"{part / size:.0%}" for part in caught["parts"].values())
        rows.append(
            [
                f"{peers} peers" if peers else "hub, after 1 dead peer",
                f"{size / MIB:.0f}",
                f"{result['seconds']:.1f}",
                f"{size / MIB / caught['seconds']:.0f}",
                shares,
                f"{result['before'] / MIB:.0f}",
                f"{result['extra'] / MIB:.0f}",
                f"{result['extra'] / size:.2f}",
            ]
        )
    return rows


HEADINGS = ("from", "state MiB", "seconds", "MiB/s", "shares", "resident before MiB", "extra MiB", "extra / state")


def report(rows: list[list[str]], output: Path | None) -> None:
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
    if output is None:
        return
    lines = [f"| {' | '.join(row)} |" for row in [list(HEADINGS), ["---"] * len(HEADINGS), *rows]]
    title = (
        f"# Coming late: a whole state, into step\n\n`{' '.join(['python -m benchmarks.late_joiner', *sys.argv[1:]])}`"
    )
    (output / "late_joiner.md").write_text(f"{title}\n\n" + "\n".join(lines) + "\n")


def main() -> None:
    """The parent, or one role."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--peers", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--role", choices=["serve", "join"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--servers", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.role is not None:
        asyncio.run({"serve": serve, "join": join}[arguments.role](arguments))
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        prepare(arguments)
        report(asyncio.run(compare(arguments)), arguments.output)


if __name__ == "__main__":
    main()
