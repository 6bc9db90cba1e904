"""The life of a peer: identity, start, end, and a daemon that never outlives its parent."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

from distributed_training.averaging import daemon_launcher
from distributed_training.averaging.peer import Peer, PeerConfig
from template.errors import AveragingError
from tests.averaging.conftest import peer_config

NOWHERE = "/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"


@pytest.mark.integration
async def test_the_peer_id_survives_a_restart(tmp_path: Path) -> None:
    """It lives in the identity file; the address names it; a new file is a new peer."""
    ids = []
    for name in ("one", "one", "two"):
        async with Peer(peer_config(tmp_path, name)) as peer:
            ids.append(peer.peer_id)
            assert peer.alive
            assert [a.rpartition("/")[2] for a in peer.addresses] == [peer.peer_id]
            assert all(a.startswith("/ip4/127.0.0.1/tcp/") for a in peer.addresses)
    assert ids[0] == ids[1] != ids[2]
    assert (tmp_path / "one").stat().st_mode & 0o077 == 0


def has_sockets(folder: Path) -> bool:
    return folder.exists() and any(path.is_socket() for path in folder.iterdir())


def socket_folder(pid: int) -> Path:
    """Where the daemon `pid` was told to listen."""
    (listen,) = [word for word in psutil.Process(pid).cmdline() if word.startswith("-listen=/unix")]
    return Path(listen.removeprefix("-listen=/unix")).parent


@pytest.mark.integration
async def test_the_end_leaves_nothing_and_is_final(tmp_path: Path) -> None:
    """No daemon, no sockets, no tasks; use after the end raises."""
    async with Peer(peer_config(tmp_path, "one")) as peer:
        pid, folder = peer.daemon_pid, socket_folder(peer.daemon_pid)
        assert has_sockets(folder)
    assert not psutil.pid_exists(pid)
    assert not has_sockets(folder)
    await asyncio.sleep(0.1)
    assert len(asyncio.all_tasks()) == 1
    with pytest.raises(AveragingError, match="not running"):
        _ = peer.peer_id


@pytest.mark.integration
async def test_nobody_calls_from_the_port_that_it_listens_on(tmp_path: Path) -> None:
    """Where the calls of two peers cross on their way, TCP would make one connection of them, with two callers."""
    async with AsyncExitStack() as stack:
        called = await stack.enter_async_context(Peer(peer_config(tmp_path, "called")))
        caller = await stack.enter_async_context(Peer(peer_config(tmp_path, "caller", called.addresses)))
        known, listening = _port(called.addresses[0]), _port(caller.addresses[0])
        connections = psutil.Process(caller.daemon_pid).net_connections("tcp")
    calls = [c.laddr.port for c in connections if c.raddr and c.raddr.port == known]
    assert calls
    assert listening not in calls


def _port(address: str) -> int:
    return int(address.split("/tcp/")[1].split("/")[0])


@pytest.mark.integration
async def test_unreachable_initial_peers_are_an_error_after_bounded_tries(tmp_path: Path) -> None:
    """The message says so; nothing is left running."""
    config = PeerConfig(
        host="127.0.0.1", port=0, identity_path=tmp_path / "id", initial_peers=(NOWHERE,), start_attempts=2
    )
    with pytest.raises(AveragingError, match="initial peers"):
        async with asyncio.timeout(30):
            await Peer(config).__aenter__()
    assert not [p for p in psutil.Process().children() if p.name() == "p2pd" and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.integration
async def test_a_daemon_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A file that is no key: its complaint reaches the operator."""
    (tmp_path / "id").write_bytes(b"not a key")
    config = PeerConfig(host="127.0.0.1", port=0, identity_path=tmp_path / "id", start_attempts=1)
    with pytest.raises(AveragingError, match="p2pd did not start"):
        await Peer(config).__aenter__()


@pytest.mark.parametrize(
    "change",
    [
        {"host": "localhost"},
        {"port": 70000},
        {"direct_port": 70000},
        {"direct_public_port": -1},
        {"start_attempts": 0},
        {"initial_peers": ("/ip4/127.0.0.1/tcp/1",)},
        {"relay": True},
        {"relay": True, "initial_peers": (NOWHERE,), "relay_others": True},
        {"relay": True, "initial_peers": (NOWHERE,), "announce": ("/ip4/10.0.0.1/tcp/1",)},
    ],
)
def test_bad_configurations_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """At once, with the name of what is wrong."""
    good: dict[str, object] = {"host": "127.0.0.1", "port": 0, "identity_path": tmp_path / "id"}
    with pytest.raises(AveragingError):
        PeerConfig(**{**good, **change})  # type: ignore[arg-type]  # the point of the test


PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-S", sys.argv[1], str(os.getpid()), sys.argv[2], "/bin/sleep", "60"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("mode", ["exec", "watch"] if sys.platform == "linux" else ["watch"])
def test_the_launched_ends_with_its_parent(mode: str) -> None:
    """SIGKILL of the parent ends the launcher and what it launched, in both modes."""
    command = [sys.executable, "-c", PARENT, str(daemon_launcher.__file__), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        launcher = psutil.Process(int(parent.stdout.readline()))
        family = _wait_for_sleep(launcher)
        parent.kill()
        gone, _ = psutil.wait_procs(family, timeout=5)
    assert all(p in gone or p.status() == psutil.STATUS_ZOMBIE for p in family)


def _wait_for_sleep(launcher: psutil.Process) -> list[psutil.Process]:
    """The launcher and its children, once `sleep` runs among them."""
    for _ in range(100):
        family = [launcher, *launcher.children()]
        if any(p.name() == "sleep" for p in family):
            return family
        time.sleep(0.05)
    raise AssertionError("sleep was not launched")
