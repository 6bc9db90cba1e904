"""One process of benchmarks/allreduce.py: a member of an all-reduce by one of the systems. Driven by JSON lines.

stdin: {"system", "rank", "peers", "size", "folder", ...}, then what the system asks for, then {"go": ...} for each
repetition until the end of input. stdout: {"ready": ...} first, then one result for each repetition.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import multiprocessing as mp
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Result = dict[str, Any]


def say(message: Result) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def hear() -> Result:
    line = sys.stdin.readline()
    return json.loads(line) if line else {}


def vector(order: Result) -> npt.NDArray[np.float32]:
    block = np.random.default_rng(order["rank"]).standard_normal(min(1 << 20, order["size"]), dtype=np.float32)
    return np.resize(block, order["size"])


def repeat(work: Callable[[Result], Result]) -> None:
    """One repetition for each line of input."""
    while order := hear():
        began = time.perf_counter()
        result = work(order)
        say({"seconds": time.perf_counter() - began, **result})


def gloo(order: Result) -> None:
    """torch.distributed's all-reduce: unencrypted, among processes that trust each other and must all live."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = f"tcp://127.0.0.1:{order['port']}"
    tensor = torch.from_numpy(vector(order))
    dist.init_process_group("gloo", init_method=store, rank=order["rank"], world_size=order["peers"])
    say({"ready": None})

    def work(_: Result) -> Result:
        dist.all_reduce(tensor)
        tensor.div_(order["peers"])
        return {}

    repeat(work)
    dist.destroy_process_group()


def hivemind(order: Result) -> None:
    """The stock averager; its own time of the all-reduce, without matchmaking, is what counts."""
    import torch
    from hivemind import DHT, DecentralizedAverager
    from hivemind.compression import Float16Compression, NoCompression

    torch.set_num_threads(1)
    taken = mp.Value("d", 0.0)

    class Timed(DecentralizedAverager):  # type: ignore[misc]  # hivemind ships no types
        async def _run_allreduce_inplace_(self, *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return await super()._run_allreduce_inplace_(*args, **kwargs)
            finally:
                taken.value = time.perf_counter() - began

    peers = order["initial_peers"]
    dht = DHT(initial_peers=peers, start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"], use_ipfs=False)
    averager = Timed(
        [torch.from_numpy(vector(order))],
        dht,
        prefix="bench",
        start=True,
        target_group_size=order["peers"],
        min_group_size=order["peers"],
        min_matchmaking_time=1.0,
        request_timeout=2.0,
        allreduce_timeout=120.0,
        compression=Float16Compression() if order["codec"] == "fp16" else NoCompression(),
    )
    say({"ready": [str(address) for address in dht.get_visible_maddrs()]})

    def work(_: Result) -> Result:
        if averager.step(timeout=180.0) is None:
            return {"failed": "no group was found"}
        return {"seconds": taken.value}

    try:
        repeat(work)
    finally:
        averager.shutdown()
        dht.shutdown()


async def ours(order: Result) -> None:
    """This project's round, data over direct streams or, for comparison, over libp2p."""
    from distributed_training.averaging.averager import Averager
    from distributed_training.averaging.peer import Peer, PeerConfig
    from distributed_training.averaging.plan import Participant, RoundPlan, StateDeadlines, chunk_for

    values = vector(order)  # before anything is watched
    place = Path(order["folder"]) / f"identity-{order['rank']}"
    initial = tuple(order["initial_peers"])
    host = order.get("host", "127.0.0.1")  # links.py gives each member a host of its own
    async with Peer(PeerConfig(host=host, port=0, identity_path=place, initial_peers=initial)) as peer:
        say({"ready": {"uid": order["rank"], "peer_id": peer.peer_id, "addresses": peer.addresses}})
        group = (await asyncio.to_thread(hear))["group"]
        shares = order.get("shares", [1.0] * len(group))
        members = tuple(
            Participant(**{**m, "addresses": tuple(m["addresses"])}, share=share, contributes=True)
            for m, share in zip(group, shares, strict=True)
        )
        known = {m.peer_id for m in members}
        direct = peer.direct if order["system"] == "direct" else None
        async with Averager(
            peer, uid=order["rank"], run_id="bench-000000000000", allow=known.__contains__, direct=direct
        ) as averager:
            while go := await asyncio.to_thread(hear):
                plan = RoundPlan(
                    round_id=f"{go['go']:032x}",
                    run_id="bench-000000000000",
                    epoch=0,
                    attempt=go["go"],
                    members=members,
                    size=order["size"],
                    codec=order["codec"],
                    deadlines=StateDeadlines(connect=60.0, exchange=300.0, commit=60.0),
                    quorum=0.67,
                    max_weight=1.0,
                    chunk=chunk_for(order["size"], sum(m.share > 0 for m in members)),
                )
                began = time.perf_counter()
                outcome = (await averager.run(plan, values, 1.0)).outcome
                seconds = time.perf_counter() - began
                if not outcome.completed:
                    say({"failed": f"the round failed: {outcome.failures}"})
                    continue
                say(
                    {
                        "seconds": seconds,
                        "sockets": sum(t.bytes_sent for t in outcome.transfers),
                        "first_byte": outcome.first_byte,
                        "states": {state.value: s for state, s in outcome.seconds.items()},
                        "work": dataclasses.asdict(outcome.work),
                        "planes": sorted(set(outcome.planes.values())),
                    }
                )


def main() -> None:
    order = hear()
    if not order:
        return  # the others did not come up
    if order["system"] == "gloo":
        gloo(order)
    elif order["system"] == "hivemind":
        hivemind(order)
    else:
        asyncio.run(ours(order))


if __name__ == "__main__":
    main()
