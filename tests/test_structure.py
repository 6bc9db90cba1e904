"""The direction of imports: neurons -> distributed_training -> template; template never needs torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "template": {"distributed_training", "neurons", "torch", "hivemind", "transformers", "tests"},
    "distributed_training": {"neurons", "tests"},
    "neurons": {"tests"},
}
VAGUE = {"utils.py", "util.py", "misc.py", "helpers.py", "common.py"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_go_one_way(package: str) -> None:
    """No package imports one above it."""
    for path in (ROOT / package).rglob("*.py"):
        bad = {name for name in imported(path) if name.split(".")[0] in FORBIDDEN[package]}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_arena_and_dashboard_are_never_imported() -> None:
    """What stands beside the subnet is not needed by it."""
    for path in (ROOT / "distributed_training").rglob("*.py"):
        if path.relative_to(ROOT / "distributed_training").parts[0] in {"arena", "dashboard"}:
            continue
        bad = {n for n in imported(path) if n.startswith(("distributed_training.arena", "distributed_training.dash"))}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


@pytest.mark.parametrize(
    ("part", "below"),
    [
        ("services", {"services"}),
        ("data", {"services", "data", "run"}),
        ("model", {"model", "protocol", "run"}),
        ("hub", {"services", "hub"}),
    ],
)
def test_parts_below_know_nothing_of_those_above(part: str, below: set[str]) -> None:
    """A corpus can be read without a hub, a hub without a model, and what both need of the network without either."""
    for path in (ROOT / "distributed_training" / part).rglob("*.py"):
        names = [name.split(".") for name in imported(path)]
        bad = {name[1] for name in names if name[0] == "distributed_training" and name[1] not in below}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_every_module_says_what_it_is_for() -> None:
    """Each non-empty module opens with a docstring, and none has a vague name."""
    for package in FORBIDDEN:
        for path in (ROOT / package).rglob("*.py"):
            assert path.name not in VAGUE, path
            tree = ast.parse(path.read_text())
            assert not tree.body or ast.get_docstring(tree), f"{path.relative_to(ROOT)} has no docstring"


def test_template_imports_without_torch() -> None:
    """Every module of the kit can be imported where torch cannot."""
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "template").rglob("*.py")
        if path.name != "__main__.py"
    )
    code = (
        "import sys\n"
        "for name in ('torch', 'hivemind', 'transformers'): sys.modules[name] = None\n"
        f"import importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=50)


@pytest.mark.integration
@pytest.mark.timeout(240)
def test_the_kit_s_own_tests_pass_without_torch() -> None:
    """On a machine that has only what the kit needs, its tests pass as well."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.without_torch", "-m", "not integration"]
    done = subprocess.run(
        [*command, "tests/template"], cwd=ROOT, capture_output=True, text=True, timeout=230, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
