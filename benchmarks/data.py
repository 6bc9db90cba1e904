"""Tokens a second from Parquet and from shards, against `datasets` streaming with the same tokenizer in the same run.

    python -m benchmarks.data [--megabytes 24] [--seconds 4] [--nginx /usr/sbin/nginx] [--output data.md]

The corpus is the text of Python's standard library, cut into documents and written in FineWeb's columns, row groups of
1,000; the tokenizer is a byte-level BPE trained on it. "S3" is a server in a process of its own that gives ranges of
files to anybody: nginx if one is named, else tests/servers/bucket_files.py. Its bucket is read at its public address,
and by the calls of the S3 API. (moto, the S3 of the tests, answers some 300 requests a second and would be measured
instead of the reader.) Sources are read page by page in the order of an assignment, by two threads as a miner has,
nothing cached; `datasets` reads the same files from the front, from the disk, and tokenizes as many documents at a
time. The best of three turns counts. The tokenizer itself uses all cores.

Then a pretended accelerator trains at a fixed number of tokens a second, its micro-batches read ahead as a miner's
are: the share of its time that it waits for data. Wanted: shards 20 times as fast as `datasets`, and less than 1 %
waiting. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from distributed_training.data.assignment import Assignment
from distributed_training.data.build_shards import BuildConfig, Builder, plan_of, tokenized
from distributed_training.data.dataset import DatasetSource
from distributed_training.data.http import HttpStore
from distributed_training.data.loader import Loader
from distributed_training.data.parquet import ParquetSource
from distributed_training.data.prefetch import Prefetch, PrefetchConfig
from distributed_training.data.row_groups import build_row_groups
from distributed_training.data.s3 import S3Store
from distributed_training.data.shards import MANIFEST, MANIFEST_LIMIT, ShardSource
from distributed_training.data.store import FolderStore, Patient, Store
from distributed_training.data.tokenizer import HuggingFaceTokenizer
from distributed_training.data.tokens import Tokenized, TokenSource
from distributed_training.run import DataSpec
from template.errors import SourceBusy

DOCUMENT = 3000  # bytes, about FineWeb's mean
GROUP_ROWS, FILE_ROWS, PAGE_ROWS = 1000, 3000, 32
SHARD_TOKENS, BLOCK_TOKENS, PAGE_TOKENS = 1 << 20, 1 << 15, 1 << 15
VOCABULARY = 16_384
END = "<|endoftext|>"
BUCKET = "corpora"
LEAN_SERVER, NGINX_PORT = "tests.servers.bucket_files", 18_431
TURNS = 3
READERS = 2
ACCELERATOR = (50_000, 200_000)  # tokens a second


@dataclass(frozen=True)
class Speed:
    """How fast one way of reading was in its best turn."""

    name: str
    tokens_per_second: float


@dataclass(frozen=True)
class Waiting:
    """How much of its time a training of so many tokens a second waited."""

    name: str
    wanted: int
    reached: float
    share: float


def standard_library(limit: int) -> list[str]:
    """Documents of about `DOCUMENT` characters, `limit` bytes in all."""
    documents: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        with contextlib.suppress(UnicodeDecodeError):  # a few of its tests are no text on purpose
            text = path.read_text()
            documents += [text[i : i + DOCUMENT] for i in range(0, len(text), DOCUMENT)]
            size += len(text)
        if size > limit:
            break
    return documents


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """A byte-level BPE in GPT-2's manner."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(documents[::8], trainer)
    return backend


