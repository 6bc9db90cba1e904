"""The memory file: survives restarts and kills, knows its run, and says when it is damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distributed_training.schedule import Exclusion
from distributed_training.scoring.combine import Entry, ScoreBook
from distributed_training.validator.memory import Memory, MemoryFile, Remembered, without_strangers
from template.errors import CorruptState
from template.telemetry import MemorySink, Telemetry

ROOT = Path(__file__).parents[2]
FULL = Memory(
    run_id="run-1",
    book=ScoreBook(epoch=4, entries=(Entry(uid=2, hotkey="5A", ema=0.1 + 0.2, bandwidth=0.5, unpaid_through=9),)),
    exclusions={"5A": Exclusion(2, 7)},
    failed=frozenset({"5A", "5B"}),
    weights_block=17,
)


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    """All fields, floats included; the first start has an empty memory."""
    file = MemoryFile(tmp_path / "new" / "validator.json")
    assert file.load("run-1") == Memory("run-1")
    file.save(FULL)
    assert MemoryFile(tmp_path / "new" / "validator.json").load("run-1") == FULL


def test_the_memory_of_another_run_is_not_used(tmp_path: Path) -> None:
    """Scores of another model say nothing."""
    file = MemoryFile(tmp_path / "validator.json")
    file.save(FULL)
    assert file.load("run-2") == Memory("run-2")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"run_id": "run-1"}',
        json.dumps({**FULL.state_dict(), "exclusions": {"5A": [1]}}).encode(),
        json.dumps({**FULL.state_dict(), "book": 3}).encode(),
        json.dumps({**FULL.state_dict(), "weights_block": "x"}).encode(),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    """It is never taken for an empty one: that would pay nobody for a long time, silently."""
    path = tmp_path / "validator.json"
    path.write_bytes(content)
    with pytest.raises(CorruptState, match=r"validator\.json is damaged .*move it away"):
        MemoryFile(path).load("run-1")


KILLED = """
import os, sys
from pathlib import Path
from distributed_training.validator import memory
file = memory.MemoryFile(Path(sys.argv[1]))
real = os.fsync
def killed(descriptor):
    real(descriptor)
    os._exit(9)
os.fsync = killed
file.save(memory.Memory("run-1", weights_block=99))
"""


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_memory(tmp_path: Path) -> None:
    """Written but not renamed yet: the next start loads what was there, and the next save works."""
    path = tmp_path / "validator.json"
    MemoryFile(path).save(FULL)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, timeout=50)
    assert done.returncode == 9
    assert MemoryFile(path).load("run-1") == FULL
    MemoryFile(path).save(Memory("run-1", weights_block=18))
    assert MemoryFile(path).load("run-1").weights_block == 18


async def test_changes_are_written_and_notes_go_with_them(tmp_path: Path) -> None:
    """A note waits for the next change; both are there after a restart."""
    file, telemetry = MemoryFile(tmp_path / "validator.json"), Telemetry()
    memory = Remembered(file, "run-1", telemetry)
    memory.note(failed=frozenset({"5C"}))
    assert file.load("run-1").failed == frozenset()
    await memory.change(weights_block=3)
    again = Remembered(file, "run-1", telemetry)
    assert (again.now.failed, again.now.weights_block) == ({"5C"}, 3)


async def test_a_full_disk_is_told_and_the_change_holds(tmp_path: Path) -> None:
    """Paying goes on; the operator is told what a restart would lose."""
    sink = MemorySink()
    (tmp_path / "folder").write_text("in the way")
    file = MemoryFile(tmp_path / "validator.json")
    memory = Remembered(file, "run-1", Telemetry([sink]))
    memory._file = MemoryFile(tmp_path / "folder" / "validator.json")
    await memory.change(weights_block=3)
    assert memory.now.weights_block == 3
    assert [(r["kind"], r["what"]) for r in sink.records] == [("NotSaved", "memory")]


def test_who_left_the_subnet_is_forgotten() -> None:
    """Exclusions and failures; scores are forgotten by the score book itself."""
    kept = without_strangers(FULL, frozenset({"5B"}))
    assert kept == {"exclusions": {}, "failed": frozenset({"5B"})}
