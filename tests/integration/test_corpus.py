"""Subnets of real processes whose corpus lies elsewhere, and goes away while they train."""

from __future__ import annotations

import re
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest

from template.telemetry import read_jsonl
from tests.data.test_shards import Build, contents
from tests.integration.subnet import TINY, Subnet
from tests.servers.s3 import Fault, S3Server


def texts(limit: int) -> list[str]:
    """Sources of the standard library, `limit` bytes of them."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        found.append(path.read_text())
        if sum(map(len, found)) > limit:
            break
    return found


def run_over_shards(folder: Path, address: str) -> Path:
    """The tiny run, its corpus in shards at `address`."""
    text, changed = re.subn(r'source = "stdlib"', f'source = "shards"\npath = "{address}"', TINY.read_text())
    assert changed == 1
    path = folder / "shards.toml"
    path.write_text(text)
    return path


def told(net: Subnet, name: str, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_jsonl(net.commands[name].events) if record["kind"] == kind]


@pytest.mark.integration
@pytest.mark.timeout(240)
def test_an_outage_of_the_corpus_stops_nobody_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Miners and a validator read shards from an S3 server's public address. It is away for a while: the miners say so
    and live on; when it is back, all train, are audited and average again, and no audit of honest work ever failed."""
    built = tmp_path / "built"
    Build(built, texts(2_000_000), page_size=1, shard_tokens=1 << 18, block_tokens=1 << 9).run()
    for name, value in {"TRIES": "2", "SECONDS": "5", "AHEAD": "2"}.items():
        monkeypatch.setenv(f"DT_CORPUS_{name}", value)
    with S3Server(buckets=("corpus",), listing=False) as server:
        for name, content in contents(built).items():
            server.put(name, content, "corpus")
        run = run_over_shards(tmp_path, f"{server.url}/corpus")
        with Subnet(tmp_path / "net", miners=2, validators=1, run=run) as net:
            net.start()
            net.wait_for_epoch(2, seconds=100)
            server.inject(Fault("GET", r"\.bin", times=1_000_000, status=503))
            miners = [name for name in net.commands if name.startswith("miner")]
            net.wait("both miners wait", lambda: all(told(net, m, "TrainingWaits") for m in miners), 60)
            time.sleep(2)
            server.heal()
            now = max(neuron.epoch for neuron in net.story.neurons.values())
            net.wait_for_epoch(now + 2, seconds=60)
            assert net.died() == {}
            validator = next(name for name in net.commands if name.startswith("validator"))
            audits = told(net, validator, "Audited")
            assert audits
            assert all(audit["passed"] for audit in audits)
    assert not any(request.token for request in server.requests)
