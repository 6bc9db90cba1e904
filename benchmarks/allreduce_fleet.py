"""The processes of one system in benchmarks/allreduce.py: started, told what to do, watched from outside, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
LINE = 1 << 20  # bytes of one answer of a worker
ANSWER_SECONDS = 240.0
SAMPLE_SECONDS = 0.05

Result = dict[str, Any]


class WorkerLost(Exception):
    """A worker ended or does not answer."""


class Worker:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self._process = process

    async def tell(self, message: Result) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError as error:
            raise WorkerLost("a process ended") from error

    async def answer(self) -> Result:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise WorkerLost(f"no answer in {ANSWER_SECONDS:g} s") from None
        if not line:
            raise WorkerLost("a process ended")
        result: Result = json.loads(line)
        if "failed" in result:
            raise WorkerLost(str(result["failed"]))
        return result


class Fleet:
    """The workers of one system, and the processes that they started."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers
        self._family: list[psutil.Process] = []

    async def round(self, number: int) -> list[Result]:
        """One round of all; their answers."""
        for worker in self.workers:
            await worker.tell({"go": number})
        return list(await asyncio.gather(*(worker.answer() for worker in self.workers)))

    async def watched_round(self, number: int) -> float:
        """One round; by how many bytes the memory of all grew at its peak, as samples show."""
        roots = [psutil.Process(worker.pid) for worker in self.workers]
        self._family = [one for root in roots for one in (root, *root.children(recursive=True))]
        before = peak = self._proportional()
        running = asyncio.create_task(self.round(number))
        while not running.done():
            await asyncio.wait({running}, timeout=SAMPLE_SECONDS)
            peak = max(peak, self._proportional())
        await running
        return float(peak - before)

    def cpu_seconds(self) -> float:
        """Of all processes, so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self._family)

    def _proportional(self) -> int:
        """Bytes in use; what is shared is counted once."""
        total = 0
        for process in self._family:
            with contextlib.suppress(OSError):  # it has just ended
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total


@contextlib.asynccontextmanager
async def fleet(count: int) -> AsyncIterator[Fleet]:
    """Worker processes, which end with the block."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment.setdefault("HIVEMIND_LOGLEVEL", "ERROR")
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
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
        yield Fleet([Worker(process) for process in processes])
    finally:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        await asyncio.gather(*(_end(process) for process in processes))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Wait for a worker; what does not end is killed with all that it started."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    try:
        async with asyncio.timeout(15):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
