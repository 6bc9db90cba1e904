"""What a source has in common with another, whatever its names, numbers, comments and order of functions are.

The syntax tree is read in preorder as a row of words: kinds of nodes, and names that come from elsewhere (`torch`,
`topk`). Names that the source gives itself, numbers, texts, docstrings, annotations and imports are left out. The
fingerprint is the multiset of eight words in a row, of each function and each other statement, and `similarity` the
share of a source's own eights that are in another: 1 for a copy, whether it was renamed, re-ordered, tuned or cut down.
New code lowers it, dead code, too: what only pretends to be new is found by what it does (judgement.py). What all
built-in strategies are made of (messages, optimisers, error feedback) belongs to nobody and is not counted.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import Iterator, Mapping

import distributed_training.strategies
from distributed_training.strategies.catalogue import CATALOGUE

WORDS = 8  # in a row
_PACKAGE = "distributed_training.strategies"
_LEFT_OUT = (ast.Import, ast.ImportFrom, ast.expr_context, ast.Pass)

Fingerprint = Counter[int]


def fingerprint(*sources: str) -> Fingerprint:
    """Of sources that belong together; each must be Python, as `check_source` finds out."""
    found: Fingerprint = Counter()
    for source in sources:
        tree = ast.parse(source)
        own = _own_names(tree)
        for unit in _units(tree):
            words = list(_words(unit, own))
            found.update(_hash(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1)) if words)
    return found


def similarity(mine: Fingerprint, other: Fingerprint) -> float:
    """The share of mine that is in the other, without what belongs to nobody; 1 if nothing else is left."""
    own = mine - shared_fingerprint()
    return (own & other).total() / own.total() if own else 1.0


@functools.cache
def reference_fingerprints() -> Mapping[str, Fingerprint]:
    """Of each built-in strategy, by name."""
    return {name: fingerprint(_source(entry.make.__module__)) for name, entry in CATALOGUE.items()}


@functools.cache
def shared_fingerprint() -> Fingerprint:
    """Of all other modules of the strategies' package; only to be read."""
    strategies = {entry.make.__module__ for entry in CATALOGUE.values()}
    names = (f"{_PACKAGE}.{module.name}" for module in pkgutil.iter_modules(distributed_training.strategies.__path__))
    return fingerprint(*(_source(name) for name in names if name not in strategies))


def _source(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))


def _units(tree: ast.Module | ast.ClassDef) -> Iterator[ast.AST]:
    """Functions, methods and the other statements of modules and classes: what may stand in any order."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from _units(node)
        else:
            yield node


def _own_names(tree: ast.AST) -> frozenset[str]:
    """Names of functions, classes, arguments, variables and attributes that the source itself defines."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return frozenset(names)


def _words(node: ast.AST, own: frozenset[str]) -> Iterator[str]:
    if isinstance(node, _LEFT_OUT) or _is_text(node):
        return
    yield _word(node, own)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else (value,):
            if isinstance(child, ast.AST):
                yield from _words(child, own)


def _is_text(node: ast.AST) -> bool:
    """A docstring, or a text that stands as a statement of its own."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _word(node: ast.AST, own: frozenset[str]) -> str:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
    kind = type(node).__name__
    return f"{kind}:{name}" if name is not None and name not in own else kind


def _hash(words: list[str]) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest(), "little")
