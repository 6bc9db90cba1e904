"""A dataset repository as a corpus: read over real sockets from a Hub, by ranges, exactly."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from corpora import write_parquet
from simulated import fineweb_index

from distributed_training.data.assignment import Assignment
from distributed_training.data.cache import BlockCache
from distributed_training.data.dataset import Dataset, DatasetSource, data_files, files_address, find_index
from distributed_training.data.http import HttpStore, ReadTimeouts
from distributed_training.data.parquet import ParquetSource
from distributed_training.data.row_groups import RowMap
from distributed_training.data.split import Split
from distributed_training.data.store import Patience, Patient
from distributed_training.run import load_run
from distributed_training.services.retry import RetryPolicy
from template.config import Secret
from template.errors import ConfigurationError, DataError, SourceUnavailable
from tests.servers.datasets import add_dataset
from tests.servers.hub import Fault, HubServer

ROOT = Path(__file__).parents[2]
REPOSITORY = "HuggingFaceFW/fineweb"
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-350BT
  data_files:
  - split: train
    path: sample/350BT/*
---
# Texts
"""
HASTE = Patience(policy=RetryPolicy(tries=3, first_delay=0.01, longest_delay=0.02), seconds=20.0, rest=0.0)
PARQUET = r"/stored/"
FAULTS = [
    {"status": 500},
    {"status": 503},
    {"status": 429, "headers": {"Retry-After": "0"}},
    {"close": "before"},
    {"close": "after"},
]
Opened = tuple[Patient, Dataset]


@pytest.fixture
def repository(tmp_path: Path, documents: list[str]) -> Path:
    """FineWeb's layout: a sample of three documents in four beside the whole."""
    folder = tmp_path / "repository"
    write_parquet(folder / "data" / "CC-MAIN-2024-10", documents)
    write_parquet(folder / "sample" / "350BT", documents[:38])
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def opened(dataset_server: HubServer, repository: Path) -> Iterator[Opened]:
    """A patient reader of the sample, and what it reads."""
    commit = add_dataset(dataset_server, REPOSITORY, repository)
    dataset = Dataset(REPOSITORY, "sample-350BT", "train", commit, "text")
    store = Patient(HttpStore(files_address(dataset), timeouts=ReadTimeouts(connect=5, idle=2, answer=5)), HASTE)
    yield store, dataset
    store.close()


def texts(source: DatasetSource, page: int) -> list[str]:
    return [piece.text.decode() for piece in source.read(page)]


def test_datasets_says_which_files(opened: Opened, dataset_server: HubServer) -> None:
    """Those of the configuration and split at the commit, in order."""
    _, dataset = opened
    assert data_files(dataset) == [f"sample/350BT/{first:05d}.parquet" for first in range(0, 38, 7)]


@pytest.mark.parametrize("page_size", [1, 2, 5, 100])
def test_pages_are_slices_of_the_documents(opened: Opened, documents: list[str], page_size: int) -> None:
    """Every page, read from the Hub, holds its rows in order; the last may be shorter."""
    store, dataset = opened
    source = DatasetSource(store, find_index(dataset, store, None), page_size, None)
    found = [texts(source, page) for page in range(source.pages)]
    assert found == [documents[:38][i : i + page_size] for i in range(0, 38, page_size)]
    with pytest.raises(DataError, match=f"no page {source.pages}"):
        source.read(source.pages)


def test_pages_equal_those_of_the_files(opened: Opened, repository: Path) -> None:
    """The same files in a folder, read by pyarrow, make the same pages; threads may read in any order."""
    store, dataset = opened
    here = ParquetSource(repository / "sample", 4)
    there = DatasetSource(store, find_index(dataset, store, None), 4, None)
    pages = random.Random(3).choices(range(there.pages), k=40)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(there.read, pages)) == [here.read(page) for page in pages]


