"""The fault matrix of the hubs on the network: every fault, uploading and downloading, against real servers.

Each cell publishes or fetches one release through a server in which one thing goes wrong, as often as the cell says,
and then looks at the server as a reader would. The promise: the call succeeds after retries, or ends in one clear
event; a release is whole or cannot be seen; and once the fault is over the same call succeeds.

`scripts/hub_table` prints all of it; `test_hub_faults.py` runs it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import save_file

from distributed_training.hub.build import HubConfig, build_hub
from distributed_training.hub.hub import Hub, ModelTag
from template.clock import SystemClock
from template.config import Secret
from template.errors import HubError
from template.telemetry import MemorySink, Telemetry
from tests.servers.faults import Fault
from tests.servers.hub import HubServer, Repository
from tests.servers.s3 import S3Server

ROOT = Path(__file__).parents[2]
TOKEN, KEY, KEY_SECRET = "hf_writerwriterwriter", "AKIAWRITERWRITERWRIT", "secretsecretsecretsecretsecretsecretsecr"
REPOSITORY = "org/nano"
TRIES = 4
ALWAYS = 10_000
EPOCH = 7
MODEL_BYTES = 6 << 20  # more than one part of 5 MiB

Kind = Literal["huggingface", "s3"]
Way = Literal["upload", "download"]
KINDS: tuple[Kind, ...] = ("huggingface", "s3")
WAYS: tuple[Way, ...] = ("upload", "download")

# Where each fault strikes: method and pattern of the request that carries the model, and of the one that sets the tag.
BYTES_UP = {"huggingface": ("PUT", "^/objects/"), "s3": ("PUT", "model.safetensors.*partNumber=2")}
BYTES_DOWN = {"huggingface": ("GET", "^/objects/"), "s3": ("GET", "/model.safetensors")}
TAG = {"huggingface": ("POST", "/tag/"), "s3": ("PUT", "/releases/7.json")}
LOOK = {"huggingface": ("GET", "/refs$"), "s3": ("GET", "/releases/7.json")}
COMMIT = {"huggingface": ("POST", "/commit/main"), "s3": ("POST", "model.safetensors.*uploadId")}


@dataclass(frozen=True)
class Case:
    """One fault: how it looks at each place where it can strike, and which places those are."""

    name: str
    fault: Callable[[str, str], Fault]
    places: dict[Way, tuple[dict[str, tuple[str, str]], ...]]


BOTH: dict[Way, tuple[dict[str, tuple[str, str]], ...]] = {
    "upload": (LOOK, BYTES_UP, COMMIT, TAG),
    "download": (LOOK, BYTES_DOWN),
}
CASES = (
    Case("500", lambda m, p: Fault(m, p, status=500), BOTH),
    Case("503", lambda m, p: Fault(m, p, status=503), BOTH),
    Case("429", lambda m, p: Fault(m, p, status=429), BOTH),
    Case("cut body", lambda m, p: _cut(m, p), {"upload": (BYTES_UP, TAG), "download": (LOOK, BYTES_DOWN)}),
    Case("stall", lambda m, p: _stall(m, p), BOTH),
    Case("closed connection", lambda m, p: Fault(m, p, close="before"), BOTH),
    Case("lost answer", lambda m, p: Fault(m, p, close="after"), {"upload": (BYTES_UP, COMMIT, TAG), "download": ()}),
    Case("wrong hash", lambda m, p: _flip(m, p), {"upload": (BYTES_UP,), "download": (BYTES_DOWN,)}),
)


def _cut(method: str, path: str) -> Fault:
    return Fault(method, path, cut_request=1000) if method in ("PUT", "POST") else Fault(method, path, cut=100)


def _flip(method: str, path: str) -> Fault:
    return Fault(method, path, flip_request=True) if method == "PUT" else Fault(method, path, flip=True)


def _stall(method: str, path: str) -> Fault:
    """Silence: in the middle of a download, else instead of an answer; the request is never carried out."""
    if (method, path) in BYTES_DOWN.values():
        return Fault(method, path, hold=threading.Event(), stall=1000)
    return Fault(method, path, hold=threading.Event(), close="before")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What happened. `broken` names the promise that was not kept, None if all were."""

    kind: Kind
    way: Way
    fault: str
    place: str
    times: int
    outcome: str
    retries: int
    events: int
    seconds: float
    broken: str | None


def config_of(kind: Kind, url: str) -> HubConfig:
    """Four tries close together, and a second of silence at most."""
    return HubConfig(
        url=f"hf://{REPOSITORY}" if kind == "huggingface" else f"s3://models/{REPOSITORY}",
        endpoint=url,
        part_bytes=5 << 20,
        tries=TRIES,
        first_delay=0.02,
        longest_delay=0.05,
        connect_timeout=2,
        idle_timeout=1.0,
        call_timeout=20,
        download_timeout=20,
    )


