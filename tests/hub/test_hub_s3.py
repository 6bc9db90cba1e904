"""The S3 hub beyond the table of faults: rights, credentials, what is shared and what is never replaced."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
import threading
import urllib.parse
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from distributed_training.hub.build import HubConfig
from template.errors import ConfigurationError, HubError, HubUnavailable, NotPublished, TagConflict
from template.telemetry import MemorySink
from tests.hub.conftest import KEY, KEY_SECRET, READING_KEY, HastyClock, MakeFolder, MakeS3Hub, MakeTag
from tests.servers.s3 import Fault, S3Server

MODEL = "model.safetensors"


def large(folder: Path, megabytes: int = 12) -> Path:
    """The folder with a model of more than two parts."""
    weights = np.random.default_rng(5).standard_normal(megabytes << 18).astype(np.float32)
    save_file({"w": weights}, folder / MODEL)
    return folder


async def test_the_tag_is_the_last_thing_written(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """All files are there before it; only the list of epochs follows it."""
    await make_s3_hub().publish(make_folder(), make_tag())
    written = [r.path.removeprefix("/models/org/nano/") for r in s3_server.requests if r.method == "PUT"]
    assert written[-2:] == ["releases/7.json", "releases/index.json"]
    assert [path.rpartition("/")[2] for path in written[:-2]] == [
        "config.json",
        MODEL,
        "optimizer.safetensors",
        "state.json",
        "README.md",
    ]
    tagged = next(r for r in s3_server.requests if r.path.endswith("releases/7.json") and r.method == "PUT")
    assert tagged.headers["if-none-match"] == "*"


async def test_a_large_file_goes_in_parts(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """Three of at most 5 MiB each, each with its MD5, and what is fetched is the whole."""
    folder = large(make_folder())
    await make_s3_hub().publish(folder, make_tag())
    parts = [r for r in s3_server.requests if "partNumber=" in r.query]
    assert len(parts) == 3
    assert all("content-md5" in r.headers for r in parts)
    await make_s3_hub().fetch(7, tmp_path / "got")
    assert (tmp_path / "got" / MODEL).read_bytes() == (folder / MODEL).read_bytes()
    assert s3_server.unfinished() == []


async def test_an_upload_in_parts_that_fails_leaves_nothing(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """Its parts are dropped, and nobody sees the file."""
    s3_server.inject(Fault("PUT", "partNumber=2", status=503, times=3))
    with pytest.raises(HubUnavailable, match=r"model.safetensors part 2 failed 3 times, last: HTTP 503 SlowDown"):
        await make_s3_hub().publish(large(make_folder()), make_tag())
    assert s3_server.unfinished() == []
    assert not any(key.endswith(MODEL) for key in s3_server.objects())


async def test_what_was_uploaded_is_not_uploaded_again(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """A publisher that counted other samples finds the files of one that died before its tag."""
    s3_server.inject(Fault("PUT", "releases/7.json", status=500, times=3))
    with pytest.raises(HubUnavailable):
        await make_s3_hub().publish(make_folder(), make_tag())
    s3_server.requests.clear()
    await make_s3_hub().publish(make_folder(name="other"), dataclasses.replace(make_tag(), samples=1))
    assert s3_server.asked("PUT", "safetensors") == 0
    (release,) = await make_s3_hub().releases()
    assert release.samples == 1


async def test_another_publisher_between_files_and_tag(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """The tag that came first stands with its own files, and the slower publisher learns that its state is not it."""
    held = Fault("PUT", "releases/7.json", hold=threading.Event())
    s3_server.inject(held)
    slow = asyncio.create_task(make_s3_hub().publish(make_folder(0), make_tag(state="a")))
    assert await asyncio.to_thread(held.reached.wait, 10)
    fast = make_folder(1)
    await make_s3_hub().publish(fast, make_tag(state="b"))
    held.hold.set()
    with pytest.raises(TagConflict, match="holds state b"):
        await slow
    await make_s3_hub().fetch(7, tmp_path / "got")
    assert (tmp_path / "got" / MODEL).read_bytes() == (fast / MODEL).read_bytes()


async def test_a_body_damaged_on_its_way_is_refused_and_sent_again(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag, sink: MemorySink
) -> None:
    """What is stored is what was hashed."""
    s3_server.inject(Fault("PUT", "config.json", flip_request=True))
    folder = make_folder()
    await make_s3_hub().publish(folder, make_tag())
    assert [record["kind"] for record in sink.records] == ["PublishRetried", "Published"]
    assert "BadDigest" in sink.records[0]["reason"]
    (stored,) = [value for key, value in s3_server.objects().items() if key.endswith("config.json")]
    assert stored == (folder / "config.json").read_bytes()


async def test_a_broken_download_goes_on_where_it_stopped(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """The second request asks only for the bytes that are missing."""
    await make_s3_hub().publish(make_folder(), make_tag())
    s3_server.inject(Fault("GET", MODEL, cut=1000))
    await make_s3_hub().fetch(7, tmp_path / "got")
    ranges = [r.headers.get("range") for r in s3_server.requests if r.method == "GET" and r.path.endswith(MODEL)]
    assert ranges == [None, "bytes=1000-"]


async def test_anybody_reads_without_credentials(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """A public bucket needs none: no request of a reader carries any."""
    await make_s3_hub().publish(make_folder(), make_tag())
    s3_server.requests.clear()
    reader = make_s3_hub(key=None)
    assert [release.epoch for release in await reader.releases()] == [7]
    await reader.fetch(7, tmp_path / "got")
    assert {request.token for request in s3_server.requests} == {None}


async def test_who_may_not_list_goes_by_the_index(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """A public address that serves objects and nothing else is enough, removals included."""
    s3_server.listing = False
    reader = make_s3_hub(key=None, public_url=f"{s3_server.url}/models")
    assert await reader.epochs() == ()
    writer = make_s3_hub()
    for epoch in (1, 2, 3):
        await writer.publish(make_folder(epoch), make_tag(epoch))
    await writer.remove([1])
    reader = make_s3_hub(key=None, public_url=f"{s3_server.url}/models")
    assert await reader.epochs() == (2, 3)
    latest = await reader.latest()
    assert latest is not None
    assert latest.epoch == 3
    await reader.fetch(2, tmp_path / "got")
    with pytest.raises(NotPublished):
        await reader.fetch(1, tmp_path / "none")


async def test_an_index_that_cannot_be_written_does_not_undo_a_release(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag, sink: MemorySink
) -> None:
    """It is told, and the next publication makes it good."""
    s3_server.inject(Fault("PUT", "index.json", status=500, times=3))
    hub = make_s3_hub()
    await hub.publish(make_folder(1), make_tag(1))
    assert [record["kind"] for record in sink.records][-2:] == ["IndexNotWritten", "Published"]
    await hub.publish(make_folder(2), make_tag(2))
    assert b"[1, 2]" in s3_server.objects()["org/nano/releases/index.json"]


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (READING_KEY, "the AWS credentials are refused.*AccessDenied"),
        ("AKIAUNKNOWN", "refused.*InvalidAccessKeyId"),
        (None, "anonymous access.*no AWS credentials are set"),
    ],
)
async def test_missing_rights_are_not_tried_again(
    key: str | None, says: str, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag, clock: HastyClock
) -> None:
    """One clear line with the remedy, at once."""
    with pytest.raises(HubError, match=says) as caught:
        await make_s3_hub(key=key).publish(make_folder(), make_tag())
    assert not isinstance(caught.value, HubUnavailable)
    assert clock.slept == []


async def test_credentials_are_shown_nowhere(
    s3_server: S3Server,
    make_s3_hub: MakeS3Hub,
    make_folder: MakeFolder,
    make_tag: MakeTag,
    sink: MemorySink,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Even when the server repeats them: not in the error, telemetry, the objects, or the log at its chattiest."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "botocore")
    s3_server.inject(Fault("PUT", "state.json", status=403, message=f"who is {KEY} with {KEY_SECRET}?"))
    hub = make_s3_hub()
    with pytest.raises(HubError, match=r"\*\*\* with \*\*\*") as caught:
        await hub.publish(make_folder(), make_tag())
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    await hub.publish(make_folder(1), make_tag(8))
    await hub.releases()
    shown = [str(caught.value), repr(hub), repr(sink.records), caplog.text, repr(s3_server.objects())]
    assert [text for text in shown if KEY in text or KEY_SECRET in text] == []


async def test_a_profile_gives_the_credentials(
    make_s3_hub: MakeS3Hub,
    make_folder: MakeFolder,
    make_tag: MakeTag,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AWS_PROFILE names it; a profile that is not there is a configuration error with the remedy."""
    file = tmp_path / "aws" / "AWS_SHARED_CREDENTIALS_FILE"
    file.parent.mkdir()
    file.write_text(f"[trainer]\naws_access_key_id = {KEY}\naws_secret_access_key = {KEY_SECRET}\n")
    await make_s3_hub(key=None, profile="trainer").publish(make_folder(), make_tag())
    assert {request.token for request in s3_server.requests} == {KEY}
    with pytest.raises(ConfigurationError, match=r"nobody.*AWS_PROFILE"):
        make_s3_hub(key=None, profile="nobody")


