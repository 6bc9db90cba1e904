"""`python -m template.chain.local`, and the functions under it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from template.chain.local.__main__ import main
from template.chain.wallet import create_wallet


@pytest.fixture
def wallets(tmp_path: Path) -> str:
    for name in ("owner", "alice"):
        create_wallet(name, "default", str(tmp_path / "wallets"))
    return str(tmp_path / "wallets")


def run(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    return main(arguments, Console(file=out, width=200)), out.getvalue()


def test_from_nothing_to_a_staked_validator(tmp_path: Path, wallets: str) -> None:
    """create, fund, register, stake, set, advance, show."""
    path, where = str(tmp_path / "chain.db"), ("--wallet.path", wallets)
    assert run("create", path, "--owner", "owner/default", "--manual", "--tempo", "5", *where)[0] == 0
    assert run("fund", path, "alice", "100", *where)[0] == 0
    assert run("register", path, "alice/default", *where)[0] == 0
    assert run("stake", path, "alice", "50", *where)[0] == 0
    assert run("set", path, "weights_rate_limit", "3", *where) == (0, "weights_rate_limit = 3\n")
    assert run("set", path, "mechanism_emission_split", "65535,0")[0] == 0
    code, text = run("advance", path, "10")
    assert (code, text) == (0, "block 16\n")  # 1 + five extrinsics + 10
    code, text = run("show", path)
    assert code == 0
    assert "subnet 1, block 16, tempo 5" in text
    assert [line.split("│")[4].strip() for line in text.splitlines() if line.startswith("│")] == ["yes", "yes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "none.db"), "no chain file at none.db; create it with"),
        (("create", "{chain}"), "exists"),
        (("register", "{chain}", "bob/x"), "no cold key at"),
        (("set", "{chain}", "colour", "3"), "unknown hyperparameter 'colour'; known: activity_cutoff_factor"),
        (("set", "{chain}", "tempo", "often"), "'often' is not an integer"),
        (("set", "{chain}", "mechanism_count", "9"), "InvalidValue"),
        (("show", "{chain}", "--netuid", "7"), "no subnet 7; subnets: 1"),
        (("advance", "{chain}", "5"), "wall clock"),
        (("stake", "{chain}", "alice", "5"), "HotKeyAccountNotExists"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, wallets: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    """Status 1 and one line that says what to do."""
    path = str(tmp_path / "chain.db")
    run("create", path, "--owner", "owner", "--wallet.path", wallets)
    assert run(*(a.format(chain=path) for a in arguments), "--wallet.path", wallets)[0] == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_as_a_program(tmp_path: Path) -> None:
    """An empty chain, made by the command in the error messages."""
    path = tmp_path / "deep" / "chain.db"
    command = [sys.executable, "-m", "template.chain.local", "create", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, f"created {path}")
    assert [p.name for p in path.parent.iterdir()] == ["chain.db"]