def test_a_page_costs_its_row_groups_only(opened: Opened, dataset_server: HubServer) -> None:
    """One range request a row group, of the text column's bytes alone; nothing of what lies before."""
    store, dataset = opened
    index = find_index(dataset, store, None)
    source = DatasetSource(store, index, 3, None)  # row groups hold 3, 3 and 1 rows, files 7
    dataset_server.requests.clear()
    source.read(10)  # rows 30 to 32: the last two row groups of a file... and none of the next
    asked = [request.headers["range"] for request in dataset_server.requests if request.path.startswith("/stored/")]
    files, groups, _ = RowMap(index).locate(np.array([30, 31, 32]))
    wanted = sorted({(int(f), int(g)) for f, g in zip(files, groups, strict=True)})
    first = [int(index.files[f].starts[g]) for f, g in wanted]
    size = [int(index.files[f].sizes[g]) for f, g in wanted]
    assert asked == [f"bytes={a}-{a + n - 1}" for a, n in zip(first, size, strict=True)]


def test_index_is_built_once_from_footers(opened: Opened, dataset_server: HubServer, tmp_path: Path) -> None:
    """One request a file of at most its footer and a little more; the second start asks nobody."""
    store, dataset = opened
    index = find_index(dataset, store, tmp_path / "cache")
    footers = [r for r in dataset_server.requests if r.path.startswith("/stored/")]
    assert len(footers) == len(index.files) == 6
    assert all(re.fullmatch(r"bytes=-\d+", r.headers["range"]) for r in footers)
    dataset_server.requests.clear()
    again = find_index(dataset, store, tmp_path / "cache")
    assert again.fingerprint == index.fingerprint
    assert dataset_server.requests == []


