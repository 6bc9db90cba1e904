"""What every hub does: the contract of `distributed_training.hub.hub.Hub`, on all four implementations."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from distributed_training.hub.hub import CARD, MANIFEST, Hub, Release, manifest_of
from template.errors import HubError, NotPublished, StateMismatch, TagConflict
from template.telemetry import MemorySink
from tests.hub.conftest import MakeFolder, MakeTag, library_warns

pytestmark = library_warns


async def test_an_empty_hub_has_no_release(hub: Hub, tmp_path: Path) -> None:
    """Nothing published means no releases, no latest one, and nothing to fetch."""
    assert await hub.releases() == ()
    assert await hub.latest() is None
    assert await hub.epochs() == ()
    with pytest.raises(NotPublished, match="epoch 3"):
        await hub.fetch(3, tmp_path / "got")
    assert not (tmp_path / "got").exists()


async def test_what_is_fetched_is_what_was_published(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """Every byte comes back, with what was stated, and nothing else but the card and the manifest."""
    folder, tag = make_folder(), make_tag()
    await hub.publish(folder, tag)
    release = await hub.fetch(7, tmp_path / "deep" / "got")
    got = {path.name: path.read_bytes() for path in (tmp_path / "deep" / "got").iterdir()}
    assert {name: got[name] for name in got if name not in (CARD, MANIFEST)} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert (release.run_id, release.epoch, release.state_hash) == (tag.run_id, 7, "a" * 64)
    assert (release.samples, release.participants, release.held_out_loss) == (512, (1, 4, 9), 3.25)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["got"]


async def test_the_manifest_is_for_programs(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """release.json names every file with the size and sha256 that anybody can recompute."""
    folder = make_folder()
    await hub.publish(folder, make_tag())
    release = await hub.fetch(7, tmp_path / "got")
    assert (tmp_path / "got" / MANIFEST).read_bytes() == manifest_of(release)
    document = json.loads((tmp_path / "got" / MANIFEST).read_bytes())
    assert document["folder"] == ""
    for file in document["files"]:
        content = (folder / file["name"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


async def test_releases_come_in_order_of_epoch(hub: Hub, make_folder: MakeFolder, make_tag: MakeTag) -> None:
    """By number, not by name or by time of publication; `newest` takes the last ones."""
    for epoch in (10, 9, 2):
        await hub.publish(make_folder(epoch), make_tag(epoch))
    assert [release.epoch for release in await hub.releases()] == [2, 9, 10]
    assert [release.epoch for release in await hub.releases(newest=2)] == [9, 10]
    latest = await hub.latest()
    assert latest is not None
    assert latest.epoch == 10


async def test_what_is_removed_is_gone_and_the_rest_stays(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """A removed epoch cannot be seen or fetched; the others are whole; removing it again is fine."""
    for epoch in (1, 2, 3):
        await hub.publish(make_folder(epoch), make_tag(epoch))
    assert await hub.epochs() == (1, 2, 3)
    await hub.remove([2, 1])
    await hub.remove([1])
    assert await hub.epochs() == (3,)
    assert [release.epoch for release in await hub.releases()] == [3]
    with pytest.raises(NotPublished):
        await hub.fetch(1, tmp_path / "gone")
    await hub.fetch(3, tmp_path / "got")
    assert (tmp_path / "got" / "model.safetensors").read_bytes() == (
        tmp_path / "model-3" / "model.safetensors"
    ).read_bytes()


async def test_publishing_the_same_state_again_changes_nothing(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag, sink: MemorySink
) -> None:
    """Another publisher of the same state is content with what is there."""
    await hub.publish(make_folder(), make_tag())
    before = await hub.releases()
    await hub.publish(make_folder(name="other"), make_tag())
    assert await hub.releases() == before
    assert [(record["kind"], record["new"]) for record in sink.records] == [("Published", True), ("Published", False)]


async def test_another_state_never_replaces_a_release(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag, sink: MemorySink
) -> None:
    """A tag with another state hash is a conflict, said loudly, and the first one stays."""
    await hub.publish(make_folder(0), make_tag(state="a"))
    before = await hub.releases()
    with pytest.raises(TagConflict, match="tag 7 holds state a"):
        await hub.publish(make_folder(1), make_tag(state="b"))
    assert await hub.releases() == before
    assert (sink.records[-1]["kind"], sink.records[-1]["error"]) == ("PublishFailed", "TagConflict")


async def test_one_hub_holds_one_run(hub: Hub, make_folder: MakeFolder, make_tag: MakeTag) -> None:
    """Equal states of two runs (both start from the same seed, say) are not the same release."""
    await hub.publish(make_folder(0), make_tag(0))
    with pytest.raises(TagConflict, match="a hub of its own"):
        await hub.publish(make_folder(1), make_tag(0, run_id="other-0123456789ab"))


async def test_of_two_publishers_at_once_one_wins(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """With different states the loser learns of it, and what can be fetched is wholly the winner's."""
    folders = {state: make_folder(seed) for seed, state in enumerate("abc")}
    outcomes = await asyncio.gather(
        *(hub.publish(folder, make_tag(state=state)) for state, folder in folders.items()), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "TagConflict", "TagConflict"]
    release = await hub.fetch(7, tmp_path / "got")
    winner = folders[release.state_hash[0]]
    assert outcomes["abc".index(release.state_hash[0])] is None
    assert (tmp_path / "got" / "model.safetensors").read_bytes() == (winner / "model.safetensors").read_bytes()


