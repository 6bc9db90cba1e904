"""Shards over real sockets: an S3 server, its public address, faults of every kind, and what an operator can set."""

from __future__ import annotations

import hashlib
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_shards import DOCUMENTS, SPEC, Build, contents, expected

from distributed_training.data.build import build_loader, build_tokens
from distributed_training.data.http import HttpStore, ReadTimeouts
from distributed_training.data.remote import CorpusConfig, open_address, open_shelf, read_file
from distributed_training.data.s3 import S3Store
from distributed_training.data.shards import MANIFEST, ShardSource
from distributed_training.data.store import Absent, FolderStore, Patience, Patient, Shelf, Store
from distributed_training.run import DataSpec
from distributed_training.services.retry import RetryPolicy
from template.errors import ConfigurationError, DataError, SourceUnavailable
from template.telemetry import MemorySink, Telemetry
from tests.servers.s3 import Fault, S3Server

HASTE = Patience(policy=RetryPolicy(tries=3, first_delay=0.01, longest_delay=0.02), seconds=30.0, rest=0.0)
TIMEOUTS = ReadTimeouts(connect=10, idle=10, answer=20)  # a busy machine is no outage
CONFIG = CorpusConfig(tries=2, seconds=30.0, connect_timeout=10.0, idle_timeout=10.0, answer_timeout=20.0, cache_mb=1)
KEY = "AKIAWRITERWRITERWRIT"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    """A bucket that anybody may read; nothing of this machine's own credentials is seen."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with S3Server(keys={KEY: "write"}, buckets=("corpus",), listing=False) as running:
        yield running


@pytest.fixture
def writer(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator with credentials in the environment, which the server's fixture has emptied."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secretsecretsecret")


@pytest.fixture(params=["folder", "s3"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    """Every kind of place that can be written to, empty."""
    if request.param == "folder":
        return FolderStore(tmp_path / "shelf")
    server: S3Server = request.getfixturevalue("server")
    request.getfixturevalue("writer")
    return S3Store("s3://corpus/some/prefix", endpoint=server.url, timeouts=TIMEOUTS)


def test_shelves_give_what_was_put(shelf: Shelf) -> None:
    """Ranges, the end with the size, all of it; replaced whole, removed twice."""
    shelf.put("a.bin", b"0123456789")
    shelf.put("a.bin", b"abcdefghij")
    assert shelf.read("a.bin", 2, 5) == b"cde"
    assert shelf.tail("a.bin", 3) == (b"hij", 10)
    assert shelf.tail("a.bin", 30) == (b"abcdefghij", 10)
    assert shelf.whole("a.bin", 10) == b"abcdefghij"
    for _ in range(2):
        shelf.remove("a.bin")
    for read in (lambda: shelf.whole("a.bin", 10), lambda: shelf.read("a.bin", 0, 1), lambda: shelf.tail("a.bin", 1)):
        with pytest.raises(Absent):
            read()
    shelf.close()


def test_shelves_bound_what_they_read(shelf: Shelf) -> None:
    """A file larger than was asked for is refused; one that is shorter is never filled up."""
    shelf.put("a", b"0123456789")
    with pytest.raises(SourceUnavailable, match="larger than"):
        shelf.whole("a", 9)
    with pytest.raises(Exception, match=r"shorter|broke off") as failure:
        shelf.read("a", 5, 11)
    assert type(failure.value).__name__ in ("SourceUnavailable", "Transient")
    shelf.close()


@pytest.fixture
def uploaded(server: S3Server, tmp_path: Path) -> S3Server:
    """A server whose bucket holds the shards of the documents, under a prefix."""
    Build(tmp_path / "built").run()
    for name, content in contents(tmp_path / "built").items():
        server.put(f"v1/{name}", content, "corpus")
    return server


KINDS = ["s3", "http"]


def open_store(kind: str, server: S3Server, timeouts: ReadTimeouts = TIMEOUTS) -> Store:
    """The bucket as a stranger reads it: through the S3 API without credentials, or at its public address."""
    if kind == "s3":
        return S3Store("s3://corpus/v1", endpoint=server.url, timeouts=timeouts)
    return HttpStore(f"{server.url}/corpus/v1", timeouts=timeouts)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, uploaded: S3Server) -> Iterator[Store]:
    opened = open_store(request.param, uploaded)
    yield opened
    opened.close()


def source_of(store: Store, sink: MemorySink | None = None, patience: Patience = HASTE) -> ShardSource:
    patient = Patient(store, patience, telemetry=Telemetry([sink] if sink else []))
    return ShardSource(patient, patient.whole(MANIFEST, 1 << 20), 20, None)


def test_strangers_read_every_page(store: Store, uploaded: S3Server) -> None:
    """No credentials are sent, and none are needed."""
    source = source_of(store)
    found = [token for page in range(source.pages) for token in source.tokens(page)]
    assert found == expected(DOCUMENTS)
    assert {request.token for request in uploaded.requests} == {None}


@pytest.mark.integration
def test_the_lean_server_is_read_as_a_bucket_is(tmp_path: Path) -> None:
    """The server that readers are measured with gives ranges, ends, whole files and S3's word for what is not there."""
    Build(tmp_path / "corpus" / "v1").run()
    command = [sys.executable, "-m", "tests.servers.bucket_files", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            public, api = HttpStore(f"{address}/corpus/v1"), S3Store("s3://corpus/v1", endpoint=address)
            for store in (public, api):
                source = source_of(store)
                assert [token for page in range(source.pages) for token in source.tokens(page)] == expected(DOCUMENTS)
                assert store.tail(MANIFEST, 2)[0] == (tmp_path / "corpus" / "v1" / MANIFEST).read_bytes()[-2:]
                with pytest.raises(Absent, match="HTTP 404"):
                    store.read("none.bin", 0, 4)
                store.close()
        finally:
            process.terminate()


FAULTS: list[dict[str, Any]] = [
    {"status": 500},
    {"status": 503},
    {"status": 429, "headers": {"Retry-After": "0"}},
    {"close": "before"},
    {"close": "after"},
    {"cut": 40},
    {"flip": True},
]


@pytest.mark.parametrize(
    ("name", "fault"), [*((".bin", fault) for fault in FAULTS), (".sha256", {"flip": True}), (".sha256", {"cut": 40})]
)
def test_faults_are_ridden_out(store: Store, uploaded: S3Server, name: str, fault: dict[str, Any]) -> None:
    """Twice in a row: the right tokens come, and every failed try is an event with its reason."""
    sink = MemorySink()
    source = source_of(store, sink)
    injected = Fault("GET", rf"{name}", times=2, **fault)
    uploaded.inject(injected)
    assert source.tokens(6).tolist() == expected(DOCUMENTS)[120:140]
    assert injected.times == 0
    assert [record["kind"] for record in sink.records] == ["SourceRetried"] * 2
    assert all(record["reason"] for record in sink.records)


@pytest.mark.parametrize("kind", KINDS)
def test_stalls_are_ridden_out(uploaded: S3Server, kind: str) -> None:
    """A server that falls silent in the middle of an answer is left after the idle time, twice in a row."""
    sink, held = MemorySink(), threading.Event()
    store = open_store(kind, uploaded, replace(TIMEOUTS, idle=0.5))
    source = source_of(store, sink, replace(HASTE, policy=replace(HASTE.policy, tries=9)))
    injected = Fault("GET", r"\.bin", times=2, stall=40, hold=held)
    uploaded.inject(injected)
    assert source.tokens(6).tolist() == expected(DOCUMENTS)[120:140]
    held.set()
    store.close()
    assert injected.times == 0
    assert len([record for record in sink.records if "ReadTimeout" in record["reason"]]) >= 2


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut": 40}, {"flip": True}])
def test_past_the_bound_it_is_an_outage(store: Store, uploaded: S3Server, fault: dict[str, Any]) -> None:
    """With the place, the tries and the reason; afterwards the same reader reads again."""
    source = source_of(store)
    uploaded.inject(Fault("GET", r"\.bin", times=3, **fault))
    with pytest.raises(SourceUnavailable, match=r"was tried 3 times in \d+ s in vain: ."):
        source.tokens(6)
    assert source.tokens(6).tolist() == expected(DOCUMENTS)[120:140]


def test_slow_answers_end(uploaded: S3Server) -> None:
    """A server that trickles is left after the time for one answer, however often a byte comes."""
    body = b"x" * 2000

    class Trickle:
        """A TCP server that sends a byte now and then."""

        def __enter__(self) -> str:

            self._socket = socket.create_server(("127.0.0.1", 0))
            self._thread = threading.Thread(target=self._serve)
            self._thread.start()
            return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

        def _serve(self) -> None:
            connection, _ = self._socket.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n")
                for i in range(len(body)):
                    try:
                        connection.sendall(body[i : i + 1])
                    except OSError:
                        return
                    time.sleep(0.02)

        def __exit__(self, *_: object) -> None:
            self._thread.join(20)
            self._socket.close()

    with Trickle() as address:
        store = HttpStore(address, timeouts=ReadTimeouts(connect=5, idle=5, answer=0.3))
        with pytest.raises(Exception, match=r"took longer than 0.3 s"):
            store.whole("a", 10_000)
        store.close()


def test_dead_bucket_is_an_outage() -> None:
    """Nobody listens there."""
    store = Patient(S3Store("s3://corpus/v1", endpoint="http://127.0.0.1:9", timeouts=TIMEOUTS), HASTE)
    with pytest.raises(SourceUnavailable, match=r"s3://corpus/v1 was tried 3 times .*ConnectError"):
        store.read("a", 0, 1)
    store.close()


def test_built_into_a_bucket(server: S3Server, writer: None, tmp_path: Path) -> None:
    """The same bytes as in a folder, through faults of every kind; credentials are never in them."""
    Build(tmp_path / "folder").run()
    build = Build(tmp_path / "unused")
    build.shelf = S3Store("s3://corpus/v1", endpoint=server.url, timeouts=TIMEOUTS)  # type: ignore[assignment]
    faults = ({"status": 503}, {"close": "before"}, {"close": "after"}, {"flip_request": True}, {"status": 500})
    for number, fault in enumerate(faults):
        server.inject(Fault("PUT", rf"0000{number // 2}\.bin", **fault))  # type: ignore[arg-type]
    server.inject(Fault("PUT", MANIFEST, times=2, status=503))
    build.run()
    files = {name.removeprefix("v1/"): content for name, content in server.objects("corpus").items()}
    assert files == contents(tmp_path / "folder")
    assert not any(KEY.encode() in content or b"secretsecret" in content for content in files.values())
    build.shelf.close()


def test_a_refused_writer_is_told(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a right to the bucket a build ends at once, with the place, and without the credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASTRANGER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secretsecretsecret")
    build = Build(tmp_path / "unused")
    build.shelf = S3Store("s3://corpus/v1", endpoint=server.url, timeouts=TIMEOUTS)  # type: ignore[assignment]
    with pytest.raises(SourceUnavailable, match=r"HTTP 403 .*s3://corpus/v1/.* check the address, and the right") as no:
        build.run()
    assert "secretsecret" not in str(no.value)
    assert "AKIASTRANGER" not in str(no.value)
    build.shelf.close()


def test_credentials_are_in_no_log(server: S3Server, writer: None, caplog: pytest.LogCaptureFixture) -> None:
    """Not even at the chattiest level, and although every request is signed."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "botocore")
    store = S3Store("s3://corpus/some/prefix", endpoint=server.url, timeouts=TIMEOUTS)
    store.put("a.bin", b"0123456789")
    assert store.whole("a.bin", 10) == b"0123456789"
    assert {request.token for request in server.requests} == {KEY}
    assert not any(word in caplog.text for word in (KEY, "secretsecret", "Signature"))
    store.close()


def shards_spec(path: str, **changes: Any) -> DataSpec:
    return replace(SPEC, source="shards", path=path, page_size=20, **changes)


def test_a_run_reads_shards_from_anywhere(uploaded: S3Server, tmp_path: Path) -> None:
    """Folder, public address and bucket make the same batches and the same fingerprint."""
    paths = [str(tmp_path / "built"), f"{uploaded.url}/corpus/v1", "s3://corpus/v1"]
    config = replace(CONFIG, s3_endpoint=uploaded.url)
    sources = [build_tokens(shards_spec(path), cache=tmp_path / str(i), config=config) for i, path in enumerate(paths)]
    assert len({source.fingerprint for source in sources}) == 1
    for source in sources:
        assert source.tokens(3).tolist() == expected(DOCUMENTS)[60:80]
        assert (source.tokenizer.end, source.tokenizer.vocab_size) == (256, 257)
        source.close()


def test_pinned_corpus_is_required(uploaded: S3Server, tmp_path: Path) -> None:
    """A manifest with another hash is refused; the right one is kept, and a restart needs nobody."""
    address = f"{uploaded.url}/corpus/v1"
    right = hashlib.sha256((tmp_path / "built" / MANIFEST).read_bytes()).hexdigest()
    with pytest.raises(DataError, match=r"fingerprint .*another corpus, or a changed one"):
        build_tokens(shards_spec(address, fingerprint="0" * 64), config=CONFIG)
    first = build_tokens(shards_spec(address, fingerprint=right), cache=tmp_path / "cache", config=CONFIG)
    first.tokens(3)
    first.close()
    uploaded.inject(Fault("GET", ".", times=99, status=503))
    again = build_tokens(shards_spec(address, fingerprint=right), cache=tmp_path / "cache", config=CONFIG)
    assert again.tokens(3).tolist() == expected(DOCUMENTS)[60:80]
    again.close()


def test_other_tokenizer_is_refused(tmp_path: Path) -> None:
    """The run says which tokenizer made the shards; they must say the same."""
    Build(tmp_path).run()
    with pytest.raises(ConfigurationError, match="of the tokenizer 'bytes', not 'distilgpt2'"):
        build_tokens(shards_spec(str(tmp_path), tokenizer="distilgpt2"))


def test_missing_shards_are_an_error(tmp_path: Path, uploaded: S3Server) -> None:
    """A place without a manifest is told at once."""
    for path in (str(tmp_path / "nowhere"), f"{uploaded.url}/corpus/v2"):
        with pytest.raises(SourceUnavailable, match=MANIFEST):
            build_tokens(shards_spec(path), config=CONFIG)


def test_addresses(tmp_path: Path) -> None:
    """What can be read, what can be written, and what is neither."""
    assert isinstance(open_address(str(tmp_path), CONFIG), FolderStore)
    with pytest.raises(ConfigurationError, match="cannot be written to"):
        open_shelf("https://example.org/x", CONFIG)
    for wrong in ("s3://", "s3://UPPER/x", "s3:///x"):
        with pytest.raises(ConfigurationError, match="no address of a bucket"):
            open_address(wrong, CONFIG)


def test_a_file_by_its_address(uploaded: S3Server, tmp_path: Path) -> None:
    """A path or an http(s) address, bounded."""
    expected_content = (tmp_path / "built" / MANIFEST).read_bytes()
    for address in (str(tmp_path / "built" / MANIFEST), f"{uploaded.url}/corpus/v1/{MANIFEST}"):
        assert read_file(address, 1 << 20, CONFIG, None) == expected_content
        with pytest.raises(SourceUnavailable, match="bytes"):
            read_file(address, 10, CONFIG, None)


def test_loader_of_shards(tmp_path: Path) -> None:
    """A run over shards: batches of the tokens, with the labels of the same page."""
    from tests.data.test_build_loader import spec

    Build(tmp_path).run()
    small = {"page_size": 20, "pages_per_micro_batch": 1, "pages_per_epoch": 1, "max_uids": 4, "held_out_pages": 2}
    run = spec(source="shards", path=str(tmp_path), tokenizer="bytes", sequence_length=10, **small)
    loader = build_loader(run)
    batch = loader.batch([6])
    tokens = expected(DOCUMENTS)[120:140]
    assert batch.input_ids.ravel().tolist() == tokens
    assert batch.labels.ravel().tolist() == [*tokens[1:], -100]
    loader.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd", "does not serve ranges"),
        (b"HTTP/1.1 206 Partial\r\ncontent-length: 4\r\n\r\nabcd", "without telling which"),
        (b"HTTP/1.1 206 Partial\r\ncontent-range: bytes 0-3/9\r\ncontent-length: 4\r\n\r\nabcd", "serves bytes 0-3/9"),
        (b"HTTP/1.1 206 Partial\r\ncontent-range: bytes 2-9/9\r\ncontent-length: 8\r\n\r\nabcdefgh", "larger than"),
    ],
)
def test_other_ranges_than_asked_for_are_refused(answer: bytes, message: str) -> None:
    """A server or proxy that ignores or changes the range never gives bytes of another place."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        store = HttpStore(f"http://127.0.0.1:{listener.getsockname()[1]}", timeouts=TIMEOUTS)
        with pytest.raises(SourceUnavailable, match=message):
            store.read("a", 2, 6)
        store.close()
        thread.join(20)
