"""A wide-area network on one machine: network namespaces, each with a link of its own rate, joined with a delay.

Every host has one TUN device; one process, the switch, carries the packets between them: it lets each through the
sender's uplink (rate, bounded queue), delays it, and lets it through the receiver's downlink. A host behind a NAT gets
only packets of connections that it opened itself; a cut drops everything between two sets of hosts.

Needs Linux, root and iproute2: `Wan` says what is missing. In user space because few kernels have netem; good for about
2 Gbit/s in all on one core.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import heapq
import itertools
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[1]
MTU = 9000
_TUN = Path("/dev/net/tun")
_SET_INTERFACE = 0x400454CA  # TUNSETIFF
_TUN_WITHOUT_HEADER = 0x1001  # IFF_TUN | IFF_NO_PI
_NEW_NAMESPACE = 0x40000000  # CLONE_NEWNET
_TCP, _UDP = 6, 17
_BATCH = 64  # packets read from a device at a time


class WanError(Exception):
    """The network cannot be built here; the message names the remedy."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What joins one host to the rest: Mbit/s each way, and the seconds that may wait in its queue."""

    rate: float
    queue: float = 0.1
    nat: bool = False


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """`delay` is the one-way time between any two hosts, in seconds; `congestion` is TCP's control, None: the usual."""

    lines: tuple[Line, ...]
    delay: float
    congestion: str | None = None


class Wan:
    """Hosts 0 to n-1 with the addresses 10.77.0.1 to 10.77.0.n. Use as an async context manager."""

    def __init__(self, config: WanConfig) -> None:
        self._config = config
        self._names = [f"dt-wan-{os.getpid()}-{number}" for number in range(len(config.lines))]
        self._switch: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Build the network.

        Raises:
            WanError: this machine cannot.
        """
        _require_means()
        try:
            for name in self._names:
                await asyncio.to_thread(_run, "ip", "netns", "add", name)
                await asyncio.to_thread(self._tune, name)
            self._switch = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "benchmarks.wan",
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            await self._tell({"names": self._names, **asdict(self._config)})
            assert self._switch.stdout is not None
            async with asyncio.timeout(20):
                if not await self._switch.stdout.readline():
                    raise WanError("the switch did not start; its error is above")
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def command(self, host: int) -> tuple[str, ...]:
        """What to put before a command that shall run on that host."""
        return ("ip", "netns", "exec", self._names[host])

    async def cut(self, one: Sequence[int], other: Sequence[int]) -> None:
        """Drop everything between two sets of hosts from now on; two empty ones mend all cuts."""
        await self._tell({"cut": [list(one), list(other)]})

    async def _tell(self, message: object) -> None:
        assert self._switch is not None
        assert self._switch.stdin is not None
        self._switch.stdin.write(json.dumps(message).encode() + b"\n")
        await self._switch.stdin.drain()

    def _tune(self, name: str) -> None:
        """The buffers that Linux comes with, whatever this machine has, and the congestion control asked for."""
        settings = {"tcp_rmem": "4096 131072 6291456", "tcp_wmem": "4096 16384 4194304"}
        if self._config.congestion is not None:
            settings["tcp_congestion_control"] = self._config.congestion
        for key, value in settings.items():
            write = f'echo "{value}" > /proc/sys/net/ipv4/{key}'
            _run("ip", "netns", "exec", name, "sh", "-c", write)

    async def _close(self) -> None:
        if self._switch is not None and self._switch.returncode is None:
            self._switch.kill()
            await self._switch.wait()
        for name in self._names:
            if (Path("/run/netns") / name).exists():
                await asyncio.to_thread(_run, "ip", "netns", "del", name)


def _require_means() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        raise WanError("network namespaces need Linux and root: run this with sudo, or in a privileged container")
    if shutil.which("ip") is None:
        raise WanError("the command 'ip' is missing: install iproute2")
    if not _TUN.exists():
        raise WanError(f"{_TUN} is missing: load the kernel's module with 'modprobe tun', or give it to the container")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WanError(f"'{' '.join(command)}' failed: {done.stderr.strip() or done.stdout.strip()}")


# The switch


class Queue:
    """One direction of a line: packets leave at its rate; what would wait too long is dropped."""

    def __init__(self, line: Line) -> None:
        self._seconds_per_byte = 8 / (line.rate * 1e6)
        self._limit = line.queue
        self._free = 0.0

    def through(self, size: int, now: float) -> float | None:
        """When a packet of that size is through; None if it is dropped."""
        begin = max(self._free, now)
        if begin - now > self._limit:
            return None
        self._free = begin + size * self._seconds_per_byte
        return self._free


class Gate:
    """Who may reach whom: cuts, and NATs that let in only answers."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._nat = [line.nat for line in lines]
        self._flows: set[bytes] = set()
        self._cut: frozenset[tuple[int, int]] = frozenset()

    def cut(self, one: Sequence[int], other: Sequence[int]) -> None:
        self._cut = frozenset(itertools.chain(itertools.product(one, other), itertools.product(other, one)))

    def passes(self, packet: bytes, source: int, target: int) -> bool:
        if (source, target) in self._cut:
            return False
        if packet[9] not in (_TCP, _UDP):
            return not self._nat[target]
        if self._nat[source]:
            self._flows.add(packet[12:24])  # addresses and ports, as IPv4 without options has them
        answer = packet[16:20] + packet[12:16] + packet[22:24] + packet[20:22]
        return not self._nat[target] or answer in self._flows


