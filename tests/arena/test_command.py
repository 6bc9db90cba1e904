"""`python -m distributed_training.arena`: a run and its record, the list, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distributed_training.arena.__main__ import main
from distributed_training.arena.model import SharedModel
from distributed_training.arena.sizes import SIZES
from distributed_training.strategies.catalogue import CATALOGUE
from tests.arena.small import CPU, WORDS


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    (folder / "a.txt").write_text(" ".join(WORDS) * 9000)
    return folder


def run(text: Path, output: Path, *more: str) -> dict[str, Any]:
    plan = ["--nodes", "2", "--steps", "4", "--samples", "2", "--evaluate_every", "2", "--evaluation_samples", "8"]
    files = ["--text", str(text), "--output", str(output)]
    assert main(["run", "--strategy", "diloco", "--set", "period=2", *plan, *files, *more]) == 0
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_a_run_leaves_a_record(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With curve, bytes, times at both links, seeds and a hash; the table says the same."""
    found = run(text, tmp_path / "record.json")
    parameters = found["parameters"]
    assert found["version"] == 2
    assert found["subject"]["hyperparameters"]["period"] == 2
    assert found["traffic"] == {"sent": 8 * parameters, "received": 8 * parameters, "peak": 8 * parameters}
    assert found["operations"]["outer-gradient"] == found["traffic"]
    assert [point["step"] for point in found["curve"]] == [0, 2, 4]
    assert found["loss"] == found["curve"][-1]["loss"] < found["curve"][0]["loss"]
    wire = 2 * (0.05 + 8 * 4 * parameters / 1e8)
    assert found["seconds"]["100 Mbit/s"] == pytest.approx(wire + 4 * found["step_flops"] / 1e13)
    tokens = 2 * 4 * 2 * 64  # nodes, steps, samples, tokens of one
    assert found["tokens_per_second"]["100 Mbit/s"] == pytest.approx(tokens / found["seconds"]["100 Mbit/s"])
    assert [node["sent"] for node in found["nodes"]] == [8 * parameters] * 2
    assert f"{8 * parameters:,}" in capsys.readouterr().out


def test_a_record_can_be_run_again(text: Path, tmp_path: Path) -> None:
    """To the bit; another seed ends elsewhere."""
    first, again = (run(text, tmp_path / name) for name in ("a.json", "b.json"))
    other = run(text, tmp_path / "c.json", "--seed", "2")
    assert first["params_sha256"] == again["params_sha256"] != other["params_sha256"]
    assert {**first, "machine": None} == {**again, "machine": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "dilocco"], "unknown strategy 'dilocco'; known: apart"),
        (["--strategy", "diloco", "--set", "perod=3"], "did you mean 'period'"),
        (["--strategy", "diloco", "--set", "period"], "name=value"),
        (["--strategy", "diloco", "--set", "period=3", "--set", "period=4"], "once"),
        (["--strategy", "diloco", "--model", "huge"], "unknown model 'huge'; known: fixture"),
        (["--strategy", "diloco", "--flops", "0"], "--flops must be positive"),
        (["--strategy", "diloco", "--nodes", "0"], "nodes must be at least 1"),
        (["--strategy", "diloco", "--steps", "0"], "steps must be at least 1"),
        (["--strategy", "diloco", "--optimizer.weight_decay", "-1"], "weight_decay"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the remedy, and status 2."""
    assert main(["run", "--text", str(text), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_strategies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them; without a command the usage is shown."""
    assert main(["strategies"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CATALOGUE)
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_sizes_have_the_parameters_of_nanogpt() -> None:
    """As published for the larger ones, by GPT-2's closed form with tied embeddings; the fixture as it is built."""
    known = {"small": 7_363_328, "base": 124_475_904, "medium": 354_871_296, "large": 774_090_240, "xl": 1_557_686_400}
    for name, size in SIZES.items():
        w = size.width
        count = (size.vocabulary + size.block) * w + size.layers * (12 * w * w + 13 * w) + 2 * w
        assert count == known.get(name, count)
        if name in ("fixture", "nano"):
            assert SharedModel(size, 1, CPU).layout.size == count
    assert SharedModel(SIZES["fixture"], 1, CPU).layout.size == 842_496