class Bench:
    """One server of a kind with an empty hub, and a client's settings."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.server: HubServer | S3Server = (
            HubServer(tokens={TOKEN: "write"}) if kind == "huggingface" else S3Server(keys={KEY: "write"})
        )

    def __enter__(self) -> Bench:
        self.server.__enter__()
        if isinstance(self.server, HubServer):
            self.server.repositories[REPOSITORY] = Repository(private=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__(None, None, None)

    def hub(self, sink: MemorySink, *, patient: bool = False) -> Hub:
        """A client; a patient one does not take a busy machine for a silent server."""
        clock, config = SystemClock(), config_of(self.kind, self.server.url)
        config = replace(config, idle_timeout=20.0) if patient else config
        return build_hub(config, token=Secret(TOKEN), telemetry=Telemetry([sink], clock), clock=clock)


def model(folder: Path, seed: int = 0) -> Path:
    """A model folder of some 6 MiB."""
    folder.mkdir(parents=True)
    weights = np.random.default_rng(seed).standard_normal(MODEL_BYTES // 4).astype(np.float32)
    save_file({"w": weights}, folder / "model.safetensors")
    save_file({"m": weights[:1000]}, folder / "optimizer.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "seed": seed}))
    return folder


def tag_of(epoch: int = EPOCH, state: str = "a") -> ModelTag:
    return ModelTag(
        run_id="nano-0123456789ab",
        epoch=epoch,
        state_hash=state * 64,
        samples=512,
        participants=(1,),
        held_out_loss=3.0,
    )


def cells(kind: Kind) -> Iterator[tuple[Kind, Way, Case, str, tuple[str, str], int]]:
    """Every cell of a hub's table: each fault at each place, once and for good."""
    names = {id(LOOK): "look", id(BYTES_UP): "bytes", id(BYTES_DOWN): "bytes", id(COMMIT): "commit", id(TAG): "tag"}
    for case in CASES:
        for way in WAYS:
            for place in case.places[way]:
                for times in (1, ALWAYS):
                    yield kind, way, case, names[id(place)], place[kind], times


def run(kind: Kind, way: Way, case: Case, place: str, where: tuple[str, str], times: int) -> Cell:
    """One cell, on a server of its own."""
    with tempfile.TemporaryDirectory() as name, Bench(kind, Path(name)) as bench:
        folder, sink, started = model(Path(name) / "model"), MemorySink(), time.monotonic()
        if way == "download":
            asyncio.run(bench.hub(MemorySink(), patient=True).publish(folder, tag_of()))
        fault = replace(case.fault(*where), times=times)
        bench.server.inject(fault)
        outcome = asyncio.run(_act(bench, way, folder, sink))
        seconds = time.monotonic() - started
        kinds = [record["kind"] for record in sink.records]
        broken = asyncio.run(_promises(bench, way, folder, outcome, kinds, fault))
        retries = sum(kind.endswith("Retried") for kind in kinds)
        return Cell(
            kind=kind,
            way=way,
            fault=case.name,
            place=place,
            times=times,
            outcome=outcome,
            retries=retries,
            events=len(kinds) - retries,
            seconds=seconds,
            broken=broken,
        )


async def _act(bench: Bench, way: Way, folder: Path, sink: MemorySink) -> str:
    try:
        if way == "upload":
            await bench.hub(sink).publish(folder, tag_of())
        else:
            await bench.hub(sink).fetch(EPOCH, bench.folder / "got")
    except HubError as error:
        return type(error).__name__
    return "ok"


async def _promises(bench: Bench, way: Way, folder: Path, outcome: str, kinds: list[str], fault: Fault) -> str | None:
    """What was promised and not kept, if anything."""
    if not fault.reached.is_set():
        return "the fault never struck"
    ends = [kind for kind in kinds if not kind.endswith("Retried")]
    if way == "upload" and ends != (["Published"] if outcome == "ok" else ["PublishFailed"]):
        return f"told {ends} for an upload that ended in {outcome}"
    if fault.times > 0 and outcome == "ok" and fault.close != "after":  # what was done counts, answered or not
        return "it succeeded though the fault never ended"
    got = bench.folder / "got"
    if way == "download" and (outcome == "ok") != got.exists():
        return "a folder that should not be there" if got.exists() else "no folder"
    bench.server.heal()
    return await _whole(bench, way, folder, outcome)