def test_a_long_footer_takes_a_second_request(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of exactly the footer; the index is the same."""
    store, dataset = opened
    whole = find_index(dataset, store, None)
    monkeypatch.setattr("distributed_training.data.row_groups._TAIL", 64)
    assert find_index(dataset, store, None).fingerprint == whole.fingerprint


def test_a_ready_index_is_checked(opened: Opened, dataset_server: HubServer, tmp_path: Path) -> None:
    """It is taken without a request, unless it is spoiled or of another dataset."""
    store, dataset = opened
    path = tmp_path / "index.json"
    index = find_index(dataset, store, None)
    index.save(path)
    dataset_server.requests.clear()
    assert find_index(dataset, store, tmp_path / "a", path.read_bytes).fingerprint == index.fingerprint
    assert dataset_server.requests == []
    spoiled = path.read_bytes().replace(b'"size":', b'"size":1')
    with pytest.raises(DataError, match="hash does not match"):
        find_index(dataset, store, tmp_path / "b", lambda: spoiled)
    other = Dataset(REPOSITORY, "default", "train", dataset.revision, "text")
    with pytest.raises(DataError, match=r"sample-350BT .*, not of .* default"):
        find_index(other, store, tmp_path / "c", path.read_bytes)
    with pytest.raises(DataError, match="not an index"):
        find_index(dataset, store, tmp_path / "d", lambda: b"<html>")


def test_spoiled_cache_is_built_anew(opened: Opened, tmp_path: Path) -> None:
    """Whatever the disk did to it."""
    store, dataset = opened
    index = find_index(dataset, store, tmp_path)
    (path,) = tmp_path.glob("dataset-*.json")
    for content in (b"", b"{}", path.read_bytes()[:-9], path.read_bytes().replace(b"1", b"2")):
        path.write_bytes(content)
        assert find_index(dataset, store, tmp_path).fingerprint == index.fingerprint


def test_a_build_that_broke_off_goes_on(opened: Opened, dataset_server: HubServer, tmp_path: Path) -> None:
    """Footers that were read are not read again; a line that a crash cut short is."""
    store, dataset = opened
    whole = find_index(dataset, store, None)
    dataset_server.inject(Fault("GET", r"350BT/00028", times=9, status=500))
    with pytest.raises(SourceUnavailable, match="500"):
        find_index(dataset, store, tmp_path)
    (partial,) = tmp_path.glob("*.partial")
    kept = partial.read_bytes().count(b"\n")
    with partial.open("ab") as file:
        file.write(b'{"name": "cut sho')
    dataset_server.faults.clear()
    dataset_server.requests.clear()
    assert find_index(dataset, store, tmp_path).fingerprint == whole.fingerprint
    assert dataset_server.asked("GET", PARQUET) == 6 - kept
    assert kept >= 1
    assert not list(tmp_path.glob("*.partial"))


def test_fingerprint_is_of_the_text_s_place(opened: Opened, dataset_server: HubServer, repository: Path) -> None:
    """Another commit or configuration is another corpus; the same again is the same."""
    store, dataset = opened
    index = find_index(dataset, store, None)
    names = [file.name for file in index.files]
    assert [json.loads(json.dumps(file.facts()))["name"] for file in index.files] == names
    default = Dataset(REPOSITORY, "default", "train", dataset.revision, "text")
    prints = {index.fingerprint, find_index(default, store, None).fingerprint}
    assert len(prints) == 2
    assert find_index(dataset, store, None).fingerprint in prints


@pytest.mark.parametrize(
    ("where", "fault"),
    [(where, fault) for where in (PARQUET, "/resolve/") for fault in FAULTS] + [(PARQUET, {"cut": 10})],
)
def test_faults_are_ridden_out(
    opened: Opened, dataset_server: HubServer, documents: list[str], where: str, fault: dict[str, object]
) -> None:
    """Twice in a row, at the Hub or at its storage: the page comes, and is the right one."""
    store, dataset = opened
    source = DatasetSource(store, find_index(dataset, store, None), 3, None)
    dataset_server.inject(Fault("GET", where, times=2, **fault))  # type: ignore[arg-type]
    assert texts(source, 4) == documents[12:15]
    assert dataset_server.faults[0].times == 0


def test_stall_is_ridden_out(dataset_server: HubServer, repository: Path, documents: list[str]) -> None:
    """A server that sends nothing is left after the idle time."""
    commit = add_dataset(dataset_server, REPOSITORY, repository)
    dataset = Dataset(REPOSITORY, "sample-350BT", "train", commit, "text")
    store = Patient(HttpStore(files_address(dataset), timeouts=ReadTimeouts(connect=5, idle=1, answer=10)), HASTE)
    source = DatasetSource(store, find_index(dataset, store, None), 3, None)
    held = threading.Event()
    dataset_server.inject(Fault("GET", PARQUET, hold=held))
    assert texts(source, 4) == documents[12:15]
    held.set()
    store.close()


def test_long_outage_is_an_error_and_ends(opened: Opened, dataset_server: HubServer, documents: list[str]) -> None:
    """Past the bound it is told with the reason; once it is over, the same reader reads."""
    store, dataset = opened
    source = DatasetSource(store, find_index(dataset, store, None), 3, None)
    dataset_server.inject(Fault("GET", PARQUET, times=3, status=503))
    with pytest.raises(SourceUnavailable, match=r"tried 3 times .* HTTP 503"):
        source.read(4)
    assert texts(source, 4) == documents[12:15]


def test_dead_host_is_an_outage() -> None:
    """Nobody listens there."""
    store = Patient(HttpStore("http://127.0.0.1:9", timeouts=ReadTimeouts(connect=1, idle=1, answer=1)), HASTE)
    with pytest.raises(SourceUnavailable, match=r"127.0.0.1:9 was tried 3 times .*ConnectError"):
        store.read("a", 0, 1)


def test_cached_row_groups_need_no_hub(
    opened: Opened, dataset_server: HubServer, documents: list[str], tmp_path: Path
) -> None:
    """What was read stays readable in an outage, also after a restart."""
    store, dataset = opened
    index = find_index(dataset, store, tmp_path)
    DatasetSource(store, index, 3, BlockCache(tmp_path / "blocks", 1 << 20)).read(4)
    dataset_server.inject(Fault("GET", ".", times=99, status=503))
    again = DatasetSource(store, find_index(dataset, store, tmp_path), 3, BlockCache(tmp_path / "blocks", 1 << 20))
    assert texts(again, 4) == documents[12:15]
    with pytest.raises(SourceUnavailable):
        again.read(8)


def test_missing_file_is_an_outage_at_once(opened: Opened, dataset_server: HubServer) -> None:
    """A repository that was taken away is told after one try."""
    store, dataset = opened
    source = DatasetSource(store, find_index(dataset, store, None), 3, None)
    dataset_server.repositories.clear()
    dataset_server.requests.clear()
    with pytest.raises(SourceUnavailable, match="HTTP 404"):
        source.read(4)
    assert len(dataset_server.requests) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repository": "org/none"}, "data.path: there is no dataset org/none"),
        ({"configuration": "sample-1BT"}, "data.configuration: .*sample-1BT.*sample-350BT"),
        ({"split": "test"}, "data.split: .* has no split 'test'; it has train"),
        ({"column": "content"}, "data.column: .* has no column 'content' of strings .*text, id"),
        ({"column": "token_count"}, "data.column: "),
        ({"revision": "0" * 40}, "data.path: there is no dataset .* at 000000000000"),
    ],
)
def test_wrong_names_are_refused(opened: Opened, change: dict[str, str], message: str) -> None:
    """Each with the key to change, and what there is."""
    store, dataset = opened
    wrong = Dataset(**{**{name: getattr(dataset, name) for name in Dataset.__match_args__}, **change})
    with pytest.raises(ConfigurationError, match=message):
        find_index(wrong, store, None)


def test_other_files_are_refused(dataset_server: HubServer, tmp_path: Path) -> None:
    """A file that is only called Parquet."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(b"not at all" * 10)
    dataset = Dataset("org/other", "", "train", add_dataset(dataset_server, "org/other", folder), "text")
    store = Patient(HttpStore(files_address(dataset)), HASTE)
    with pytest.raises(ConfigurationError, match=r"a.parquet in .* is not a Parquet file"):
        find_index(dataset, store, None)
    store.close()


def test_token_stays_with_the_hub(dataset_server: HubServer, repository: Path, documents: list[str]) -> None:
    """The storage, which is somebody else's, never sees it, and no message shows it."""
    dataset_server.tokens["hf_secretsecret"] = "read"
    commit = add_dataset(dataset_server, REPOSITORY, repository)
    dataset, token = Dataset(REPOSITORY, "sample-350BT", "train", commit, "text"), Secret("hf_secretsecret")
    store = Patient(HttpStore(files_address(dataset), token=token), HASTE)
    source = DatasetSource(store, find_index(dataset, store, None, token=token), 3, None)
    assert texts(source, 4) == documents[12:15]
    sent = {(request.token, request.path.split("/")[1]) for request in dataset_server.requests}
    assert ("hf_secretsecret", "datasets") in sent
    assert ("hf_secretsecret", "stored") not in sent
    dataset_server.inject(Fault("GET", ".", times=99, status=403, message="for hf_secretsecret"))
    with pytest.raises(SourceUnavailable) as failure:
        source.read(1)
    assert "hf_secret" not in str(failure.value)
    store.close()


def test_rows_are_located_as_a_loop_would() -> None:
    """File, row group and row of every row of an index, against counting; rows that do not exist are refused."""
    index = fineweb_index(rows=20_000, files=7)
    rows = RowMap(index)
    counted = [
        (f, g, r)
        for f, file in enumerate(index.files)
        for g, count in enumerate(file.rows.tolist())
        for r in range(count)
    ]
    found = np.stack(rows.locate(np.arange(20_000)), axis=1)
    assert [tuple(place) for place in found.tolist()] == counted
    for wrong in (-1, 20_000):
        with pytest.raises(DataError, match="the corpus has 20000"):
            rows.locate(np.array([wrong]))


def test_no_two_miners_share_a_row_of_fineweb() -> None:
    """Of 64 uids over 8 epochs on a corpus of its size, no page comes twice, and every page has a place of its own."""
    spec = load_run(ROOT / "runs" / "gpt2-fineweb.toml")
    index = fineweb_index()
    rows, size = RowMap(index), spec.data.page_size
    split = Split(-(-rows.rows // size), spec.data.held_out_pages)
    assignment = Assignment(spec.run_id, split.train_pages, spec.data.max_uids, spec.data.pages_per_epoch)
    pages = np.concatenate(
        [split.corpus_pages(assignment.pages(epoch, uid, 0, 64)) for epoch in range(8) for uid in range(64)]
    )
    assert len(np.unique(pages)) == len(pages) == 8 * 64 * 64
    assert not np.isin(pages, split.held_out_pages).any()
    files, groups, places = rows.locate(pages * size)
    starts = np.concatenate([[0], np.cumsum([file.rows.sum() for file in index.files])])
    before = np.array([index.files[f].rows[:g].sum() for f, g in zip(files, groups, strict=True)])
    assert np.array_equal(starts[files] + before + places, pages * size)
