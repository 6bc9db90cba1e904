"""Records side by side: what is reached within a budget, rows, comparisons and the Pareto front."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from distributed_training.arena.__main__ import main
from distributed_training.arena.leaderboard import compare, entries, rows
from distributed_training.arena.pareto import front
from distributed_training.arena.trial import Mark, metric, reached, read_trial, seconds_to, trial_of
from template.errors import ConfigurationError, RecordMismatch
from tests.arena.contest.material import LINKS, trial, trials
from tests.arena.small import write_text

FAST, SLOW = "1000 Mbit/s", "100 Mbit/s"
CURVE = tuple(
    Mark(step, loss, 0.0, {FAST: step * 1.0, SLOW: step * 3.0})
    for step, loss in ((0, 5.0), (10, 4.0), (20, 3.0), (30, 2.5))
)
TRIAL = dataclasses.replace(trial("a", 1, 2.5), steps=30, curve=CURVE)


@pytest.mark.parametrize(("budget", "fast", "slow"), [(9.9, 5.0, 5.0), (10, 4.0, 5.0), (30, 2.5, 4.0), (90, 2.5, 2.5)])
def test_what_is_reached_within_a_budget(budget: float, fast: float, slow: float) -> None:
    """The last evaluation that the time is enough for, at each link; the metric is their mean."""
    assert (reached(TRIAL, FAST, budget), reached(TRIAL, SLOW, budget)) == (fast, slow)
    assert metric(TRIAL, budget) == pytest.approx((fast + slow) / 2)


def test_nodes_that_are_apart_pay_for_their_mean() -> None:
    """One exchange of all parameters: .05 s and 4 bytes times a million at the link's speed."""
    apart = dataclasses.replace(TRIAL, curve=tuple(dataclasses.replace(mark, spread=0.01) for mark in CURVE))
    wire = 0.05 + 8 * 4e6 / 1e9
    assert LINKS[FAST].seconds(4_000_000, 4_000_000) == pytest.approx(wire)
    assert reached(apart, FAST, 20 + wire - 1e-6) == 4.0
    assert reached(apart, FAST, 20 + wire + 1e-6) == 3.0


def test_time_to_a_loss() -> None:
    """Straight between evaluations; None if it is never reached."""
    assert seconds_to(TRIAL, FAST, 3.5) == pytest.approx(15)
    assert seconds_to(TRIAL, SLOW, 2.75) == pytest.approx(75)
    assert seconds_to(TRIAL, FAST, 2.4) is None


def test_rows() -> None:
    """Best first; mean and Student's interval over the seeds, bytes a parameter and step, time to DDP's loss."""
    found = rows({"slow": trials("slow", 2.4, sent=500), "ddp": trials("ddp", 2.2)}, 0.95)
    assert [row.name for row in found] == ["ddp", "slow"]
    losses = np.array([t.loss for t in trials("slow", 2.4).values()])
    slow = found[1]
    assert slow.loss is not None
    assert slow.mean == pytest.approx(losses.mean())
    assert slow.loss.high - slow.mean == pytest.approx(3.182446 * losses.std(ddof=1) / 2)
    assert slow.rate == pytest.approx(500 / 1_000_000 / 20)
    assert slow.until == {FAST: None, SLOW: None}
    assert found[0].until == {FAST: 20.0, SLOW: 20.0}  # DDP itself, at its end
    assert found[0].seconds == {FAST: 20.0, SLOW: 20.0}


def test_a_comparison_is_paired() -> None:
    """Seeds that move both alike leave no doubt about a small gain; only seeds that both have count."""
    mine, other = trials("a", 1.98), trials("b", 2.0, sent=4000)
    found = compare({**mine, 99: trial("a", 99, 9.0)}, other, 0.99)
    loss = found.gains["held-out loss"]
    assert (loss.mean, loss.low, loss.high) == pytest.approx((0.01, 0.01, 0.01))
    assert found.gains["bytes sent"].mean == pytest.approx(0.75)
    assert found.seeds == tuple(sorted(mine))
    assert "bytes sent" not in compare(mine, trials("c", 2.0, sent=0), 0.99).gains
    with pytest.raises(ConfigurationError, match="same seeds"):
        compare({1: trial("a", 1, 2.0)}, other, 0.99)


