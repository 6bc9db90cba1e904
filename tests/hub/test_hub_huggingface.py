"""The Hugging Face Hub when things go wrong: what is tried again, what is not, and what is never half done."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distributed_training.hub.download import Timeouts
from distributed_training.hub.hub import MANIFEST, ModelTag
from template.errors import HubError, HubUnavailable, NotPublished, TagConflict
from template.telemetry import MemorySink
from tests.hub.conftest import (
    READER,
    REPOSITORY,
    TOKEN,
    HastyClock,
    MakeFolder,
    MakeHuggingFaceHub,
    MakeTag,
    library_warns,
)
from tests.servers.hub import Blob, Fault, HubServer, Repository

pytestmark = library_warns

COMMIT, TAG, REFS, RESOLVE, OBJECTS = "/commit/main$", "/tag/", "/refs$", "/resolve/", "^/objects/"


@pytest.fixture
def published(make_huggingface_hub: MakeHuggingFaceHub, make_folder: MakeFolder, make_tag: MakeTag) -> ModelTag:
    """Epoch 7 is on the server."""
    tag = make_tag(7)
    asyncio.run(make_huggingface_hub().publish(make_folder(99), tag))
    return tag


PUBLISHING_FAULTS = {
    "500 on commit": (Fault("POST", COMMIT, status=500, times=2), "commit"),
    "503 on commit": (Fault("POST", COMMIT, status=503), "commit"),
    "HTML of a proxy on the card check": (Fault("POST", "/validate-yaml", flip=True), "commit"),
    "429 on refs": (Fault("GET", REFS, status=429), "repository"),
    "closed connection on refs": (Fault("GET", REFS, close="before", times=2), "repository"),
    "502 on the tag": (Fault("POST", TAG, status=502, times=2), "tag"),
    "closed connection on commit": (Fault("POST", COMMIT, close="before"), "commit"),
    "lost answer to commit": (Fault("POST", COMMIT, close="after"), "commit"),
    "lost answer to the tag": (Fault("POST", TAG, close="after"), "tag"),
}


@pytest.mark.parametrize("fault", PUBLISHING_FAULTS)
async def test_publication_rides_out(
    fault: str,
    make_huggingface_hub: MakeHuggingFaceHub,
    server: HubServer,
    make_folder: MakeFolder,
    make_tag: MakeTag,
    sink: MemorySink,
    clock: HastyClock,
) -> None:
    """A passing fault costs tries and back-off, each told to telemetry with its reason, and nothing else."""
    injected, step = PUBLISHING_FAULTS[fault]
    injected.times = times = injected.times or 1
    server.inject(Fault(**vars(injected)))
    await make_huggingface_hub().publish(make_folder(), make_tag())
    assert [record["kind"] for record in sink.records] == ["PublishRetried"] * times + ["Published"]
    assert [(record["step"], record["tried"]) for record in sink.records[:-1]] == [(step, n + 1) for n in range(times)]
    assert all(record["reason"] for record in sink.records[:-1])
    assert clock.slept == [0.5, 1.0][:times]
    assert list(server.repositories[REPOSITORY].tags) == ["7"]
    assert len(server.repositories[REPOSITORY].commits) == 2  # a lost answer is no reason to commit again


READING_FAULTS = {
    "503 on a download": Fault("GET", OBJECTS, status=503, times=2),
    "503 on the redirect": Fault("GET", RESOLVE + ".*model", status=503),
    "429 on refs": Fault("GET", REFS, status=429),
    "closed connection on refs": Fault("GET", REFS, close="before"),
    "a body that breaks off": Fault("GET", OBJECTS, cut=1000, times=2),
    "a flipped bit in a large file": Fault("GET", OBJECTS, flip=True),
    "a flipped bit in a small file": Fault("GET", RESOLVE + ".*config.json", flip=True),
}


@pytest.mark.parametrize("fault", READING_FAULTS)
async def test_fetching_rides_out(
    fault: str,
    server: HubServer,
    make_huggingface_hub: MakeHuggingFaceHub,
    tmp_path: Path,
    published: ModelTag,
    sink: MemorySink,
) -> None:
    """A passing fault leaves no trace in what arrives."""
    injected = Fault(**vars(READING_FAULTS[fault]))
    times = injected.times
    server.inject(injected)
    release = await make_huggingface_hub().fetch(7, tmp_path / "got")
    model = (tmp_path / "model-99" / "model.safetensors").read_bytes()
    assert (tmp_path / "got" / "model.safetensors").read_bytes() == model
    assert release.state_hash == published.state_hash
    assert [record["kind"] for record in sink.records[1:]] == ["ReadRetried"] * times


async def test_a_broken_download_goes_on_where_it_stopped(
    server: HubServer, make_huggingface_hub: MakeHuggingFaceHub, tmp_path: Path, published: ModelTag
) -> None:
    """The second request asks only for the bytes that are missing."""
    server.inject(Fault("GET", OBJECTS, cut=1000))
    await make_huggingface_hub().fetch(7, tmp_path / "got")
    ranges = [r.headers.get("range") for r in server.requests if r.method == "GET" and r.path.startswith("/objects/")]
    assert ranges[:2] == [None, "bytes=1000-"]


@pytest.mark.parametrize(("method", "path"), [("POST", COMMIT), ("POST", TAG), ("GET", REFS)])
async def test_publishing_gives_up_without_a_tag(
    method: str,
    path: str,
    server: HubServer,
    make_huggingface_hub: MakeHuggingFaceHub,
    make_folder: MakeFolder,
    make_tag: MakeTag,
    sink: MemorySink,
) -> None:
    """After the last try: HubUnavailable, a loud event, nothing that a reader can see; a later call completes it."""
    server.inject(Fault(method, path, status=500, times=3))
    hub, folder = make_huggingface_hub(), make_folder()
    with pytest.raises(HubUnavailable, match="failed 3 times, last: HTTP 500"):
        await hub.publish(folder, make_tag())
    assert (sink.records[-1]["kind"], sink.records[-1]["error"]) == ("PublishFailed", "HubUnavailable")
    assert "HTTP 500" in sink.records[-1]["reason"]
    assert await hub.releases() == ()
    await hub.publish(folder, make_tag())
    assert [release.epoch for release in await hub.releases()] == [7]
    assert len(server.repositories[REPOSITORY].commits) == 2


async def test_a_commit_without_a_tag_is_only_tagged(
    server: HubServer, make_huggingface_hub: MakeHuggingFaceHub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """Whoever finds the state at the head of main uploads nothing: another publisher was killed before its tag."""
    await make_huggingface_hub().publish(make_folder(0), make_tag())
    commit = server.repositories[REPOSITORY].tags.pop("7")
    counted_otherwise = dataclasses.replace(make_tag(), samples=1)
    await make_huggingface_hub().publish(make_folder(0, name="other"), counted_otherwise)
    assert server.repositories[REPOSITORY].tags == {"7": commit}
    assert server.asked("POST", COMMIT) == 1


async def test_a_commit_in_between_is_taken_as_the_new_parent(
    server: HubServer,
    make_huggingface_hub: MakeHuggingFaceHub,
    make_folder: MakeFolder,
    make_tag: MakeTag,
    tmp_path: Path,
) -> None:
    """Main moves after the library has left out what it found unchanged there: the release still has all its files."""
    repository = server.repositories[REPOSITORY]
    await make_huggingface_hub().publish(make_folder(0), make_tag(6))
    held = Fault("POST", COMMIT, hold=threading.Event())
    server.inject(held)
    publication = asyncio.create_task(make_huggingface_hub().publish(make_folder(1), make_tag(7)))
    assert await asyncio.to_thread(held.reached.wait, 10)
    tree = repository.commits[repository.main].tree | {"config.json": Blob(b"{}", lfs=False)}
    moved = repository.commit(tree, "by hand")
    held.hold.set()
    await publication
    assert repository.commits[repository.tags["7"]].parent == moved
    await make_huggingface_hub().fetch(7, tmp_path / "got")


async def test_a_file_larger_than_stated_does_not_fill_the_disk(
    server: HubServer,
    make_huggingface_hub: MakeHuggingFaceHub,
    make_folder: MakeFolder,
    make_tag: MakeTag,
    tmp_path: Path,
) -> None:
    """The download ends soon after the stated size, whatever the server would still send."""
    await make_huggingface_hub().publish(make_folder(), make_tag())
    repository = server.repositories[REPOSITORY]
    endless = repository.commits[repository.main].tree | {"config.json": Blob(b"x" * 20_000_000, lfs=False)}
    repository.tags["7"] = repository.commit(endless, "by hand")
    with pytest.raises(HubUnavailable, match=r"config\.json arrived with (\d{1,6}) bytes"):
        await make_huggingface_hub().fetch(7, tmp_path / "got")


async def test_fetching_gives_up_and_leaves_nothing(
    server: HubServer, make_huggingface_hub: MakeHuggingFaceHub, tmp_path: Path, published: ModelTag
) -> None:
    """A file that never arrives intact is never seen: neither a destination nor a draft stays."""
    server.inject(Fault("GET", OBJECTS, flip=True, times=99))
    with pytest.raises(HubUnavailable, match="arrived with 16456 bytes and sha256"):
        await make_huggingface_hub().fetch(7, tmp_path / "deep" / "got")
    assert list((tmp_path / "deep").iterdir()) == []


async def test_retry_after_is_honoured(
    server: HubServer, make_huggingface_hub: MakeHuggingFaceHub, clock: HastyClock
) -> None:
    """The server's wish replaces a shorter back-off."""
    server.inject(Fault("GET", REFS, status=429, headers={"Retry-After": "17"}))
    assert await make_huggingface_hub().releases() == ()
    assert clock.slept == [17.0]


