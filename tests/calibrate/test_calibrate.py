"""The calibration command on a run that trains in seconds: honest ways agree, cheats do not, the spec is updated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed_training.calibrate.__main__ import main
from distributed_training.run import load_run

TINY = Path(__file__).parents[1] / "fixtures" / "tiny.toml"
HALF = {'precision = "float32"': 'precision = "bfloat16"'}
FEEDBACK = {'codec = "none"': 'codec = "int8-block64"', "error_feedback = false": "error_feedback = true"}


def calibrated(folder: Path, changes: dict[str, str]) -> tuple[Path, dict[str, object]]:
    text = TINY.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    run = folder / "tiny.toml"
    run.write_text(text)
    flags = ["--epochs", "4", "--batches", "6", "--records", "3", "--write", "--cache", str(folder / "corpus")]
    assert main(["--run", str(run), *flags]) == 0
    return run, json.loads((folder / "tiny.calibration.json").read_text())


@pytest.mark.parametrize("changes", [{}, HALF, FEEDBACK], ids=["float32", "bfloat16", "error feedback"])
def test_a_run_is_calibrated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    """All honest ways pass, what is no work does not; the tables are printed, and the spec holds what was found."""
    monkeypatch.setenv("COLUMNS", "200")
    run, measured = calibrated(tmp_path, changes)
    spec, limits = load_run(run), measured["limits"]
    assert isinstance(limits, dict)
    assert {name: getattr(spec.audit, name) for name in limits} == limits
    passing = measured["passing"]
    assert isinstance(passing, dict)
    worthless = {"made up"}  # so small a model in half precision is mostly rounding
    if spec.precision == "float32":
        worthless |= {"other data", "no backward", "1 epochs stale", "half the samples"}
    assert {name: passing[name] for name in worthless} == dict.fromkeys(worthless, 0.0)
    honest = measured["honest"]
    assert isinstance(honest, dict)
    assert all(way["gradient"]["extreme"] <= limits["gradient_tolerance"] for way in honest.values())
    printed = capsys.readouterr().out
    assert "Honest computations differ by" in printed
    assert "this record left out" in printed
    assert "found in an epoch" in printed


def test_a_calibration_without_writing_leaves_everything_as_it_is(tmp_path: Path) -> None:
    """Only the tables."""
    run = tmp_path / "tiny.toml"
    run.write_text(TINY.read_text())
    assert main(["--run", str(run), "--epochs", "2", "--batches", "5", "--records", "5"]) == 0
    assert run.read_text() == TINY.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.toml"]


@pytest.mark.parametrize(("flags", "remedy"), [(["--epochs", "0"], "--epochs"), (["--margin", "0.5"], "--margin")])
def test_a_wrong_flag_is_told(flags: list[str], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, with status 1."""
    assert main(["--run", str(TINY), *flags]) == 1
    assert remedy in capsys.readouterr().err


def test_too_little_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A tail cannot be seen in a handful of numbers."""
    assert main(["--run", str(TINY), "--epochs", "1", "--batches", "2", "--records", "1"]) == 1
    assert "at least 10" in capsys.readouterr().err


def test_a_run_with_inner_steps_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Its records are not computed at the epoch's parameters; the message says what to do instead."""
    assert main(["--run", str(TINY.parents[2] / "runs" / "nano-diloco.toml")]) == 1
    assert "measure audit.replay.tolerance with benchmarks.replay" in capsys.readouterr().err.replace("\n", " ")
