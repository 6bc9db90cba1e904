"""Configuration: frozen dataclasses beside the classes they configure; flags, environment and TOML file fill them.

A section is a keyword-only frozen dataclass. Its fields become flags in the ecosystem's form, names unchanged:

    section "wallet", field `name`         --wallet.name X     DT_WALLET_NAME=X     [wallet] name = "X"
    section "",       field `netuid`       --netuid 3          DT_NETUID=3          netuid = 3
    `bool`                                 --axon.serve, --no-axon.serve
    `tuple[T, ...]`                        --dht.initial_peers A B, repeated, or separated by commas
    `Secret`                               environment and file only

A flag wins over the environment, the environment over the file named by `--config` (or DT_CONFIG), the file over the
default. An environment variable that is set to nothing counts as not set. Whatever is wrong is a `ConfigurationError`
of one line that names the place and the remedy. This is the only file that reads the environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import math
import os
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from template.errors import ConfigurationError

ENVIRONMENT_PREFIX = "DT_"
SECRET_FLAG = "a secret on the command line is visible to everybody on the machine"
WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


class HelpRequested(Exception):
    """`--help` was given. Not an error: `str(exception)` is the text to print before leaving with status 0."""


class Secret:
    """A value that never shows: `repr` and `str` are masked, `reveal` gives it to the code that needs it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def scrub(self, text: str) -> str:
        """`text` without the value."""
        return text.replace(self._value, "***") if self._value else text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written anywhere")


def option(help: str, *, default: Any = dataclasses.MISSING, positional: bool = False) -> Any:
    """A dataclass field with the help text of its flag; without a default the flag is required.

    `positional`: a tuple that takes what is given without a flag.
    """
    return dataclasses.field(default=default, metadata={"help": help, "positional": positional})