async def test_a_wish_for_too_long_a_wait_ends_the_tries(
    server: HubServer, make_huggingface_hub: MakeHuggingFaceHub, clock: HastyClock
) -> None:
    """Rather give up than come back before the time."""
    server.inject(Fault("GET", REFS, status=429, headers={"Retry-After": "86400"}))
    with pytest.raises(HubUnavailable, match="failed 1 times"):
        await make_huggingface_hub().releases()
    assert clock.slept == []


async def test_a_server_that_never_answers_is_given_up(
    server: HubServer, make_huggingface_hub: MakeHuggingFaceHub
) -> None:
    """Silence ends at the idle timeout of each try."""
    never = threading.Event()
    server.inject(Fault("GET", REFS, hold=never, times=3))
    start = time.monotonic()
    with pytest.raises(HubUnavailable, match="ReadTimeout"):
        await make_huggingface_hub(timeouts=Timeouts(connect=1, idle=0.2, call=30, download=30)).releases()
    assert time.monotonic() - start < 5
    never.set()  # lets the server stop


async def test_nobody_there(make_huggingface_hub: MakeHuggingFaceHub) -> None:
    """A refused connection is worth the tries, and the message names the address."""
    with pytest.raises(HubUnavailable, match=r"http://127.0.0.1:9.*ConnectError"):
        await make_huggingface_hub(endpoint="http://127.0.0.1:9").releases()


