"""Publishing to a Hub that stores large files by Xet: the library's other way to upload and to download."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import faults
from tests.hub.conftest import MakeHuggingFaceHub, library_warns
from tests.servers.hub import Fault, HubServer, Repository

pytestmark = [library_warns, pytest.mark.integration]

DOWNLOAD = "import sys, huggingface_hub as h; print(h.snapshot_download(sys.argv[1], revision=sys.argv[2]))"


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer(tokens={faults.TOKEN: "write"}, xet=True) as running:
        running.repositories[faults.REPOSITORY] = Repository(private=False)
        yield running


def elsewhere(server: HubServer, home: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the library as it comes: what it does is decided when it is imported."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": server.url, "OMP_NUM_THREADS": "1", **more}
    environment.pop("HF_HUB_DISABLE_XET", None)
    environment |= more
    return subprocess.run(
        [sys.executable, *command], cwd=faults.ROOT, env=environment, capture_output=True, text=True, timeout=50
    )


def upload(server: HubServer, home: Path, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return elsewhere(server, home, "-m", "tests.hub.faults", "huggingface", server.url, str(folder), **more)


async def test_what_goes_up_by_xet_comes_down_by_xet_and_over_http(
    server: HubServer, make_huggingface_hub: MakeHuggingFaceHub, tmp_path: Path
) -> None:
    """No file passes through LFS; our own reader and the library's both get every byte."""
    folder = faults.model(tmp_path / "model")
    done = upload(server, tmp_path / "hf", folder)
    assert done.returncode == 0, done.stderr
    assert server.asked("POST", "/cas/v1/xorbs/") > 0
    assert server.asked("PUT", "/objects/") == 0
    await make_huggingface_hub().fetch(faults.EPOCH, tmp_path / "got")
    got = elsewhere(server, tmp_path / "hf2", "-c", DOWNLOAD, faults.REPOSITORY, str(faults.EPOCH))
    assert got.returncode == 0, got.stderr
    assert server.asked("GET", "/cas/v1/reconstructions/") > 0
    for copy in (tmp_path / "got", Path(got.stdout.split()[-1])):
        for path in folder.iterdir():
            assert (copy / path.name).read_bytes() == path.read_bytes()


async def test_a_store_that_turns_xet_down_says_how_to_do_without(server: HubServer, tmp_path: Path) -> None:
    """The last line of the error names the setting, and nothing is tagged."""
    server.inject(Fault("POST", "/cas/v1/xorbs/", status=403, times=99))
    done = upload(server, tmp_path / "hf", faults.model(tmp_path / "model"))
    assert done.returncode == 1
    assert "HubUnavailable" in done.stderr.splitlines()[-1]
    assert "HF_HUB_DISABLE_XET=1 uploads without Xet" in done.stderr.splitlines()[-1]
    assert server.repositories[faults.REPOSITORY].tags == {}


async def test_xet_can_be_turned_off(server: HubServer, tmp_path: Path) -> None:
    """HF_HUB_DISABLE_XET=1 in the environment takes the way through LFS to the same Hub."""
    done = upload(server, tmp_path / "hf", faults.model(tmp_path / "model"), HF_HUB_DISABLE_XET="1")
    assert done.returncode == 0, done.stderr
    assert server.asked("POST", "/cas/") == 0
    assert server.asked("PUT", "/objects/") == 2
