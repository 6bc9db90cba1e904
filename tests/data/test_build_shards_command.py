"""scripts/build_shards as a person runs it: several processes, killed, started again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpora import write_parquet
from test_shards import contents

from distributed_training.data.build_shards import main
from distributed_training.data.shards import MANIFEST, read_manifest
from distributed_training.run import load_run
from tests.test_run import ROOT, TEXT

DOCUMENTS = [f"document {i}: " + "the quick brown fox " * (i % 40) for i in range(700)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The nano run over a folder of Parquet files."""
    write_parquet(tmp_path / "corpus", DOCUMENTS)
    path = tmp_path / "run.toml"
    path.write_text(TEXT.replace('source = "stdlib"', f'source = "parquet"\npath = "{tmp_path / "corpus"}"'))
    assert load_run(path).data.source == "parquet"
    return path


def arguments(run: Path, target: Path) -> list[str]:
    sizes = ["--shard_tokens", "4096", "--block_tokens", "512", "--workers", "2"]
    return ["--run", str(run), "--to", str(target), *sizes]


@pytest.mark.integration
@pytest.mark.timeout(180)
def test_a_build_that_was_killed_is_finished_by_the_next(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL after the first shards; then the files are the same as those of a build that was left alone, and what is
    printed is what a run spec needs."""
    assert main(arguments(run, tmp_path / "whole")) == 0
    printed = capsys.readouterr().out
    command = [sys.executable, "-m", "distributed_training.data.build_shards", *arguments(run, tmp_path / "broken")]
    building = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "broken" / "00000.sha256").exists() and building.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    building.send_signal(signal.SIGKILL)
    building.wait(20)
    assert main(arguments(run, tmp_path / "broken")) == 0
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    manifest = read_manifest((tmp_path / "whole" / MANIFEST).read_bytes())
    assert manifest.documents == 700
    assert manifest.tokens == sum(len(text.encode()) + 1 for text in DOCUMENTS)
    for line in ('source = "shards"', f'path = "{tmp_path / "whole"}"', 'tokenizer = "bytes"', 'fingerprint = "'):
        assert line in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--to", "https://example.org/x"], "cannot be written to"),
        (["--shard_tokens", "1000"], "must be a multiple"),
        (["--workers", "0"], "at least 1"),
        (["--run", "nowhere.toml"], "no run file at"),
    ],
)
def test_wrong_arguments_end_with_one_line(
    run: Path, tmp_path: Path, change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the status 1."""
    assert main([*arguments(run, tmp_path / "target"), *change]) == 1
    assert message in " ".join("".join(capsys.readouterr()).split())