def test_only_one_task_is_put_side_by_side() -> None:
    """Other steps or another text make another leaderboard, and one entry has one trial of a seed."""
    one = trial("a", 1, 2.0)
    with pytest.raises(ConfigurationError, match="different models"):
        entries([one, dataclasses.replace(one, task="other")])
    with pytest.raises(ConfigurationError, match="two different records"):
        entries([one, trial("a", 1, 2.1)])


def test_the_front() -> None:
    """Those that nobody is better than in both; equal ones all stay."""
    assert front([(1, 3), (2, 2), (3, 1), (2, 3), (3, 3), (2, 2)]) == [0, 1, 2, 5]


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of four runs as a table and a picture, compared, and verified; one that was altered is not the same."""
    monkeypatch.setattr("distributed_training.arena.corpus.read_corpus.__defaults__", (512,))
    monkeypatch.setenv("COLUMNS", "200")
    text, records = tmp_path / "text", tmp_path / "records"
    text.mkdir()
    records.mkdir()
    write_text(text)
    plan = ["--nodes", "2", "--steps", "4", "--samples", "2", "--evaluate_every", "2", "--evaluation_samples", "8"]
    for name in ("ddp", "fedavg"):
        for seed in ("1", "2"):
            files = ["--text", str(text), "--output", str(records / f"{name}-{seed}.json")]
            assert main(["run", "--strategy", name, "--seed", seed, *plan, *files]) == 0
    capsys.readouterr()
    assert main(["leaderboard", str(records), "--budget", "9", "--plot", str(tmp_path / "plot.png")]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("ddp", "fedavg", "loss in budget", "100 Mbit/s"))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert main(["compare", str(records / "ddp"), str(records / "fedavg")]) == 0
    assert "held-out loss" in capsys.readouterr().out
    assert main(["compare", str(records), str(records / "ddp")]) == 2
    assert "name one" in capsys.readouterr().err
    record = records / "fedavg-2.json"
    assert main(["verify", str(record), "--text", str(text)]) == 0
    assert "the same, to the bit" in capsys.readouterr().out
    found = json.loads(record.read_text())
    record.write_text(json.dumps({**found, "loss": found["loss"] * (1 + 1e-15), "params_sha256": "0" * 64}))
    assert main(["verify", str(record), "--text", str(text)]) == 2
    assert "not the same: loss, params_sha256; the environment is the same" in capsys.readouterr().err.replace(
        "\n", " "
    )


def test_submissions_of_one_hotkey_are_told_apart() -> None:
    """By the beginning of their hashes."""
    found = {
        "subject": {
            "strategy": "5" * 48,
            "submission": "ab" * 32,
            "model": "m",
            "tokenizer": "t",
            "flops": 1,
            "links": {},
        },
        "plan": {"seed": 1, "nodes": 2, "steps": 1},
        "corpus": "",
        "parameters": 1,
        "curve": [{"step": step, "loss": 1.0, "spread": 0.0, "seconds": {}} for step in (0, 1)],
        "nodes": [],
        "params_sha256": "",
    }
    assert trial_of(found).name == "55555555… abababab"
    found["subject"] |= {"strategy": "diloco", "submission": None}  # type: ignore[operator]
    assert trial_of(found).name == "diloco"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 1}', '{"version": 2}', '{"version": 2, "subject": {}, "plan": []}']
)
def test_what_is_no_record(text: str, tmp_path: Path) -> None:
    """Is told with its file."""
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(RecordMismatch, match=r"record\.json"):
        read_trial(path)
