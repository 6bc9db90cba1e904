"""Hyper-parameters by name, as a command line or a run spec gives them: unknown ones and other types are refused."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping

from template.errors import ConfigurationError

Value = str | int | float


def settled(strategy: str, defaults: Mapping[str, Value], options: Mapping[str, Value]) -> dict[str, Value]:
    """`defaults` with `options` in their place; text is converted.

    Raises:
        ConfigurationError: a hyper-parameter that has no default, or a value of another type than it.
    """
    settings = dict(defaults)
    for key, value in options.items():
        if key not in settings:
            raise ConfigurationError(_unknown(strategy, key, settings))
        settings[key] = _converted(key, value, type(settings[key]))
    return settings


def _unknown(name: str, key: str, known: Mapping[str, Value]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    remedy = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known) or 'none'}"
    return f"strategy '{name}' has no hyper-parameter '{key}'; {remedy}"


def _converted(key: str, value: Value, kind: type) -> Value:
    if type(value) is kind or (kind is float and type(value) is int):
        return float(value) if kind is float else value
    try:
        if isinstance(value, str):
            return typing.cast(Value, kind(value))
    except ValueError:
        pass  # told below, together with values of another type
    raise ConfigurationError(
        f"{key} must be {'a number' if kind is float else f'of type {kind.__name__}'}; found {value!r}"
    )
