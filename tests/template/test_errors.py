"""The tree of errors is the one that its docstring draws."""

from __future__ import annotations

import inspect

from template import errors


def drawn() -> dict[str, str]:
    """Parent by name, from the picture: four columns a level."""
    parents: dict[str, str] = {}
    stack: list[str] = []
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        if "── " not in line and line.strip() != "SubnetError":
            continue
        name = line.split("── ")[-1].split()[0]
        depth = line.index(name) // 4 - 1
        del stack[depth:]
        if stack:
            parents[name] = stack[-1]
        stack.append(name)
    return parents


def test_the_picture_is_the_code() -> None:
    """Every class is drawn under its base, and nothing is drawn that does not exist."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert drawn() == {c.__name__: c.__base__.__name__ for c in classes if c is not errors.SubnetError}


def test_details_are_attributes() -> None:
    """What a caller decides by is not in the text alone."""
    refused = errors.Refused("too many requests", status=429, reason="rate")
    assert (str(refused), refused.status, refused.reason) == ("too many requests", 429, "rate")
    failed = errors.ChainRefused("no stake", code="1010", name="NotEnoughStake")
    assert (str(failed), failed.code, failed.name) == ("no stake", "1010", "NotEnoughStake")
