"""Subnets of real processes whose corpus lies elsewhere, and goes away while they train."""

from __future__ import annotations

import re
import sysconfig
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from template.telemetry import read_jsonl
from tests.data.corpora import row
from tests.data.test_shards import Build, contents
from tests.integration.subnet import TINY, Subnet
from tests.servers.datasets import add_dataset
from tests.servers.hub import HubServer
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


def run_over_dataset(folder: Path, server: HubServer, documents: list[str]) -> Path:
    """The tiny run over a dataset on the Hub in FineWeb's layout, with a tokenizer of words from a folder."""
    place = folder / "repository" / "sample" / "350BT"
    place.mkdir(parents=True)
    for first in range(0, len(documents), 500):
        rows = [row(text, first + i) for i, text in enumerate(documents[first : first + 500])]
        pq.write_table(pa.Table.from_pylist(rows), place / f"{first:05d}.parquet", row_group_size=100)
    card = (
        "---\nconfigs:\n- config_name: sample-350BT\n  data_files:\n  - split: train\n    path: sample/350BT/*\n---\n"
    )
    (folder / "repository" / "README.md").write_text(card)
    commit = add_dataset(server, "HuggingFaceFW/fineweb", folder / "repository")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(documents[:50], trainer)
    backend.model.save(str(tokenizer))
    (tokenizer / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}'
    )
    data = {
        'source = "stdlib"': 'source = "huggingface"\npath = "HuggingFaceFW/fineweb"\n'
        f'configuration = "sample-350BT"\nrevision = "{commit}"',
        'tokenizer = "bytes"': f'tokenizer = "{tokenizer}"',
        "page_size = 256 ": "page_size = 1 ",
    }
    text = TINY.read_text()
    for old, new in data.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = folder / "dataset.toml"
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


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_subnet_trains_on_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The production path in small: each process builds its index over HTTP, all find the same corpus, rounds complete
    and audits pass; a miner that is killed comes back without asking for the footers again."""
    pieces = [text[i : i + 500] for text in texts(1_200_000) for i in range(0, len(text), 500)]
    with HubServer(tokens={}) as server:
        run = run_over_dataset(tmp_path, server, pieces)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        with Subnet(tmp_path / "net", miners=2, validators=1, run=run) as net:
            net.start()
            net.wait_for_epoch(2, seconds=150)
            miner = next(name for name in net.commands if name.startswith("miner"))
            net.kill(miner)
            net.died()
            footers = sum("bytes=-" in request.headers.get("range", "") for request in server.requests)
            now = max(neuron.epoch for neuron in net.story.neurons.values())
            net.start(miner)
            net.wait_for_epoch(now + 1, seconds=60)
            assert sum("bytes=-" in request.headers.get("range", "") for request in server.requests) == footers
            validator = next(name for name in net.commands if name.startswith("validator"))
            audits = told(net, validator, "Audited")
            assert audits
            assert all(audit["passed"] for audit in audits)
            corpora = {record["fingerprint"] for name in net.commands for record in told(net, name, "CorpusOpened")}
            assert len(corpora) == 1
