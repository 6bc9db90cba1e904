"""A member of a round in a process of its own, with a fault on demand; driven by JSON lines.

stdin:  {"identity", "initial_peers"}, then {"plan", "allow", "uid", "fault", "after_bytes", "direct"}
stdout: {"peer_id", "addresses", "daemon"}

The fault strikes when `after_bytes` were written to streams: `kill` is SIGKILL to this process, `stop` is SIGSTOP to
this process and its daemon, so that connections stay up and nothing moves.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from distributed_training.averaging.averager import Averager
from distributed_training.averaging.direct import DirectStream
from distributed_training.averaging.libp2p import Libp2pStream
from distributed_training.averaging.peer import Peer, PeerConfig
from distributed_training.averaging.plan import Participant, RoundPlan, StateDeadlines


def plan_from_json(data: dict[str, Any]) -> RoundPlan:
    members = tuple(Participant(**{**m, "addresses": tuple(m["addresses"])}) for m in data["members"])
    return RoundPlan(**{**data, "members": members, "deadlines": StateDeadlines(**data["deadlines"])})


class FaultyPeer(Peer):
    """A peer whose process fails after a number of bytes."""

    fault = "none"
    left = 0

    async def open(self, peer_id: str, addresses: tuple[str, ...], protocol: str) -> Libp2pStream:
        stream = await super().open(peer_id, addresses, protocol)
        write = stream.write

        async def count(data: bytes | memoryview) -> None:
            await write(data)
            self.left -= len(data)
            if self.left <= 0:
                self.strike()

        stream.write = count  # type: ignore[method-assign]  # the fault is the purpose
        return stream

    def count_direct(self) -> None:
        """Count what goes over direct streams too."""
        open_direct = self.direct.open

        async def opened(peer_id: str, addresses: tuple[str, ...], protocol: str) -> DirectStream:
            stream = await open_direct(peer_id, addresses, protocol)
            send = stream.outgoing.send

            def count(data: bytes | memoryview, *, more: bool = False) -> None:
                send(data, more=more)
                self.left -= len(data)
                if self.left <= 0:
                    self.strike()

            stream.outgoing.send = count  # type: ignore[method-assign]  # the fault is the purpose
            return stream

        self.direct.open = opened  # type: ignore[method-assign]  # the fault is the purpose

    def strike(self) -> None:
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "stop":
            os.kill(self.daemon_pid, signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGSTOP)


async def read_line() -> dict[str, Any]:
    line: dict[str, Any] = json.loads(await asyncio.to_thread(sys.stdin.readline))
    return line


async def main() -> None:
    start = await read_line()
    config = PeerConfig(
        host="127.0.0.1",
        port=0,
        identity_path=Path(start["identity"]),
        initial_peers=tuple(start["initial_peers"]),
    )
    async with FaultyPeer(config) as peer:
        place = {"peer_id": peer.peer_id, "addresses": peer.addresses, "daemon": peer.daemon_pid}
        sys.stdout.write(json.dumps(place) + "\n")
        sys.stdout.flush()
        order = await read_line()
        plan = plan_from_json(order["plan"])
        peer.fault, peer.left = order["fault"], order["after_bytes"]
        peer.count_direct()
        direct = peer.direct if order["direct"] else None
        async with Averager(
            peer, uid=order["uid"], run_id=plan.run_id, allow=set(order["allow"]).__contains__, direct=direct
        ) as averager:
            await averager.run(plan, np.ones(plan.size, dtype=np.float32), 1.0)


if __name__ == "__main__":
    asyncio.run(main())
