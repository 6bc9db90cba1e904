"""Several processes on one chain file: nonces, lost writes, a killed writer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from template.chain.connect import connect
from template.chain.local.genesis import create_chain

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[4]
WORKER = """
import asyncio, json, sys
from bittensor import calls
from bittensor.keyfiles import Keypair
from template.chain.connect import connect

async def main(path, uri, dest, count):
    key = Keypair.create_from_uri(uri)
    call = calls.Balances.transfer_keep_alive(dest=dest, value=1000)
    async with connect(f"local://{path}") as client:
        print("ready", flush=True)
        done = 0
        for _ in range(int(count)):
            result = await client._substrate.submit(call, key, wait_for_inclusion=False, wait_for_finalization=False)
            assert result.success, result.message
            done += 1
            print(done, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def start(path: Path, uri: str, dest: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(path), uri, dest, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def finish(worker: subprocess.Popen[str]) -> int:
    """The last number it printed."""
    out, _ = worker.communicate(timeout=50)
    assert worker.returncode == 0
    return int(out.split()[-1])


def nonces(path: Path, who: str) -> list[int]:
    db = sqlite3.connect(path)
    rows = db.execute("SELECT nonce FROM extrinsics WHERE signer = ? ORDER BY block, position", (who,)).fetchall()
    db.close()
    return [row[0] for row in rows]


@pytest.fixture
def path(tmp_path: Path, wallet: Any) -> Path:
    money = {wallet(name).keys.coldkey: 100.0 for name in ("a", "b", "c")}
    create_chain(tmp_path / "c.db", owner=wallet("owner").keys, endow=money, block_seconds=0.25, tempo=4)
    return tmp_path / "c.db"


async def balance(path: Path, who: str) -> int:
    async with connect(f"local://{path}") as client:
        await asyncio.sleep(0.6)  # two blocks, so that what is written is visible
        return int((await client.balances.get(who)).rao)


async def test_many_accounts(path: Path, wallet: Any) -> None:
    """Three writers, epochs in between: every transfer arrives once."""
    dest = wallet("dest").keys.coldkey
    workers = [start(path, f"//{name}", dest, 40) for name in ("a", "b", "c")]
    assert [finish(worker) for worker in workers] == [40, 40, 40]
    assert await balance(path, dest) == 3 * 40 * 1000
    for name in ("a", "b", "c"):
        assert nonces(path, wallet(name).keys.coldkey) == list(range(40))


async def test_one_account_in_two_processes(path: Path, wallet: Any) -> None:
    """Both get through: whoever loses a nonce takes the next one."""
    dest = wallet("dest").keys.coldkey
    workers = [start(path, "//a", dest, 40) for _ in range(2)]
    assert [finish(worker) for worker in workers] == [40, 40]
    assert await balance(path, dest) == 80 * 1000
    assert nonces(path, wallet("a").keys.coldkey) == list(range(80))


def kill_after(worker: subprocess.Popen[str], results: int) -> int:
    """SIGKILL when it has reported so many results; how many it reported in the end."""
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.strip() == str(results):
            break
    os.kill(worker.pid, signal.SIGKILL)
    rest = worker.stdout.read().split()
    assert worker.wait(timeout=20) == -signal.SIGKILL
    worker.stdout.close()
    return int(rest[-1]) if rest else results


@pytest.mark.parametrize("results", [1, 37])
async def test_killed_writer(path: Path, wallet: Any, results: int) -> None:
    """SIGKILL amid writes: the file is sound, no nonce is lost or doubled, and others go on."""
    dest, who = wallet("dest").keys.coldkey, wallet("a").keys.coldkey
    victim, other = start(path, "//a", dest, 100_000), start(path, "//b", dest, 50)
    told = kill_after(victim, results)
    assert finish(other) == 50
    assert integrity(path) == "ok"
    written = nonces(path, who)
    assert written == list(range(len(written)))
    assert told <= len(written) <= told + 1
    assert await balance(path, dest) == 1000 * (50 + len(written))
    async with connect(f"local://{path}") as client:
        assert await client._substrate.account_next_index(who) == len(written)


def integrity(path: Path) -> str:
    db = sqlite3.connect(path)
    answer = str(db.execute("PRAGMA integrity_check").fetchone()[0])
    db.close()
    return answer


SUICIDE = """
import os, signal, sys
from pathlib import Path
from template.chain.local import operator
from template.chain.local.ledger import Ledger

def work(state):
    operator.fund(state, sys.argv[2], 50.0)
    assert state.get("Account", sys.argv[2], pallet="System")["data"]["free"] == 150 * 10**9
    os.kill(os.getpid(), signal.SIGKILL)

with Ledger(Path(sys.argv[1])) as chain:
    operator.apply(chain, work)
"""


def run_suicide(path: Path, who: str) -> int:
    return subprocess.run([sys.executable, "-c", SUICIDE, str(path), who], cwd=ROOT, timeout=50, check=False).returncode


async def test_killed_inside_a_transaction(path: Path, wallet: Any) -> None:
    """What was written before the kill, but not committed, never happened."""
    who = wallet("a").keys.coldkey
    assert run_suicide(path, who) == -signal.SIGKILL
    assert integrity(path) == "ok"
    assert await balance(path, who) == 100 * 10**9
    assert finish(start(path, "//a", wallet("dest").keys.coldkey, 3)) == 3


async def test_blocks_never_change(path: Path, wallet: Any) -> None:
    """What a reader saw of a block while others wrote is what the block says for ever."""
    worker = start(path, "//a", wallet("dest").keys.coldkey, 150)
    seen: dict[int, str] = {}
    async with connect(f"local://{path}") as client:
        while worker.poll() is None and len(seen) < 200:
            view = await client.at()
            seen[view.block] = json.dumps(await view.query(("System", "Account"), [wallet("a").keys.coldkey]))
            await asyncio.sleep(0.02)
        assert finish(worker) == 150
        for block, record in seen.items():
            later = await (await client.at(block)).query(("System", "Account"), [wallet("a").keys.coldkey])
            assert json.dumps(later) == record, block
    assert len(seen) > 1
