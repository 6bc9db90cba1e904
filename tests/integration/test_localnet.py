"""`scripts/localnet` as a person runs it: the whole subnet, from chain to pay."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoModelForCausalLM

from distributed_training.explain.__main__ import main as explain
from distributed_training.localnet.__main__ import main
from tests.integration.subnet import ROOT, TINY, failed_audits

LOCALNET = [sys.executable, "-m", "distributed_training.localnet"]


def localnet(folder: Path, *arguments: str, seconds: float) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run it to its end; its output and its summary."""
    command = [*LOCALNET, "--run", str(TINY), "--folder", str(folder), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    summary = folder / "summary.json"
    assert summary.exists(), done.stdout + done.stderr
    return done, json.loads(summary.read_text())


@pytest.mark.integration
@pytest.mark.timeout(280)
def test_a_whole_subnet_trains_and_pays_and_goes_on_later(tmp_path: Path) -> None:
    """All rounds complete with one state, the loss falls, both validators' weights and everybody's pay are on the
    chain, each epoch is published and loads in plain transformers; a second call goes on where the first one ended."""
    done, summary = localnet(tmp_path / "net", "--miners", "2", "--validators", "2", "--epochs", "4", seconds=140)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (summary["rounds_completed"], summary["faults"]) == (4, [])
    assert [len(hashes) for hashes in summary["state_hashes"]] == [1] * 5
    assert summary["held_out_loss"][-1] < summary["held_out_loss"][0] - 0.1
    assert set(summary["weights"]) == {"1", "2"}
    assert all(paid > 0 for paid in summary["incentive"].values())
    assert (tmp_path / "net" / "localnet.png").read_bytes().startswith(b"\x89PNG")
    AutoModelForCausalLM.from_pretrained(tmp_path / "net" / "hub" / "4")

    done, summary = localnet(tmp_path / "net", "--miners", "2", "--validators", "2", "--epochs", "2", seconds=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (summary["first_epoch"], summary["rounds_completed"]) == (4, 2)
    assert not failed_audits(tmp_path / "net")
    logs = [str(tmp_path / "net" / name / "events.jsonl") for name in ("validator-1", "validator-2")]
    assert explain(["--replay", *logs]) == explain(["--uid", "3", *logs]) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cheats_earn_next_to_nothing(tmp_path: Path) -> None:
    """Each kind of cheat earns less than 5 % of the honest mean; the honest ones all earn, and training goes on."""
    cheats = ["free-rider", "lazy", "copycat", "nan"]
    flags = [part for kind in cheats for part in ("--adversary", kind)]
    done, summary = localnet(tmp_path / "net", "--miners", "7", "--epochs", "20", *flags, seconds=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary["rounds_completed"] == 20
    incentive = {int(uid): paid for uid, paid in summary["incentive"].items()}
    honest, cheating = [incentive[uid] for uid in (3, 4, 5)], [incentive[uid] for uid in (6, 7, 8, 9)]
    mean = sum(honest) / len(honest)
    assert min(honest) > 0.5 * mean
    assert max(cheating) < 0.05 * mean, dict(zip(cheats, cheating, strict=True))
    assert summary["held_out_loss"][-1] < summary["held_out_loss"][0] - 0.5


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_an_interrupt_stops_every_process(tmp_path: Path) -> None:
    """Ctrl-C: status 130, and nothing that was started is left, the libp2p daemons included."""
    command = [*LOCALNET, "--run", str(TINY), "--folder", str(tmp_path / "net"), "--miners", "1", "--validators", "1"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs in background
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.glob("net/*/events.jsonl")):
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--miner", "3"], "--miners"),
        (["--miners", "0"], "--miners"),
        (["--run", "runs/none.toml"], "no run file at runs/none.toml"),
        (["--adversary", "thief"], "known: "),
        (["--adversary", "nan:x"], "positive number"),
        (["--miners", "1", "--adversary", "nan"], "raise --miners"),
        (["--miners", "40"], "lower --miners"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--miners", "3", "--adversary", "nan", "--contest", "none.toml"], "--contest needs 3 honest miners"),
    ],
)
def test_a_wrong_argument_ends_with_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], remedy: str
) -> None:
    """Status 2, one line that says what to do, nothing created."""
    assert main(["--folder", str(tmp_path / "net"), *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert remedy in told.err.replace("\n", " ")
    assert "Traceback" not in told.err
    assert not (tmp_path / "net").exists()


def test_the_program_ends_with_that_status(tmp_path: Path) -> None:
    """As it is called by scripts/localnet."""
    command = [*LOCALNET, "--folder", str(tmp_path / "net"), "--miners", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--miners" in done.stderr


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_contest_beside_the_training(tmp_path: Path) -> None:
    """Three entries in sandboxes: the better one has all weight of mechanism 1 from both validators, the good one was
    overtaken, the copy is named as one; training is paid as ever. What the judges wrote can be verified, and a second
    call goes on with the same champion."""
    folder = tmp_path / "net"
    flags = ["--miners", "3", "--validators", "2", "--contest", "runs/contests/localnet.toml"]
    done, summary = localnet(folder, *flags, "--epochs", "20", seconds=550)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (summary["rounds_completed"], summary["faults"]) == (20, [])
    assert all(paid > 0 for paid in summary["incentive"].values())
    found = summary["contest"]
    standings = {row["entry"]: (row["uid"], row["status"]) for row in found["standings"]}
    assert standings == {"good": (3, "surpassed"), "better": (4, "champion"), "copied": (5, "duplicate")}
    assert found["champion"] == 4
    assert found["weights"] == {"1": {"4": 1.0}, "2": {"4": 1.0}}
    assert found["incentive"] == {"4": 1.0}
    assert "champion is uid 4" in done.stdout
    assert "loss in budget" in done.stdout

    judge = folder / "validator-2" / "contest"
    record = next(path for path in sorted((judge / "records").glob("*.json")) if path.name.startswith(champion(judge)))
    verify = [sys.executable, "-m", "distributed_training.arena", "verify", str(judge / "rounds" / "0.json")]
    text = ["--text", str(ROOT / "runs" / "contests" / "text")]
    checked = subprocess.run([*verify, str(record), *text], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stderr
    assert "the same, to the bit" in checked.stdout.replace("\n", " ")

    done, summary = localnet(folder, *flags, "--epochs", "2", seconds=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (summary["first_epoch"], summary["contest"]["champion"]) == (20, 4)
    assert (
        len(list((judge / "records").glob("*.json"))) == 18
    )  # references and entries, three seeds each: none was run again


def champion(judge: Path) -> str:
    """The source of round 0's winner."""
    return str(json.loads((judge / "rounds" / "0.json").read_text())["throne"]["source"])