class Switch:
    """Carries packets between the devices, until it is killed."""

    def __init__(self, devices: Sequence[int], lines: Sequence[Line], delay: float) -> None:
        self.gate = Gate(lines)
        self._devices = devices
        self._delay = delay
        self._up = [Queue(line) for line in lines]
        self._down = [Queue(line) for line in lines]
        self._events: list[tuple[float, int, int, bool, bytes]] = []  # when, order, target, at its device, packet
        self._order = itertools.count()

    def run(self) -> None:
        ready = select.epoll()
        of = {device: host for host, device in enumerate(self._devices)}
        for device in self._devices:
            ready.register(device, select.EPOLLIN)
        while True:
            wait = self._events[0][0] - time.monotonic() if self._events else 1.0
            for device, _ in ready.poll(max(0.0, wait)):
                self._take(of[device], device)
            self._deliver()

    def _take(self, source: int, device: int) -> None:
        for _ in range(_BATCH):
            try:
                packet = os.read(device, 65536)
            except BlockingIOError:
                return
            target = packet[19] - 1
            if (
                packet[0] != 0x45
                or not 0 <= target < len(self._devices)
                or not self.gate.passes(packet, source, target)
            ):
                continue
            left = self._up[source].through(len(packet), time.monotonic())
            if left is not None:
                self._at(left + self._delay, target, packet, at_device=False)

    def _at(self, when: float, target: int, packet: bytes, *, at_device: bool) -> None:
        heapq.heappush(self._events, (when, next(self._order), target, at_device, packet))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._events and self._events[0][0] <= now:
            when, _, target, at_device, packet = heapq.heappop(self._events)
            if at_device:
                os.write(self._devices[target], packet)
                continue
            through = self._down[target].through(len(packet), when)
            if through is not None:
                self._at(through, target, packet, at_device=True)


def _open_device(name: str, address: str) -> int:
    """A TUN device inside a namespace; this process stays where it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if libc.setns(there, _NEW_NAMESPACE):
            raise WanError(f"cannot enter {name}: {os.strerror(ctypes.get_errno())}; are you root?")
        device = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _SET_INTERFACE, struct.pack("16sH", b"wan", _TUN_WITHOUT_HEADER))
        _run("ip", "addr", "add", f"{address}/24", "dev", "wan")
        _run("ip", "link", "set", "wan", "up", "mtu", str(MTU), "txqueuelen", "1000")
        _run("ip", "link", "set", "lo", "up")
        return device
    finally:
        libc.setns(here, _NEW_NAMESPACE)
        os.close(here)
        os.close(there)


def main() -> None:
    order = json.loads(sys.stdin.readline())
    lines = [Line(**line) for line in order["lines"]]
    devices = [_open_device(name, f"10.77.0.{number + 1}") for number, name in enumerate(order["names"])]
    switch = Switch(devices, lines, order["delay"])

    def obey() -> None:
        for line in sys.stdin:
            switch.gate.cut(*json.loads(line)["cut"])
        os._exit(0)  # whoever started us has gone

    threading.Thread(target=obey, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    switch.run()


if __name__ == "__main__":
    main()