async def test_the_first_publication_creates_the_repository(
    server: HubServer, make_huggingface_hub: MakeHuggingFaceHub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """A writer needs no preparation."""
    hub = make_huggingface_hub(repository="org/fresh")
    await hub.publish(make_folder(), make_tag())
    assert list(server.repositories["org/fresh"].tags) == ["7"]


async def test_a_repository_that_cannot_be_seen_is_not_an_empty_one(make_huggingface_hub: MakeHuggingFaceHub) -> None:
    """Reading what is missing or hidden says what to check; it is not taken for "nothing published yet"."""
    with pytest.raises(HubError, match=r"org/none does not exist or is hidden.*check the name") as caught:
        await make_huggingface_hub(repository="org/none").releases()
    assert not isinstance(caught.value, HubUnavailable)


@pytest.mark.parametrize(
    ("token", "says"), [(READER, "HTTP 403.*write access to org"), (None, "anonymous access.*write access to org")]
)
async def test_missing_rights_are_not_tried_again(
    token: str | None,
    says: str,
    server: HubServer,
    make_huggingface_hub: MakeHuggingFaceHub,
    make_folder: MakeFolder,
    make_tag: MakeTag,
    clock: HastyClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A token without the right, or none, is told what it lacks at once; no other token is looked for."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(HubError, match=says):
        await make_huggingface_hub(token=token).publish(make_folder(), make_tag())
    assert clock.slept == []
    assert server.repositories[REPOSITORY].tags == {}
    assert {request.token for request in server.requests} <= {None, token}


async def test_the_token_is_shown_nowhere(
    server: HubServer,
    make_huggingface_hub: MakeHuggingFaceHub,
    make_folder: MakeFolder,
    make_tag: MakeTag,
    sink: MemorySink,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Even when the server repeats it: not in the error, what it is chained to, telemetry or the log."""
    caplog.set_level(logging.INFO)  # below that the HTTP client logs what the server sent
    wrong = "hf_wrongwrongwrong"
    hub = make_huggingface_hub(token=wrong)
    with pytest.raises(HubError, match=r"\*\*\*") as caught:
        await hub.publish(make_folder(), make_tag())
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    shown = [str(caught.value), repr(hub), repr(vars(hub)), repr(sink.records), caplog.text]
    assert [text for text in shown if wrong in text] == []


async def test_the_token_stays_with_the_hub(
    server: HubServer,
    make_huggingface_hub: MakeHuggingFaceHub,
    make_folder: MakeFolder,
    make_tag: MakeTag,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The store that large files are redirected to never sees it (the server refuses it there), nor does any log."""
    caplog.set_level(logging.DEBUG)
    hub = make_huggingface_hub()
    await hub.publish(make_folder(), make_tag())
    await hub.fetch(7, tmp_path / "got")
    stored = [request for request in server.requests if request.path.startswith("/objects/")]
    assert len(stored) == 4  # two files up, two down
    assert {request.token for request in stored} == {None}
    assert TOKEN not in caplog.text


async def test_another_publisher_between_commit_and_tag(
    server: HubServer, make_huggingface_hub: MakeHuggingFaceHub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """The tag that came first stands, and the slower publisher learns that its state is not it."""
    held = Fault("POST", TAG, hold=threading.Event())
    server.inject(held)
    slow = asyncio.create_task(make_huggingface_hub().publish(make_folder(0), make_tag(state="a")))
    assert await asyncio.to_thread(held.reached.wait, 10)
    await make_huggingface_hub().publish(make_folder(1), make_tag(state="b"))
    held.hold.set()
    with pytest.raises(TagConflict, match="holds state b"):
        await slow
    assert [release.state_hash for release in await make_huggingface_hub().releases()] == ["b" * 64]


async def test_a_tag_that_is_no_release_is_named(server: HubServer, make_huggingface_hub: MakeHuggingFaceHub) -> None:
    """A number tagged by hand is an error that names the tag; a name is nobody's business."""
    repository = server.repositories[REPOSITORY]
    repository.tags["v1"] = repository.tags["007"] = repository.main
    assert await make_huggingface_hub().releases() == ()
    with pytest.raises(NotPublished):
        await make_huggingface_hub().fetch(1, Path("never"))
    bad = repository.commit({MANIFEST: Blob(b'{"format": 2}', lfs=False)}, "by hand")
    repository.tags["12"] = bad
    with pytest.raises(HubError, match="tag 12 holds no release"):
        await make_huggingface_hub().releases()


async def test_a_manifest_is_read_up_to_its_limit_only(
    server: HubServer, make_huggingface_hub: MakeHuggingFaceHub
) -> None:
    """A release.json of gigabytes takes no memory."""
    repository = server.repositories[REPOSITORY]
    repository.tags["3"] = repository.commit({MANIFEST: Blob(b" " * 3_000_000, lfs=False)}, "by hand")
    with pytest.raises(HubError, match="on org/nano is larger than 1048576 bytes"):
        await make_huggingface_hub().latest()


async def test_a_private_repository_is_read_with_a_token(
    server: HubServer,
    make_huggingface_hub: MakeHuggingFaceHub,
    make_folder: MakeFolder,
    make_tag: MakeTag,
    tmp_path: Path,
) -> None:
    """A reader's token is enough to fetch; without one the repository cannot be seen."""
    server.repositories["org/closed"] = Repository(private=True)
    await make_huggingface_hub(repository="org/closed").publish(make_folder(), make_tag())
    await make_huggingface_hub(repository="org/closed", token=READER).fetch(7, tmp_path / "got")
    with pytest.raises(HubError, match="anonymous access"):
        await make_huggingface_hub(repository="org/closed", token=None).latest()


def test_anybody_can_download_a_release(server: HubServer, tmp_path: Path, published: ModelTag) -> None:
    """The library's own download takes a release by its tag, in a process that knows nothing of this project."""
    code = (
        "import sys, huggingface_hub as h\n"
        f"h.snapshot_download({REPOSITORY!r}, revision='7', local_dir=sys.argv[1], token=False)"
    )
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "plain")], env=environment, check=True, timeout=50)
    model = (tmp_path / "model-99" / "model.safetensors").read_bytes()
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == model
