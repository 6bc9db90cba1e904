"""Accounts from a real validator's log: complete, found again to the bit, and false if the log is."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distributed_training.explain import __main__ as explain
from distributed_training.explain.__main__ import main
from distributed_training.explain.account import account, replay_log
from distributed_training.explain.log import read_log
from distributed_training.explain.text import show
from distributed_training.run import ReplaySpec
from distributed_training.scoring.combine import Outcome
from distributed_training.scoring.improvement import improvement
from distributed_training.scoring.participation import Standing
from template.errors import ConfigurationError, StateError
from tests.explain.test_log import REAL, records, written

HONEST, CHEAT = 4, 6


def test_an_honest_miner_s_account_is_complete() -> None:
    """Every audit with its differences, the transfer, the round, each factor, the average, the weight and the chain."""
    found = account(read_log(REAL), HONEST, 3)
    row = found.row
    assert row.evidence.audits
    assert all(audit.passed for audit in row.evidence.audits)
    assert row.evidence.transfers[0].bytes > 0
    assert [(seen.standing, seen.completed) for seen in found.rounds] == [(Standing.DELIVERED, True)]
    assert row.after.ema == 0.8 * row.before.ema + 0.2 * row.score.score
    assert row.weight == row.after.ema / found.total


def test_what_was_set_on_the_chain_is_part_of_it() -> None:
    """When, with which share, and the u16 that the chain was read to hold."""
    (first,) = account(read_log(REAL), HONEST, 0).chain
    assert (first.outcome, first.largest) == ("set", 65535)
    assert first.set_in is not None
    assert first.set_in >= first.block
    assert first.stored is not None
    assert 0.2 < first.share < 0.5
    assert first.stored > 65535 * first.share


def cheat_epochs() -> dict[Outcome, int]:
    """The first epoch of each outcome of the free-rider."""
    log, found = read_log(REAL), {}
    for event in reversed(log.scored):
        for row in event.rows:
            if row.evidence.uid == CHEAT:
                found[row.outcome] = event.epoch
    return found


def test_a_cheat_reads_why_it_is_not_paid() -> None:
    """The record that gave it away, then how long it stays unpaid."""
    epochs = cheat_epochs()
    failed = account(read_log(REAL), CHEAT, epochs[Outcome.FAILED_AUDIT])
    assert "differs" in failed.row.reason
    assert failed.row.weight == 0.0
    unpaid = account(read_log(REAL), CHEAT, epochs[Outcome.PENALTY])
    assert unpaid.row.reason.startswith("through epoch")
    assert unpaid.silences or unpaid.row.evidence.audits


def test_the_whole_log_is_found_again() -> None:
    """Every epoch and every payment."""
    found = replay_log(read_log(REAL))
    scored = sum(record["kind"] == "EpochScored" for record in records())
    paid = sum(record["kind"] == "WeightsSet" for record in records())
    assert (found.epochs, found.payments, found.restarts) == (scored, paid, 0)
    assert paid > 0


def changed(kind: str, change: Callable[[dict[str, Any]], None], at: int = -1) -> list[dict[str, Any]]:
    """The real log with one event of a kind changed."""
    log = records()
    change([record for record in log if record["kind"] == kind][at])
    return log


def test_changed_weights_are_found_out(tmp_path: Path) -> None:
    """Weights that do not follow from the scores, and a chain that holds others, are named by uid."""
    one = written(tmp_path / "a.jsonl", changed("WeightsSet", lambda r: r["weights"].update({"4": 0.4})))
    with pytest.raises(StateError, match=r"uid 4: the scores give share 0\.3.*, the log says 0\.4$"):
        replay_log(read_log(one))
    other = written(tmp_path / "b.jsonl", changed("WeightsSet", lambda r: r["stored"].update({"4": 3})))
    with pytest.raises(StateError, match=r"uid 4: the scores give u16 on the chain \d+, the log says 3$"):
        account(read_log(other), HONEST)


def test_a_lost_memory_is_a_new_beginning(tmp_path: Path) -> None:
    """An epoch that follows none starts from nothing, and only if it really does."""
    log = records()
    first = next(record for record in log if record["kind"] == "EpochScored")
    again = json.loads(json.dumps(first))
    assert replay_log(read_log(written(tmp_path / "a.jsonl", [*log, again]))).restarts == 1
    again["rows"][0]["before"]["ema"] = 5.0
    with pytest.raises(StateError, match=r"epoch 0, uid 3: the evidence gives before\.ema 0\.0, the log says 5\.0"):
        replay_log(read_log(written(tmp_path / "b.jsonl", [*log, again])))


def test_missing_epochs_are_named(tmp_path: Path) -> None:
    """A log with a hole does not lead to what stands behind it."""
    log = [record for record in records() if (record["kind"], record.get("epoch")) != ("EpochScored", 2)]
    with pytest.raises(StateError, match="goes from epoch 1 to 3, which follows 2"):
        replay_log(read_log(written(tmp_path / "log.jsonl", log)))


def test_what_is_not_there_is_said() -> None:
    """A uid or an epoch that was not scored, with those that were."""
    with pytest.raises(ConfigurationError, match=r"uid 9 was not scored in epoch 3 of .*; scored: 3, 4, 5, 6"):
        account(read_log(REAL), 9, 3)
    with pytest.raises(ConfigurationError, match=r"epoch 99 was not scored in .*, which holds epochs 0 to"):
        account(read_log(REAL), HONEST, 99)


def test_a_void_attempt_is_explained(tmp_path: Path) -> None:
    """Whose fault it was stands beside the round, and so does why an epoch was not scored."""
    log = records()
    finished = next(at for at, r in enumerate(log) if (r["kind"], r.get("epoch")) == ("RoundFinished", 3))
    failed = {**log[finished], "round_id": "f" * 32, "completed": False}
    verdict = {"kind": "AttemptVoid", "time": 1.0, "uid": 1, "epoch": 3, "attempt": 0, "round_id": "f" * 32}
    log[finished:finished] = [failed, {**verdict, "fault": "validator", "reason": "our own share was lost"}]
    missed = {"kind": "AuditNotPossible", "time": 1.0, "uid": 1, "epoch": 40, "reason": "it was away"}
    scored = next(r for r in log if (r["kind"], r.get("epoch")) == ("EpochScored", 3))
    for row in scored["rows"]:
        row["evidence"]["standings"].insert(0, str(Standing.VOID))
    path = written(tmp_path / "log.jsonl", [*log, missed])
    first, last = account(read_log(path), HONEST, 3).rounds
    assert (first.standing, first.completed, last.completed) == (Standing.VOID, False, True)
    assert first.why == "the fault of the validator: our own share was lost"
    with pytest.raises(ConfigurationError, match=r"epoch 40 was not scored .*; it was away"):
        account(read_log(path), HONEST, 40)


# --- the command


def test_the_command_prints_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    """For a person: the score, the average and the weight in full."""
    assert main(["--uid", str(HONEST), "--epoch", "3", str(REAL)]) == 0
    shown, row = capsys.readouterr().out, account(read_log(REAL), HONEST, 3).row
    numbers = (row.score.score, row.before.ema, row.after.ema, row.weight)
    for text in ("agrees", "delivered", *map(repr, numbers)):
        assert text in shown


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The same as one JSON object, from which the weight follows."""
    assert main(["--uid", str(HONEST), "--json", str(REAL)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["row"]["weight"] == shown["row"]["after"]["ema"] / shown["total"]
    assert shown == json.loads(json.dumps(dataclasses.asdict(account(read_log(REAL), HONEST))))


def test_the_command_replays(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a log."""
    assert main(["--replay", str(REAL), str(REAL)]) == 0
    assert capsys.readouterr().out.count("identical to the bit") == 2


def test_without_a_log_it_is_the_localnet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its validators; if there is none, that is said."""
    monkeypatch.setattr(explain, "LOCALNET", tmp_path)
    assert main(["--uid", str(HONEST)]) == 2
    assert "name a validator's log" in capsys.readouterr().err
    for name in ("validator-1", "validator-2"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "events.jsonl", records())
    assert main(["--uid", str(HONEST)]) == 0
    assert capsys.readouterr().out.count("On the chain") == 2


def test_a_false_number_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the first number that differs."""

    def raise_score(record: dict[str, Any]) -> None:
        record["rows"][1]["after"]["ema"] = math.nextafter(record["rows"][1]["after"]["ema"], 1e9)

    false = written(tmp_path / "log.jsonl", changed("EpochScored", raise_score))
    assert main(["--uid", str(HONEST), str(false)]) == 1
    assert "uid 4: the evidence gives after.ema" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([str(REAL)], "give one of --uid"),
        (["--uid", "77", str(REAL)], "uid 77 was not scored"),
        (["--uid", "4", "--epoch", "77", str(REAL)], "epoch 77 was not scored"),
        (["--uid", "4", "--run_id", "nano-1", str(REAL)], "another run than nano-1"),
        (["--uid", "4", "/nowhere/events.jsonl"], "cannot be read as a log"),
        (["--uid", "four", str(REAL)], "--uid"),
    ],
)
def test_bad_questions_are_status_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line."""
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_compared_contribution_is_shown_with_its_limits() -> None:
    """How far its signs agree with the recomputed record, and its size, beside what is asked."""
    found = account(read_log(REAL), HONEST, 3)
    audit = dataclasses.replace(found.row.evidence.audits[0], number=None, alignment=0.625, inflation=1.25)
    evidence = dataclasses.replace(found.row.evidence, audits=(audit,))
    with Console(width=200, record=True, file=io.StringIO()) as console:
        show(console, dataclasses.replace(found, row=dataclasses.replace(found.row, evidence=evidence)))
    words = console.export_text()
    assert f"at least {found.rules.audit.alignment:g}" in words
    assert re.search(r"0\.625\s+1\.25\s", words)


def test_a_replay_is_shown_with_what_it_found() -> None:
    """How far the miner's steps lead elsewhere beside the tolerance, and what its contribution does to the loss."""
    found = account(read_log(REAL), HONEST, 3)
    gained = improvement([0.25, 0.75] * 4, [0.1, 0.2] * 4, 0.99)
    audit = dataclasses.replace(found.row.evidence.audits[0], number=8, drift=0.0625, improvement=gained)
    evidence = dataclasses.replace(found.row.evidence, audits=(audit,))
    rules = dataclasses.replace(found.rules.audit, replay=ReplaySpec(stretch=4, share=1.0, tolerance=0.5))
    changed = dataclasses.replace(
        found,
        rules=dataclasses.replace(found.rules, audit=rules),
        row=dataclasses.replace(found.row, evidence=evidence),
    )
    with Console(width=200, record=True, file=io.StringIO()) as console:
        show(console, changed)
    words = console.export_text()
    assert "at most 0.5 of the way" in words
    assert re.search(r"record 8\s+0\.0625\s", words)
    assert "lowers the loss by 0.5 (" in words
