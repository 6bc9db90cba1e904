"""The directory hub: what a crash leaves, what a damaged disk shows, and who may see it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from distributed_training.hub.directory import DirectoryHub
from distributed_training.hub.files import draft, place
from distributed_training.hub.hub import MANIFEST
from template.errors import HubError, HubUnavailable
from template.telemetry import Telemetry
from tests.hub.conftest import HastyClock, MakeFolder, MakeTag

# Publishes like a real process and is killed at the last moment: everything is written, the tag is not there.
KILLED_BEFORE_THE_TAG = """
import asyncio, os, signal, sys
from pathlib import Path
from distributed_training.hub.directory import DirectoryHub
from distributed_training.hub.hub import ModelTag
from template.clock import SystemClock
from template.telemetry import Telemetry

os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
tag = ModelTag(run_id="nano-0123456789ab", epoch=7, state_hash="a" * 64, samples=1, participants=(), held_out_loss=None)
hub = DirectoryHub(Path(sys.argv[1]), telemetry=Telemetry(), clock=SystemClock())
asyncio.run(hub.publish(Path(sys.argv[2]), tag))
"""


@pytest.fixture
def hub(tmp_path: Path, telemetry: Telemetry, clock: HastyClock) -> DirectoryHub:
    return DirectoryHub(tmp_path / "hub", telemetry=telemetry, clock=clock)


async def test_a_publisher_that_is_killed_leaves_nothing_to_see(
    hub: DirectoryHub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """Its draft is no release; the next publication removes it and succeeds."""
    folder = make_folder()
    command = [sys.executable, "-c", KILLED_BEFORE_THE_TAG, str(tmp_path / "hub"), str(folder)]
    done = await asyncio.to_thread(subprocess.run, command, timeout=50)
    assert done.returncode == -9
    left = sorted(path.name for path in (tmp_path / "hub").iterdir())
    assert [name.endswith(".lock") for name in left] == [False, True]
    assert (tmp_path / "hub" / left[0] / MANIFEST).exists()
    assert await hub.releases() == ()
    await hub.publish(folder, make_tag())
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["7"]


async def test_a_draft_in_work_is_left_alone(
    hub: DirectoryHub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """Sweeping spares the draft of a publisher that lives, however old it looks."""
    code = (
        "import sys; from pathlib import Path; from distributed_training.hub.files import draft\n"
        "with draft(Path(sys.argv[1]), 'publish') as folder:\n"
        "    sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.readline()\n"
        "    sys.exit(0 if folder.is_dir() else 1)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "hub")]
    pipe = asyncio.subprocess.PIPE
    owner = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert owner.stdout is not None
    assert await asyncio.wait_for(owner.stdout.readline(), 20) == b"ready\n"
    await hub.publish(make_folder(), make_tag())
    await asyncio.wait_for(owner.communicate(b"\n"), 20)
    assert owner.returncode == 0
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["7"]


async def test_processes_that_publish_at_once_agree_on_one_winner(
    hub: DirectoryHub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """Several threads with hubs of their own and different states: one release, and every loser knows."""
    hubs = [DirectoryHub(tmp_path / "hub", telemetry=Telemetry(), clock=HastyClock()) for _ in range(6)]
    folders = [make_folder(seed) for seed in range(6)]
    outcomes = await asyncio.gather(
        *(h.publish(f, make_tag(state=s)) for h, f, s in zip(hubs, folders, "abcdef", strict=True)),
        return_exceptions=True,
    )
    names = sorted(type(outcome).__name__ for outcome in outcomes)
    assert names == ["NoneType"] + ["TagConflict"] * 5
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["7"]


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "gone"])
async def test_a_damaged_file_is_never_handed_out(
    hub: DirectoryHub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path, damage: str
) -> None:
    """A file that is not what the manifest says ends the fetch, and no destination or draft stays."""
    await hub.publish(make_folder(), make_tag())
    path = tmp_path / "hub" / "7" / "model.safetensors"
    content = path.read_bytes()
    damaged = {"flip": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:-1], "grow": content + b"\0"}
    path.unlink() if damage == "gone" else path.write_bytes(damaged[damage])
    with pytest.raises(HubError, match=r"model\.safetensors"):
        await hub.fetch(7, tmp_path / "deep" / "got")
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b'{"format": 1}',
        b'{"format": 2}',
        b"[" * 100_000,
        b'{"format": 2, "folder": "", "files": [{"name": "../../etc/passwd", "size": 1, "sha256": "'
        + b"0" * 64
        + b'"}]}',
    ],
)
async def test_a_manifest_that_is_none_is_refused(
    hub: DirectoryHub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path, manifest: bytes
) -> None:
    """Neither read as a release, nor skipped in silence."""
    await hub.publish(make_folder(), make_tag())
    (tmp_path / "hub" / "7" / MANIFEST).write_bytes(manifest)
    with pytest.raises(HubError):
        await hub.latest()
    with pytest.raises(HubError):
        await hub.fetch(7, tmp_path / "got")


async def test_a_release_under_the_wrong_number_is_refused(
    hub: DirectoryHub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """A folder that somebody renamed is not taken for another epoch."""
    await hub.publish(make_folder(), make_tag(7))
    (tmp_path / "hub" / "7").rename(tmp_path / "hub" / "8")
    with pytest.raises(HubError, match="tag 8 holds the release of epoch 7"):
        await hub.latest()


async def test_what_is_not_named_by_a_number_is_not_looked_at(
    hub: DirectoryHub, make_folder: MakeFolder, make_tag: MakeTag, tmp_path: Path
) -> None:
    """People may keep notes beside the releases."""
    await hub.publish(make_folder(), make_tag())
    (tmp_path / "hub" / "notes.txt").write_text("x")
    (tmp_path / "hub" / "007").mkdir()
    assert [release.epoch for release in await hub.releases()] == [7]


async def test_a_root_that_cannot_be_a_folder_is_named(
    tmp_path: Path, telemetry: Telemetry, clock: HastyClock, make_folder: MakeFolder, make_tag: MakeTag
) -> None:
    """An error of the operating system becomes one of the hub's, with the path in it."""
    (tmp_path / "file").write_text("x")
    hub = DirectoryHub(tmp_path / "file", telemetry=telemetry, clock=clock)
    with pytest.raises(HubUnavailable, match="file"):
        await hub.publish(make_folder(), make_tag())
    with pytest.raises(HubUnavailable, match="file"):
        await hub.releases()


def test_a_draft_takes_nobodys_place(tmp_path: Path) -> None:
    """Not even that of an empty folder that came meanwhile, which a rename alone would replace."""
    (tmp_path / "taken").mkdir()
    with draft(tmp_path, "fetch") as folder, pytest.raises(HubError, match="exists"):
        place(folder, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