async def _whole(bench: Bench, way: Way, folder: Path, outcome: str) -> str | None:
    """What a reader sees now is whole or nothing, and the same call now succeeds."""
    hub = bench.hub(MemorySink(), patient=True)
    seen = await hub.epochs()
    if way == "upload" and outcome == "ok" and seen != (EPOCH,):
        return "published, and nobody can see it"
    for number, epoch in enumerate(seen):
        await hub.fetch(epoch, bench.folder / f"seen-{number}")
        if not _equal(folder, bench.folder / f"seen-{number}"):
            return "a reader got other bytes"
    await hub.publish(folder, tag_of())
    await hub.fetch(EPOCH, bench.folder / "after")
    return None if _equal(folder, bench.folder / "after") else "the repeated call did not make it whole"


def _equal(folder: Path, got: Path) -> bool:
    return all((got / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())


# --- processes that are killed


KILL_AT: dict[str, dict[str, Fault]] = {
    "before the first file": {"huggingface": Fault(*BYTES_UP["huggingface"]), "s3": Fault("PUT", "config.json")},
    "between files": {
        "huggingface": Fault(*BYTES_UP["huggingface"], skip=1),
        "s3": Fault("PUT", "optimizer.safetensors"),
    },
    "in the middle of a file": {
        "huggingface": Fault(*BYTES_UP["huggingface"], cut_request=1 << 20),
        "s3": Fault(*BYTES_UP["s3"]),
    },
    "before the commit": {kind: Fault(*COMMIT[kind]) for kind in KINDS},
    "before the tag": {kind: Fault(*TAG[kind]) for kind in KINDS},
}


def kill_uploader(kind: Kind, moment: str) -> Cell:
    """SIGKILL a real uploader while its request at that moment is held; then another one publishes."""
    with tempfile.TemporaryDirectory() as name, Bench(kind, Path(name)) as bench:
        folder, started = model(Path(name) / "model"), time.monotonic()
        held = replace(KILL_AT[moment][kind], hold=threading.Event(), close="before", reached=threading.Event())
        bench.server.inject(held)
        reached = _kill_when(bench, folder, held.reached)
        bench.server.heal()
        broken = None if reached else "the moment never came"
        sink = MemorySink()
        hub = bench.hub(sink, patient=True)
        seen = asyncio.run(hub.epochs())
        broken = broken or (f"{seen} can be seen though the uploader is dead" if seen else None)
        broken = broken or asyncio.run(_whole(bench, "upload", folder, "killed"))
        return Cell(
            kind=kind,
            way="upload",
            fault="SIGKILL",
            place=moment,
            times=1,
            outcome="killed; the next publisher completes it",
            retries=0,
            events=0,
            seconds=time.monotonic() - started,
            broken=broken,
        )


def _kill_when(bench: Bench, folder: Path, reached: threading.Event) -> bool:
    import subprocess

    environment = {
        **os.environ,
        **({"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": KEY_SECRET} if bench.kind == "s3" else {}),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.hub.faults", bench.kind, bench.server.url, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        return reached.wait(50)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


class _Hurried:
    """The `time` of the Hugging Face library's HTTP module, in which its own back-off takes a hundredth."""

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / 100)


@contextmanager
def local_clients(folder: Path) -> Iterator[None]:
    """Clients that know the credentials of the table's servers and nothing of this machine, and do not dawdle."""
    from huggingface_hub.utils import _http

    before = _http.time
    _http.time = _Hurried()  # type: ignore[assignment]
    try:
        with _local_credentials(folder):
            yield
    finally:
        _http.time = before


@contextmanager
def _local_credentials(folder: Path) -> Iterator[None]:
    values = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY_SECRET,
        "AWS_CONFIG_FILE": str(folder / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
    }
    before = {name: os.environ.get(name) for name in (*values, "AWS_PROFILE")}
    os.environ.update(values)
    os.environ.pop("AWS_PROFILE", None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def sample(kind: Kind, count: int, seed: int) -> list[tuple[Kind, Way, Case, str, tuple[str, str], int]]:
    """Some cells of a table, the same ones for a seed."""
    return random.Random(seed).sample(list(cells(kind)), count)


def upload(kind: Kind, url: str, folder: Path) -> None:
    """What the process does that is to be killed."""
    clock = SystemClock()
    config = replace(config_of(kind, url), idle_timeout=30.0)
    hub = build_hub(config, token=Secret(TOKEN), telemetry=Telemetry((), clock), clock=clock)
    asyncio.run(hub.publish(folder, tag_of()))


if __name__ == "__main__":
    upload("s3" if sys.argv[1] == "s3" else "huggingface", sys.argv[2], Path(sys.argv[3]))
