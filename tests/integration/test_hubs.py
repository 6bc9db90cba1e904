"""A whole subnet that publishes to a hub over HTTP, and what anybody can then do with the models."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.subnet import ROOT, TINY
from tests.servers.hub import HubServer
from tests.servers.s3 import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(560)]

TOKEN, KEY, KEY_SECRET = "hf_writerwriterwriter", "AKIAWRITERWRITERWRIT", "secretsecretsecretsecretsecretsecretsecr"
BUCKET_KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": KEY_SECRET}
EPOCHS = 3
WORDS = [
    "the",
    "model",
    "is",
    "trained",
    "by",
    "many",
    "who",
    "do",
    "not",
    "know",
    "each",
    "other",
    "and",
    "it",
    "is",
    "one",
    "model",
]

# What a stranger does: plain transformers, and the held-out text of the run (the tests' own reading of it).
LOSS = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from distributed_training.data.build import build_loader
from distributed_training.run import load_run
torch.set_num_threads(1)
source, revision, run = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(source, **({"revision": revision} if revision else {})).eval()
total = count = 0
for batch in build_loader(load_run(Path(run))).held_out():
    labels = torch.from_numpy(batch.labels)
    with torch.no_grad():
        logits = model(torch.from_numpy(batch.input_ids)).logits
    total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
    count += int((labels != -100).sum())
print(total / count)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The tiny run on text in FineWeb's layout."""
    rng, corpus = random.Random(3), tmp_path / "corpus" / "data"
    corpus.mkdir(parents=True)
    for shard in range(2):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(30, 90))) for _ in range(2000)]
        rows = {"text": texts, "id": [f"{shard}-{n}" for n in range(2000)], "token_count": [len(t) for t in texts]}
        pq.write_table(pa.table(rows), corpus / f"000_{shard:05}.parquet", row_group_size=250)
    spec = TINY.read_text().replace('source = "stdlib"', f'source = "parquet"\npath = "{tmp_path / "corpus"}"')
    spec = spec.replace("page_size = 256               # bytes", "page_size = 1")
    file = tmp_path / "fineweb.toml"
    file.write_text(spec)
    return file


def localnet(run: Path, folder: Path, hub: str, endpoint: str, secrets: dict[str, str]) -> None:
    """Three epochs; credentials only in the environment."""
    command = [sys.executable, "-m", "distributed_training.localnet", "--run", str(run), "--folder", str(folder)]
    command += ["--miners", "2", "--validators", "2", "--epochs", str(EPOCHS), "--hub", hub, "--hub_endpoint", endpoint]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **secrets}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in [*folder.rglob("*.jsonl"), *folder.rglob("log.txt"), folder / "summary.json"]:
        assert not any(secret in file.read_text() for secret in (TOKEN, KEY, KEY_SECRET)), file


def loss_of(source: str, revision: str, run: Path, environment: dict[str, str]) -> float:
    """The held-out loss that plain transformers gets, in a process that knows nothing of the hub's code."""
    command = [sys.executable, "-c", LOSS, source, revision, str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_models_on_a_hugging_face_hub_load_by_their_tag(run: Path, tmp_path: Path, xet: bool) -> None:
    """Tags 1..n, a card each, and `from_pretrained(repo, revision="n")` gives the loss that was recorded."""
    with HubServer(tokens={TOKEN: "write"}, xet=xet) as server:
        library = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.url}
        library |= {"HF_HUB_DISABLE_XET": "0" if xet else "1"}
        secrets = {"DT_SECRET_TOKEN": TOKEN, **library}
        localnet(run, tmp_path / "net", "hf://org/tiny", server.url, secrets)
        assert (server.asked("POST", "/cas/v1/xorbs/") > 0, server.asked("PUT", "/objects/") > 0) == (xet, not xet)
        repository = server.repositories["org/tiny"]
        assert set(repository.tags) >= {str(epoch) for epoch in range(1, EPOCHS + 1)}
        for epoch in range(1, EPOCHS + 1):
            tree = repository.commits[repository.tags[str(epoch)]].tree
            recorded = json.loads(tree["release.json"].content)
            card = tree["README.md"].content.decode()
            assert f"epoch {epoch}" in card
            assert recorded["state_hash"] in card
            assert f"{recorded['held_out_loss']:.4f} nats" in card
            found = loss_of("org/tiny", str(epoch), run, library)
            assert found == pytest.approx(recorded["held_out_loss"], abs=1e-4)


@pytest.fixture
def bucket() -> Iterator[S3Server]:
    """A bucket for the corpus and one for the models: anybody may read, one key may write, nobody may list."""
    with S3Server(keys={KEY: "write"}, buckets=("corpus", "models"), listing=False) as server:
        yield server


def shards_of(run: Path, server: S3Server) -> Path:
    """The corpus of `run` built into shards in the bucket, by the command; the run that reads them without any key."""
    command = [sys.executable, "-m", "distributed_training.data.build_shards", "--run", str(run), "--workers", "1"]
    command += ["--to", "s3://corpus/tiny", "--endpoint", server.url, "--shard_tokens", "262144"]
    command += ["--block_tokens", "512"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, **BUCKET_KEYS}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in (KEY, KEY_SECRET))
    printed = re.search(r'fingerprint = "([0-9a-f]{64})"', done.stdout)
    assert printed
    data = f'source = "shards"\npath = "{server.url}/corpus/tiny"\nfingerprint = "{printed[1]}"'
    text, changed = re.subn(r'source = "parquet"\npath = ".*"', data, run.read_text())
    text, resized = re.subn(r"page_size = 1$", "page_size = 256", text, flags=re.MULTILINE)
    assert (changed, resized) == (1, 1)
    file = run.with_name("shards.toml")
    file.write_text(text)
    return file


def test_shards_and_models_in_buckets(run: Path, tmp_path: Path, bucket: S3Server) -> None:
    """A corpus of shards and the hub, both in S3: a subnet trains on the one and publishes to the other. The corpus is
    read without credentials, in ranges; and the last model too, by anybody: it gives the recorded loss."""
    shards = shards_of(run, bucket)
    names = {key.rpartition("/")[2] for key in bucket.objects("corpus")}
    assert {"manifest.json", "00000.bin", "00001.bin"} <= names
    built = len(bucket.requests)
    localnet(shards, tmp_path / "net", "s3://models/org/tiny", bucket.url, BUCKET_KEYS)
    reads = [request for request in bucket.requests[built:] if request.path.startswith("/corpus/")]
    assert {(request.method, request.token) for request in reads} == {("GET", None)}
    assert all(request.headers["range"] for request in reads if request.path.endswith(".bin"))
    assert any(request.path.endswith(".bin") for request in reads)
    base = f"{bucket.url}/models/org/tiny"
    assert httpx.get(f"{base}/releases/index.json").json()["epochs"][-EPOCHS:] == list(range(1, EPOCHS + 1))
    recorded = httpx.get(f"{base}/releases/{EPOCHS}.json").json()
    found = loss_of(str(copy_of(bucket, f"org/tiny/models/{EPOCHS}/", tmp_path / "copy")), "", shards, {})
    assert found == pytest.approx(recorded["held_out_loss"], abs=1e-4)


def copy_of(server: S3Server, prefix: str, folder: Path) -> Path:
    """The files below `prefix`, downloaded without credentials."""
    folder.mkdir()
    for key in server.objects():
        if key.startswith(prefix):
            answer = httpx.get(f"{server.url}/models/{key}").raise_for_status()
            (folder / key.removeprefix(prefix)).write_bytes(answer.content)
    return folder