async def test_a_bucket_that_is_not_there_is_named(
    make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """Nothing is created on an operator's account unasked."""
    with pytest.raises(HubError, match="there is no bucket elsewhere at http"):
        await make_s3_hub(bucket="elsewhere").publish(make_folder(), make_tag())


async def test_nobody_there(make_s3_hub: MakeS3Hub, tmp_path: Path) -> None:
    """A refused connection is worth the tries."""
    with pytest.raises(HubUnavailable, match="failed 3 times"):
        await make_s3_hub(endpoint="http://127.0.0.1:9").fetch(1, tmp_path / "got")


async def test_a_file_that_is_gone_is_told_apart_from_an_epoch_that_is(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """A hole in a release is damage; an epoch thinned during the download was simply too old."""
    await make_s3_hub().publish(make_folder(), make_tag())
    (model,) = [key for key in s3_server.objects() if key.endswith(MODEL)]
    s3_server.remove(model)
    with pytest.raises(HubError, match="is missing: epoch 7 is damaged"):
        await make_s3_hub().fetch(7, tmp_path / "got")
    late = make_s3_hub()
    await late.releases()
    s3_server.remove("org/nano/releases/7.json")
    with pytest.raises(NotPublished):
        await late.fetch(7, tmp_path / "got")
    assert not (tmp_path / "got").exists()


async def test_removal_sweeps_what_the_killed_left(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """Files without a tag of epochs before the ones removed; those of a later epoch may be in work."""
    s3_server.put("org/nano/models/2/0123456789abcdef/model.safetensors", b"left")
    s3_server.put("org/nano/models/9/0123456789abcdef/model.safetensors", b"in work")
    hub = make_s3_hub()
    for epoch in (1, 3, 4):
        await hub.publish(make_folder(epoch), make_tag(epoch))
    await hub.remove([1, 3])
    left = {int(key.split("/")[3]) for key in s3_server.objects() if key.startswith("org/nano/models/")}
    assert left == {4, 9}


async def test_hubs_with_other_prefixes_do_not_meet(
    make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """One bucket serves several runs, and no prefix at all is fine, too."""
    await make_s3_hub(prefix="a").publish(make_folder(0), make_tag(1))
    await make_s3_hub(prefix="").publish(make_folder(1), make_tag(2))
    assert await make_s3_hub(prefix="a").epochs() == (1,)
    assert await make_s3_hub(prefix="").epochs() == (2,)


async def test_the_tag_in_the_bucket_is_release_json(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """From its address alone a program gets every file by plain HTTP, with no right to list and no credentials."""
    s3_server.listing = False
    folder = make_folder()
    await make_s3_hub().publish(folder, make_tag())
    tag = f"{s3_server.url}/models/org/nano/releases/7.json"
    stranger = httpx.AsyncClient()
    release = (await stranger.get(tag)).json()
    assert release["held_out_loss"] == 3.25
    assert {file["name"] for file in release["files"]} == {path.name for path in folder.iterdir()}
    for file in release["files"]:
        content = (await stranger.get(urllib.parse.urljoin(tag, release["folder"] + file["name"]))).content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])
        assert content == (folder / file["name"]).read_bytes()
    await stranger.aclose()


async def test_a_tag_that_names_another_folder_is_refused(
    s3_server: S3Server, make_s3_hub: MakeS3Hub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """It would lead other programs astray."""
    await make_s3_hub().publish(make_folder(), make_tag())
    tag = "org/nano/releases/7.json"
    s3_server.put(tag, json.dumps(json.loads(s3_server.objects()[tag]) | {"folder": ""}).encode())
    with pytest.raises(HubError, match="epoch 7 names another folder"):
        await make_s3_hub().releases()


@pytest.mark.parametrize("url", ["s3://", "s3://B", "s3://bucket/a//b", "s3://bucket/../x y", "s3://ab"])
def test_a_url_that_names_no_bucket_is_refused(url: str) -> None:
    """With the forms that are known."""
    with pytest.raises(ConfigurationError, match="s3://bucket/prefix"):
        HubConfig(url=url)
