"""Copies are found whatever was done to them, and what is new is not taken for a copy."""

from __future__ import annotations

import ast
import inspect

import pytest

from distributed_training.arena.contest.fingerprint import fingerprint, reference_fingerprints, similarity
from distributed_training.strategies import diloco, local_sgd, outer, sparseloco, sparta, streaming

SOURCE = inspect.getsource(streaming)


class Renamed(ast.NodeTransformer):
    """Every name that the source gives itself becomes another one, every number grows, and texts change."""

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name("n_" + node.id, node.ctx) if node.id in OWN else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = "n_" + node.attr if node.attr in OWN else node.attr
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg("n_" + node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = "n_" + node.name
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant(node.value + 17) if type(node.value) in (int, float) else node


TREE = list(ast.walk(ast.parse(SOURCE)))
OWN = (
    {node.arg for node in TREE if isinstance(node, ast.arg)}
    | {node.name for node in TREE if isinstance(node, ast.FunctionDef)}
    | {node.id for node in TREE if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
)


def reordered(source: str) -> str:
    tree = ast.parse(source)
    tree.body.reverse()
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            node.body.reverse()
    return ast.unparse(tree)


@pytest.mark.parametrize(
    "copy",
    [
        SOURCE,
        "# mine\n" + SOURCE.replace("\n\n", "\n\n# nothing like it\n\n"),
        ast.unparse(Renamed().visit(ast.parse(SOURCE))),
        reordered(SOURCE),
        SOURCE.replace('"""', "'''"),
        SOURCE + "\n\ndef unused(x: int) -> int:\n    return x + 1\n",
        SOURCE[: SOURCE.index("@functools")],
    ],
    ids=["whole", "comments", "renamed", "reordered", "quotes", "a little more", "cut down"],
)
def test_copies_are_found(copy: str) -> None:
    """At nine tenths, in both directions at a half."""
    mine, original = fingerprint(copy), reference_fingerprints()["streaming-diloco"]
    assert similarity(mine, original) >= 0.9
    assert similarity(original, mine) >= 0.5


def test_what_all_are_made_of_belongs_to_nobody() -> None:
    """A strategy that brings the package's own optimisers and error feedback along is still the strategy."""
    bundle = fingerprint(inspect.getsource(outer), inspect.getsource(diloco))
    assert similarity(bundle, reference_fingerprints()["diloco"]) == 1.0


def test_the_built_in_strategies_are_not_copies_of_each_other() -> None:
    """Though they share their seam, and SparseLoCo a good part of DiLoCo."""
    modules = [diloco, local_sgd, sparseloco, sparta, streaming]
    found = [fingerprint(inspect.getsource(module)) for module in modules]
    pairs = [(a, b) for i, a in enumerate(found) for j, b in enumerate(found) if i != j]
    assert max(similarity(a, b) for a, b in pairs) < 0.8


def test_an_improvement_is_not_a_copy() -> None:
    """A third more of new code on somebody's strategy."""
    new = inspect.getsource(sparta)
    assert similarity(fingerprint(SOURCE, new), fingerprint(SOURCE)) < 0.8


def test_nothing_is_nobody_s() -> None:
    """An empty source has nothing of its own, and is found in nothing."""
    assert similarity(fingerprint(SOURCE), fingerprint("")) == 0.0
    assert similarity(fingerprint(""), fingerprint(SOURCE)) == 1.0