def parse(
    sections: Mapping[str, type],
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    prog: str,
    description: str,
) -> dict[str, Any]:
    """Fill each section from flags, environment, file and defaults.

    Args:
        sections: dataclass by section name; the section "" has no prefix.
        argv: the arguments without the program's name; default: this process's.
        environ: default: this process's.

    Returns:
        An instance of each dataclass under its section's name.

    Raises:
        ConfigurationError: something given is wrong, or something needed is missing.
        HelpRequested: `--help` or `-h` was given.
    """
    argv = sys.argv[1:] if argv is None else argv
    environ = os.environ if environ is None else environ
    fields = [field for section, cls in sections.items() for field in _fields_of(section, cls)]
    flags = _parse_flags(sections, fields, argv, prog, description)
    path = flags.pop("config", None) or environ.get(ENVIRONMENT_PREFIX + "CONFIG") or None
    table = _read_file(Path(path).expanduser(), sections) if path is not None else {}
    values: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for field in fields:
        found = _find(field, flags, environ, table, path)
        if found is not None:
            values[field.section][field.name] = found[0]
    return {section: cls(**values[section]) for section, cls in sections.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Field:
    """One setting: where it may come from and what it must be."""

    section: str
    name: str
    kind: Any
    many: bool
    required: bool
    default: Any
    help: str
    positional: bool

    @property
    def dotted(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def flag(self) -> str:
        return f"--{self.dotted}"

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.dotted.replace(".", "_").upper()

    @property
    def secret(self) -> bool:
        return self.kind is Secret


def _fields_of(section: str, cls: type) -> Iterable[_Field]:
    """The settings of a dataclass; types that no flag can hold are a bug of the caller (TypeError)."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = _without_none(hints[field.name])
        arguments = typing.get_args(kind)
        many = typing.get_origin(kind) is tuple
        if many:
            if len(arguments) != 2 or arguments[1] is not Ellipsis:
                raise TypeError(f"{cls.__name__}.{field.name}: only tuple[T, ...] can be a flag")
            kind = arguments[0]
        if kind not in _CONVERT and typing.get_origin(kind) is not Literal:
            raise TypeError(f"{cls.__name__}.{field.name}: no flag can hold a {kind}")
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        yield _Field(
            section=section,
            name=field.name,
            kind=kind,
            many=many,
            required=default is dataclasses.MISSING,
            default=default,
            help=field.metadata.get("help", ""),
            positional=field.metadata.get("positional", False),
        )


def _without_none(hint: Any) -> Any:
    """`X` of `X | None`: None is never given, it can only be a default."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    if len(members) != 1:
        raise TypeError(f"no flag can hold a {hint}")
    return members[0]


# --- flags


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; --help lists the flags")


class _Formatter(argparse.HelpFormatter):
    """Help with room for dotted names, and a newline after each description."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=110)


def _parse_flags(
    sections: Mapping[str, type], fields: Sequence[_Field], argv: Sequence[str], prog: str, description: str
) -> dict[str, Any]:
    """Text (or texts, or a bool) by dotted name of every flag that was given."""
    _refuse_secrets(fields, argv)
    _refuse_values_of_switches(fields, argv)
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [--config FILE] [flags]" + "".join(f" [{f.name.upper()} ...]" for f in fields if f.positional),
        description=description,
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--help", "-h", action="store_true", help="show this and leave")
    parser.add_argument("--config", metavar="FILE", help="TOML file with the settings below, one table a section")
    for section, cls in sections.items():
        group = parser.add_argument_group(section or "general", _summary(cls))
        for field in fields:
            if field.section == section:
                _add_flag(group, field)
    found, unknown = parser.parse_known_args(_joined(fields, argv))
    given = vars(found)
    if given.pop("help", False):
        raise HelpRequested(parser.format_help())
    if unknown:
        _refuse_unknown(unknown, [*(field.flag for field in fields), "--config", "--help"])
    return given


def _add_flag(group: argparse._ArgumentGroup, field: _Field) -> None:
    text = _help(field).replace("%", "%%")
    if field.positional:
        group.add_argument(field.dotted, nargs="*", metavar=field.name.upper(), help=text)
    elif field.secret:
        group.add_argument(field.flag, dest=field.dotted, metavar="(not as a flag)", help=text)
    elif field.kind is bool:
        group.add_argument(field.flag, dest=field.dotted, action="store_true", help=text)
        group.add_argument(f"--no-{field.dotted}", dest=field.dotted, action="store_false", help=argparse.SUPPRESS)
    elif field.many:
        group.add_argument(
            field.flag, dest=field.dotted, nargs="+", action="extend", metavar=_metavar(field), help=text
        )
    else:
        group.add_argument(field.flag, dest=field.dotted, metavar=_metavar(field), help=text)


def _joined(fields: Sequence[_Field], argv: Sequence[str]) -> list[str]:
    """`--flag -5` as `--flag=-5`: argparse would take a value with a leading dash for a flag."""
    single = {field.flag for field in fields if not field.many and field.kind is not bool}
    joined: list[str] = []
    rest = iter(argv)
    for argument in rest:
        value = next(rest, None) if argument in single else None
        if value is None:
            joined.append(argument)
        elif value.startswith("--"):
            joined += [argument, value]
        else:
            joined.append(f"{argument}={value}")
    return joined


def _metavar(field: _Field) -> str:
    if typing.get_origin(field.kind) is Literal:
        return "{" + ",".join(map(str, typing.get_args(field.kind))) + "}"
    return {int: "N", float: "X", Path: "PATH"}.get(field.kind, "TEXT")


def _help(field: _Field) -> str:
    if field.secret:
        where = f"only by {field.variable} or {field.dotted} in the file"
    elif field.required:
        where = "required"
    elif field.kind is bool:
        where = f"default: {'on' if field.default else 'off'}; --no-{field.dotted} turns it off"
    elif field.default is None or field.default == ():
        where = "default: none"
    else:
        where = f"default: {' '.join(map(str, field.default)) if field.many else field.default}"
    return f"{field.help} ({where})".strip()


def _summary(cls: type) -> str:
    """The first paragraph of a section's docstring; none if it is the signature that dataclass writes."""
    text = inspect.getdoc(cls) or ""
    return "" if text.startswith(f"{cls.__name__}(") else " ".join(text.split("\n\n")[0].split()).replace("%", "%%")


def _refuse_secrets(fields: Sequence[_Field], argv: Sequence[str]) -> None:
    """Before anything else, so that no other message can show the value."""
    secrets = {field.flag: field for field in fields if field.secret}
    for argument in argv:
        field = secrets.get(argument.partition("=")[0])
        if field is not None:
            raise ConfigurationError(
                f"{field.flag} is not taken as a flag: {SECRET_FLAG}; "
                f"set {field.variable} or {field.dotted} in the --config file"
            )


def _refuse_values_of_switches(fields: Sequence[_Field], argv: Sequence[str]) -> None:
    """`--x=false` is clear to a person but not a form that argparse has; say which one is."""
    for field in fields:
        if field.kind is bool and any(argument.startswith(f"{field.flag}=") for argument in argv):
            raise ConfigurationError(f"{field.flag} takes no value: {field.flag} is on, --no-{field.dotted} is off")


def _refuse_unknown(unknown: Sequence[str], known: Sequence[str]) -> NoReturn:
    """Names the flag and never its value, which may be a secret behind a mistyped name."""
    flag = next((argument for argument in unknown if argument.startswith("-")), None)
    if flag is None:
        raise ConfigurationError(f"unexpected argument '{unknown[0]}'; settings are given as flags, see --help")
    flag = flag.partition("=")[0]
    raise ConfigurationError(f"unknown flag {flag}{_did_you_mean(flag, known)}; --help lists all")


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


# --- file and environment


def _read_file(path: Path, sections: Mapping[str, type]) -> dict[str, Any]:
    """Values by dotted name; unknown tables and keys are refused."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"no configuration file at {path}; name an existing TOML file by --config") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as TOML: {error}") from error
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key in sections and isinstance(value, dict):
            values.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            values[key] = value
    known = [field.dotted for section, cls in sections.items() for field in _fields_of(section, cls)]
    for key in values:
        if key not in known:
            raise ConfigurationError(f"{path}: unknown setting '{key}'{_did_you_mean(key, known)}")
    return values


def _find(
    field: _Field,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    table: Mapping[str, Any],
    path: str | None,
) -> tuple[Any] | None:
    """The value from the strongest source that has one, as a 1-tuple; None leaves the default."""
    if field.dotted in flags:
        return (_from_text(field, flags[field.dotted], field.flag),)
    if environ.get(field.variable):
        return (_from_text(field, environ[field.variable], field.variable),)
    if field.dotted in table:
        return (_from_toml(field, table[field.dotted], f"{path}: {field.dotted}"),)
    if field.required:
        as_flag = "" if field.secret else f"give {field.flag}, or "
        raise ConfigurationError(
            f"{field.dotted} is missing; {as_flag}set {field.variable} or {field.dotted} in the --config file"
        )
    return None


def _from_text(field: _Field, value: Any, where: str) -> Any:
    if isinstance(value, bool):
        return value
    if field.many:
        texts = [value] if isinstance(value, str) else value
        parts = [part.strip() for text in texts for part in text.split(",")]
        return tuple(_convert(field.kind, part, where) for part in parts if part)
    return _convert(field.kind, value, where)


def _from_toml(field: _Field, value: Any, where: str) -> Any:
    if not field.many:
        return _convert_toml(field.kind, value, where)
    if not isinstance(value, list):
        raise ConfigurationError(f"{where} must be a list")
    return tuple(_convert_toml(field.kind, item, where) for item in value)


# --- one value


def _integer(text: str) -> int:
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _word(text: str) -> bool:
    return WORDS[text.lower()]


_CONVERT: dict[Any, tuple[Callable[[str], Any], str, tuple[type, ...]]] = {
    # type: (from text, what it must be, the types it may have in TOML)
    str: (str, "a text", (str,)),
    int: (_integer, "a whole number", (int,)),
    float: (_number, "a finite number", (int, float)),
    bool: (_word, "true or false", (bool,)),
    Path: (lambda text: Path(text).expanduser(), "a path", (str,)),
    Secret: (Secret, "a text", (str,)),
}


def _convert(kind: Any, text: str, where: str) -> Any:
    if typing.get_origin(kind) is Literal:
        return _choose(kind, text, where)
    from_text, what, _ = _CONVERT[kind]
    try:
        return from_text(text)
    except (ValueError, KeyError):
        raise ConfigurationError(f"{where} must be {what}; found '{text}'") from None


def _convert_toml(kind: Any, value: Any, where: str) -> Any:
    if typing.get_origin(kind) is Literal:
        return _choose(kind, value, where)
    _, what, allowed = _CONVERT[kind]
    if type(value) not in allowed:
        shown = "" if kind is Secret else f"; found {value!r}"
        raise ConfigurationError(f"{where} must be {what}{shown}")
    if kind in (str, int, bool):
        return value
    return _convert(kind, str(value), where)


def _choose(kind: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(kind)
    for choice in choices:
        if str(choice) == str(value):
            return choice
    known = [str(choice) for choice in choices]
    hint = _did_you_mean(str(value), known)
    raise ConfigurationError(f"{where} must be one of {', '.join(known)}; found '{value}'{hint}")
