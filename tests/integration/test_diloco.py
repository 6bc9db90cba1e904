"""A whole subnet whose miners make steps of their own: rounds, replays, pay, and going on after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_training.explain.__main__ import main as explain
from tests.integration.subnet import TINY, failed_audits, told
from tests.integration.test_localnet import localnet

STRATEGY = '[strategy]\nname = "diloco"\n\n[data]\n'
REPLAY = "[audit.replay]\nstretch = 4\nshare = 1.0\ntolerance = 0.01\n\n[scoring]\n"


def run_file(folder: Path) -> Path:
    """The tiny run with DiLoCo in 4 bits; every miner has a stretch replayed in every epoch."""
    text = TINY.read_text()
    for old, new in (
        ('strategy = "gradient-averaging"\n', ""),
        ("[data]\n", STRATEGY),
        ("[scoring]\n", REPLAY),
        ('codec = "none"\nerror_feedback = false', 'codec = "int4-block64"\nerror_feedback = true'),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "diloco.toml"
    path.write_text(text)
    return path


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_diloco_subnet_trains_audits_pays_and_goes_on(tmp_path: Path) -> None:
    """One state everywhere, a falling loss, stretches replayed and found to be right, everybody paid; a second call
    goes on where the first one ended, with the inner states that the miners had."""
    folder, arguments = tmp_path / "net", ["--run", str(run_file(tmp_path)), "--miners", "2", "--validators", "2"]
    done, summary = localnet(folder, *arguments, "--epochs", "3", seconds=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (summary["rounds_completed"], summary["faults"]) == (3, [])
    assert [len(hashes) for hashes in summary["state_hashes"]] == [1] * 4
    assert summary["held_out_loss"][-1] < summary["held_out_loss"][0] - 0.1
    audits = told(folder, "Audited")
    drifts = [event["drift"] for event in audits if event["drift"] is not None]
    assert len(drifts) >= 4
    assert all(event["passed"] for event in audits), audits
    assert told(folder, "StateShown")

    done, summary = localnet(folder, *arguments, "--epochs", "2", seconds=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (summary["first_epoch"], summary["rounds_completed"]) == (3, 2)
    assert not failed_audits(folder)
    logs = [str(folder / name / "events.jsonl") for name in ("validator-1", "validator-2")]
    assert explain(["--replay", *logs]) == explain(["--uid", "3", *logs]) == 0