def write_parquet(folder: Path, documents: list[str]) -> None:
    """Files in FineWeb's columns."""
    folder.mkdir()
    for first in range(0, len(documents), FILE_ROWS):
        texts = documents[first : first + FILE_ROWS]
        count = len(texts)
        columns = {
            "text": texts,
            "id": [f"<urn:uuid:{first + i:012d}>" for i in range(count)],
            "dump": ["CC-MAIN-2024-10"] * count,
            "url": [f"https://example.org/{first + i}" for i in range(count)],
            "date": ["2024-02-21T00:00:00Z"] * count,
            "file_path": ["s3://example/warc.gz"] * count,
            "language": ["en"] * count,
            "language_score": [0.99] * count,
            "token_count": [len(text) // 4 for text in texts],
        }
        path = folder / f"{first:07d}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=GROUP_ROWS, compression="snappy")


@contextlib.contextmanager
def served(folder: Path, nginx: Path | None) -> Iterator[str]:
    """A server of its own for the files of a folder; its address, once it answers."""
    command = (
        [str(nginx), "-c", str(nginx_settings(folder))] if nginx else [sys.executable, "-m", LEAN_SERVER, str(folder)]
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{NGINX_PORT}" if nginx else process.stdout.readline().strip()
        httpx.Client(transport=httpx.HTTPTransport(retries=8)).get(address)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def nginx_settings(folder: Path) -> Path:
    """One process that sends files, and writes nothing outside of the folder's parent."""
    own = folder.parent / "nginx"
    own.mkdir()
    places = [f"{kind}_temp_path {own / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    lines = ["daemon off;", "master_process off;", "user root;" if os.getuid() == 0 else "", f"pid {own / 'pid'};"]
    lines += ["error_log stderr crit;", "events {}", "http {", *places, "access_log off;", "sendfile on;"]
    lines += ["keepalive_requests 1000000;", "default_type binary/octet-stream;"]
    lines += [f"server {{ listen 127.0.0.1:{NGINX_PORT}; root {folder}; }}", "}"]
    file = own / "nginx.conf"
    file.write_text("\n".join(lines))
    return file


def build_shards(corpus: Path, folder: Path, tokenizer: HuggingFaceTokenizer) -> float:
    """Shards of the corpus, by one process; tokens a second."""
    source, shelf = ParquetSource(corpus, GROUP_ROWS), FolderStore(folder)
    config = BuildConfig(
        run=Path("none"), to=str(folder), shard_tokens=SHARD_TOKENS, block_tokens=BLOCK_TOKENS, workers=1
    )
    plan = plan_of(spec_of("parquet", GROUP_ROWS), config, source, tokenizer)
    began = time.perf_counter()
    manifest = Builder(plan, shelf, Patient(shelf), lambda pages: None).build(
        lambda first: (tokenized(source, tokenizer, page, plan.dtype) for page in range(first, source.pages))
    )
    return manifest.tokens / (time.perf_counter() - began)


def spec_of(source: str, page_size: int) -> DataSpec:
    """The run's section; a micro-batch is one page."""
    return DataSpec(
        source=source,  # type: ignore[arg-type]
        path="benchmark",
        tokenizer="benchmark",
        sequence_length=1024,
        page_size=page_size,
        pages_per_micro_batch=1,
        pages_per_epoch=64,
        max_uids=1,
        held_out_pages=0,
    )


def sources(corpus: Path, shards: Path, address: str, tokenizer: HuggingFaceTokenizer) -> dict[str, TokenSource]:
    """Every way of reading by pages, without a cache."""
    places: list[tuple[str, Store]] = [
        ("shards, folder", FolderStore(shards)),
        ("shards, S3 (public address)", HttpStore(f"{address}/{BUCKET}/{shards.name}")),
        ("shards, S3 (API)", S3Store(f"s3://{BUCKET}/{shards.name}", endpoint=address)),
    ]
    remote = Patient(HttpStore(f"{address}/{BUCKET}/{corpus.name}"))
    index = build_row_groups(remote, sorted(path.name for path in corpus.iterdir()), "text", (), None)
    made: dict[str, TokenSource] = {
        "Parquet, folder": Tokenized(ParquetSource(corpus, PAGE_ROWS), tokenizer),
        "Parquet by row groups, S3": Tokenized(DatasetSource(remote, index, PAGE_ROWS, None), tokenizer),
    }
    for name, store in places:
        patient = Patient(store)
        made[name] = ShardSource(patient, patient.whole(MANIFEST, MANIFEST_LIMIT), PAGE_TOKENS, None)
    return made


def read_pages(source: TokenSource, seconds: float) -> float:
    """Tokens a second, pages in the order of an assignment, by as many threads as a miner has."""
    order = Assignment("benchmark-0123456789ab", source.pages, 1, source.pages)
    began = time.perf_counter()

    def read(thread: int) -> int:
        count, epoch = 0, thread
        while True:
            for page in order.pages(epoch, 0, 0, source.pages).tolist():
                count += len(source.tokens(page))
                if time.perf_counter() - began > seconds:
                    return count
            epoch += READERS

    with ThreadPoolExecutor(READERS) as pool:
        counts = list(pool.map(read, range(READERS)))
    return sum(counts) / (time.perf_counter() - began)


def stream(corpus: Path, backend: Tokenizer, seconds: float) -> float:
    """Tokens a second of `datasets`, from the front of the files, in batches of a page's documents."""
    import datasets

    files = sorted(str(path) for path in corpus.iterdir())
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, columns=["text"])
    began, count = time.perf_counter(), 0
    while True:
        for batch in rows.batch(PAGE_ROWS):
            count += sum(len(found.ids) + 1 for found in backend.encode_batch_fast(batch["text"]))
            if time.perf_counter() - began > seconds:
                return count / (time.perf_counter() - began)


def waiting(name: str, source: TokenSource, wanted: int, seconds: float) -> Waiting:
    """A training that takes as long as an accelerator of `wanted` tokens a second would, and waits for its batches.

    The first micro-batch is not counted: nothing can be read ahead of it.
    """
    page_size = PAGE_TOKENS if isinstance(source, ShardSource) else PAGE_ROWS
    pages = min(source.pages, 64)
    spec = dataclasses.replace(spec_of("shards", page_size), pages_per_epoch=pages)
    loader = Loader(spec, "benchmark-0123456789ab", _Open(source))
    prefetch = Prefetch(loader, 0, PrefetchConfig(ahead=8, readers=READERS, next_epoch=2))
    count, number, epoch, began = 0, 0, 0, 0.0
    waited_before = 0.0
    while not began or time.perf_counter() - began < seconds:
        try:
            batch = prefetch(epoch, number)
        except SourceBusy:
            continue
        if batch is None:
            epoch, number = epoch + 1, 0
            continue
        if not began:
            began, waited_before = time.perf_counter(), prefetch.waited_seconds
        time.sleep(batch.input_ids.size / wanted)
        count, number = count + batch.input_ids.size, number + 1
    spent = time.perf_counter() - began
    share = (prefetch.waited_seconds - waited_before) / spent
    prefetch.close()
    return Waiting(name, wanted, count / spent, share)


class _Open:
    """A source that stays open when a loader is closed."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self.pages, self.fingerprint = source.pages, source.fingerprint
        self.skipped, self.tokenizer = source.skipped, source.tokenizer
        self.tokens = source.tokens

    def close(self) -> None:
        return


def measure(megabytes: int, seconds: float, nginx: Path | None) -> tuple[list[Speed], list[Waiting], float]:
    """All of it, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        served_folder = Path(place) / "served"
        corpus, shards = served_folder / BUCKET / "corpus", served_folder / BUCKET / "shards"
        (served_folder / BUCKET).mkdir(parents=True)
        documents = standard_library(megabytes << 20)
        write_parquet(corpus, documents)
        backend = train_tokenizer(documents)
        tokenizer = HuggingFaceTokenizer(Tokenizer.from_str(backend.to_str()), END, "benchmark")
        building = build_shards(corpus, shards, tokenizer)
        address = stack.enter_context(served(served_folder, nginx))
        ways = sources(corpus, shards, address, tokenizer)
        for source in ways.values():
            stack.callback(source.close)
        tests: dict[str, Callable[[], float]] = {"datasets, streaming": lambda: stream(corpus, backend, seconds)}
        tests |= {name: (lambda source=source: read_pages(source, seconds)) for name, source in ways.items()}  # type: ignore[misc]
        best = {name: max(test() for _ in range(TURNS)) for name, test in tests.items()}
        waits = [
            waiting(name, source, wanted, 2 * seconds)
            for name, source in ways.items()
            if "API" not in name
            for wanted in ACCELERATOR
        ]
    return [Speed(name, value) for name, value in best.items()], waits, building


def markdown(speeds: list[Speed], waits: list[Waiting], building: float, server: str) -> str:
    """The results as they are kept."""
    base = speeds[0].tokens_per_second
    lines = [
        "# Data: tokens a second",
        "",
        f'`python -m benchmarks.data`, "S3" is {server}.',
        "",
        "| source | tokens/s | against `datasets` |",
        "|---|---:|---:|",
        *(f"| {s.name} | {s.tokens_per_second:,.0f} | {s.tokens_per_second / base:.2f}x |" for s in speeds),
        "",
        f"Shards are built at {building:,.0f} tokens/s by one process.",
        "",
        "A training at a fixed speed, eight micro-batches read ahead by two threads:",
        "",
        "| source | tokens/s wanted | reached | time waited for data |",
        "|---|---:|---:|---:|",
        *(f"| {w.name} | {w.wanted:,} | {w.reached:,.0f} | {w.share:.2%} |" for w in waits),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, show, and keep."""
    parser = argparse.ArgumentParser(description="Speed of the corpus.")
    parser.add_argument("--megabytes", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--nginx", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    speeds, waits, building = measure(arguments.megabytes, arguments.seconds, arguments.nginx)
    server = "nginx" if arguments.nginx else "tests/servers/bucket_files.py"
    table = Table("source", "tokens/s", title=f"S3: {server}")
    for speed in speeds:
        table.add_row(speed.name, f"{speed.tokens_per_second:,.0f}")
    for wait in waits:
        table.add_row(f"{wait.name} at {wait.wanted:,}", f"waits {wait.share:.2%}")
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(markdown(speeds, waits, building, server))


if __name__ == "__main__":
    main()