async def test_publishers_of_the_same_state_at_once_all_succeed(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """The race for one and the same release has no loser."""
    folder = make_folder()
    await asyncio.gather(*(hub.publish(folder, make_tag()) for _ in range(3)))
    assert len(await hub.releases()) == 1


async def test_nothing_is_fetched_over_something_else(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """A destination that exists is refused and left as it is, even if it is empty."""
    await hub.publish(make_folder(), make_tag())
    (tmp_path / "mine").mkdir()
    with pytest.raises(HubError, match="exists"):
        await hub.fetch(7, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


async def test_a_fetched_folder_can_be_published_again(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """The card and manifest in it are not files of the model; new ones are written."""
    await hub.publish(make_folder(), make_tag(7))
    first = await hub.fetch(7, tmp_path / "got")
    await hub.publish(tmp_path / "got", make_tag(8, state="b"))
    second = await hub.latest()
    assert second is not None
    assert (second.epoch, second.files) == (8, first.files)


async def test_a_full_disk_is_seen_before_the_download(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that does not fit is refused with both numbers, and leaves nothing."""
    await hub.publish(make_folder(), make_tag())
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))
    with pytest.raises(HubError, match=r"takes \d+ bytes and .* has 10: free some space"):
        await hub.fetch(7, tmp_path / "deep" / "got")
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("what", ["nothing", "empty", "subfolder", "symlink", "hidden"])
async def test_a_folder_that_is_no_release_is_refused(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path, what: str
) -> None:
    """Only plain files with portable names are published, and at least one."""
    folder = tmp_path / "none" if what == "nothing" else make_folder()
    if what == "empty":
        folder = tmp_path / "empty"
        folder.mkdir()
    elif what == "subfolder":
        (folder / "sub").mkdir()
    elif what == "symlink":
        (folder / "link").symlink_to(folder / "config.json")
    elif what == "hidden":
        (folder / ".env").write_text("TOKEN=1")
    with pytest.raises(HubError, match="publish"):
        await hub.publish(folder, make_tag())
    assert await hub.releases() == ()


async def test_a_release_that_is_not_accepted_is_not_downloaded(
    hub: Hub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """The caller sees what was stated first; what it raises comes back, and nothing is on the disk."""
    await hub.publish(make_folder(), make_tag())
    seen: list[str] = []

    def refuse(release: Release) -> None:
        seen.append(release.state_hash)
        raise StateMismatch("not the right one")

    with pytest.raises(StateMismatch, match="not the right one"):
        await hub.fetch(7, tmp_path / "deep" / "got", refuse)
    assert seen == ["a" * 64]
    assert not (tmp_path / "deep").exists()
