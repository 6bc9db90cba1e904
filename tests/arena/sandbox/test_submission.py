"""A submission in sandboxes gives what its strategy gives without; its process can change nothing else."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distributed_training.arena.__main__ import main
from distributed_training.arena.corpus import Corpus
from distributed_training.arena.sandbox.backends import Backend
from distributed_training.arena.sandbox.limits import Limits
from distributed_training.arena.sandbox.submission import check_source, run_submission, source_hash
from distributed_training.arena.simulator import Outcome, simulate
from distributed_training.strategies.catalogue import build
from template.errors import SubmissionError
from tests.arena.small import CPU, SPEC, WORDS, plan

SUBMISSION = """
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import Strategy
from distributed_training.strategies.catalogue import build


def strategy(optimizer: OptimizerSpec) -> Strategy:
    return build("{name}", optimizer, {options})
"""
CLOCKS = """
import os, sys, time
import torch
import numpy
time.time = time.monotonic = time.perf_counter = lambda: 0.0
time.sleep = lambda seconds: None
torch.get_num_threads = lambda: 99
from distributed_training.strategies.message import Message
Message.size = property(lambda self: 0)
import distributed_training.arena.ledger as ledger
ledger.exchange = lambda *arguments: ((), ())
"""
STREAMING = {"period": 4, "overlap": 2}


def same(one: Outcome, other: Outcome) -> bool:
    """To the bit, in all but the seconds of the wall clock."""
    return (
        torch.equal(one.params, other.params)
        and (one.curve, one.training, one.step_flops) == (other.curve, other.training, other.step_flops)
        and one.ledger.entries == other.ledger.entries
    )


@pytest.mark.integration
def test_a_sandbox_changes_no_bit(corpus: Corpus, backend: Backend) -> None:
    """Two nodes, messages of tensors and of bytes, some of them late."""
    source = SUBMISSION.format(name="streaming-diloco", options=STREAMING).encode()
    shut_in = run_submission(source, SPEC, plan(2, 12), corpus, CPU, backend)
    assert same(shut_in, simulate(build("streaming-diloco", SPEC, STREAMING), plan(2, 12), corpus, CPU))
    assert {entry.codec for entry in shut_in.ledger.entries} == {"int4-block64"}


@pytest.mark.integration
def test_patches_change_no_record(corpus: Corpus, backend: Backend) -> None:
    """Of time, of a message's size and of the ledger, in its own process: the record is made in another one."""
    source = (CLOCKS + SUBMISSION.format(name="ddp", options={})).encode()
    patched = run_submission(source, SPEC, plan(2, 6), corpus, CPU, backend)
    assert same(patched, simulate(build("ddp", SPEC, {}), plan(2, 6), corpus, CPU))
    assert patched.seconds > 0


WORDS_IN_A_SET = """ "".join({"a", "b", "c", "d", "e", "f", "g", "h"}) """
DRAWS = f"""
import random
import numpy
import torch

def strategy(optimizer):
    words = {WORDS_IN_A_SET}
    raise RuntimeError(f"<{{words}} {{random.random()}} {{numpy.random.rand()}} {{float(torch.rand(()))}}>")
"""


@pytest.mark.integration
def test_what_is_drawn_follows_from_the_seed(corpus: Corpus, backend: Backend) -> None:
    """From global generators, too, and the order of a set: as in any other process that is seeded alike."""
    with pytest.raises(SubmissionError) as caught:
        run_submission(DRAWS.encode(), SPEC, plan(1, 1, 7), corpus, CPU, backend)
    words, *numbers = str(caught.value).partition("<")[2].partition(">")[0].split()
    command = [sys.executable, "-c", f"print({WORDS_IN_A_SET.strip()})"]
    alike = subprocess.run(command, env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, timeout=50, check=True)
    assert words == alike.stdout.strip()
    drawn = torch.rand((), generator=torch.Generator().manual_seed(7))
    assert numbers == [str(random.Random(7).random()), str(np.random.RandomState(7).rand()), str(float(drawn))]


@pytest.mark.integration
def test_the_command_runs_a_submission(backend: Backend, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says which sandbox is used, and so does the record; nothing is left of the processes."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(" ".join(WORDS) * 9000)
    file, output = tmp_path / "mine.py", tmp_path / "record.json"
    file.write_text(SUBMISSION.format(name="diloco", options={"period": 2}))
    numbers = ["--nodes", "1", "--steps", "2", "--samples", "2", "--evaluation_samples", "4"]
    files = ["--submission", str(file), "--text", str(tmp_path / "text"), "--output", str(output)]
    before = len(os.listdir("/proc/self/fd"))
    assert main(["run", *files, *numbers]) == 0
    assert f"each node in a sandbox of kind '{backend.name}'" in capsys.readouterr().out
    subject = json.loads(output.read_text())["subject"]
    assert subject["submission"] == source_hash(file.read_bytes())
    assert (subject["strategy"], subject["sandbox"]) == ("submission", backend.name)
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --strategy NAME or --submission FILE"),
        (["--strategy", "ddp", "--submission", "x.py"], "either --strategy NAME or --submission FILE"),
        (["--submission", "x.py", "--set", "period=3"], "--set is for strategies by name"),
        (["--submission", "/nowhere/x.py"], "/nowhere/x.py cannot be read: No such file or directory"),
        (["--strategy", "ddp", "--limits.memory", "0"], "limits.memory must be positive"),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, with status 2."""
    assert main(["run", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("source", "message"), [(b"", "this one 0"), (b"x" * 11, "this one 11"), (b"\xff", "UTF-8")])
def test_a_source_is_a_text_of_some_length(source: bytes, message: str) -> None:
    """Refused before any process is started."""
    with pytest.raises(SubmissionError, match=message) as caught:
        check_source(source, Limits(source=10))
    assert caught.value.reason == "source"
    check_source("ü".encode(), Limits(source=10))
