"""Settings: sources and their order, types, secrets, and messages that help."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from template.config import HelpRequested, Secret, option, parse
from template.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class General:
    """What every neuron needs.

    A second paragraph that help leaves out.
    """

    netuid: int = option("the subnet's number")


@dataclass(frozen=True, kw_only=True)
class Wallet:
    """Keys."""

    name: str = option("name of the coldkey", default="default")
    path: Path = option("where wallets are", default=Path("/wallets"))
    password: Secret | None = option("password of the hotkey", default=None)


@dataclass(frozen=True, kw_only=True)
class Axon:
    port: int = 8091
    external_ip: str | None = None
    timeout: float = 2.5
    serve: bool = True
    debug: bool = False
    mode: Literal["open", "closed"] = "open"
    level: Literal[1, 2] = 1
    peers: tuple[str, ...] = ()
    ports: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.port > 65535:
            raise ConfigurationError("axon.port must be at most 65535")


SECTIONS = {"": General, "wallet": Wallet, "axon": Axon}


def parsed(*argv: str, environ: dict[str, str] | None = None) -> dict[str, Any]:
    return parse(SECTIONS, ["--netuid", "1", *argv], environ or {}, prog="miner", description="Trains.")


def message(*argv: str, environ: dict[str, str] | None = None) -> str:
    """What a wrong call says; always one line."""
    with pytest.raises(ConfigurationError) as caught:
        parsed(*argv, environ=environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_of_the_dataclasses() -> None:
    """Nothing given but what is required: each section with its defaults."""
    assert parsed() == {"": General(netuid=1), "wallet": Wallet(), "axon": Axon()}


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--axon.port", "9000"], "port", 9000),
        (["--axon.port=9000"], "port", 9000),
        (["--axon.port", "-5"], "port", -5),
        (["--axon.external_ip", "1.2.3.4"], "external_ip", "1.2.3.4"),
        (["--axon.timeout", "1e-3"], "timeout", 0.001),
        (["--axon.timeout", "-1"], "timeout", -1.0),
        (["--no-axon.serve"], "serve", False),
        (["--axon.debug"], "debug", True),
        (["--axon.debug", "--no-axon.debug"], "debug", False),
        (["--axon.mode", "closed"], "mode", "closed"),
        (["--axon.level", "2"], "level", 2),
        (["--axon.peers", "/ip4/1", "/ip4/2", "--axon.debug"], "peers", ("/ip4/1", "/ip4/2")),
        (["--axon.peers", "a", "--axon.peers", "b,c"], "peers", ("a", "b", "c")),
        (["--axon.ports", "7"], "ports", (7,)),
    ],
)
def test_flags(argv: list[str], field: str, value: object) -> None:
    """Every type in every spelling."""
    found = getattr(parsed(*argv)["axon"], field)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("DT_AXON_PORT", "9000", "port", 9000),
        ("DT_AXON_SERVE", "no", "serve", False),
        ("DT_AXON_DEBUG", "True", "debug", True),
        ("DT_AXON_EXTERNAL_IP", "1.2.3.4", "external_ip", "1.2.3.4"),
        ("DT_AXON_PEERS", "a, b", "peers", ("a", "b")),
        ("DT_AXON_PORT", "", "port", 8091),
        ("AXON_PORT", "9000", "port", 8091),
    ],
)
def test_environment(name: str, text: str, field: str, value: object) -> None:
    """Variables with the prefix are read; empty ones count as not set."""
    assert getattr(parsed(environ={name: text})["axon"], field) == value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "miner.toml"
    path.write_text(
        'netuid = 7\n[wallet]\nname = "file"\npath = "~/w"\npassword = "hunter2"\n'
        "[axon]\nport = 1\ntimeout = 3\nserve = false\nlevel = 2\npeers = ['x', 'y']\n"
    )
    return path


def test_file(file: Path) -> None:
    """A TOML file has one table a section; a whole number is a fine float, `~` is the home directory."""
    found = parse(SECTIONS, ["--config", str(file)], {}, prog="miner", description="")
    assert found[""] == General(netuid=7)
    assert found["wallet"] == Wallet(name="file", path=Path("~/w").expanduser(), password=Secret("hunter2"))
    assert found["axon"] == Axon(port=1, timeout=3.0, serve=False, level=2, peers=("x", "y"))
    assert type(found["axon"].timeout) is float


def test_flag_over_environment_over_file_over_default(file: Path) -> None:
    """Each source gives way to the one before it."""
    environ = {"DT_CONFIG": str(file), "DT_AXON_PORT": "2", "DT_AXON_TIMEOUT": "4"}
    found = parsed("--axon.port", "3", environ=environ)["axon"]
    assert (found.port, found.timeout, found.level, found.mode) == (3, 4.0, 2, "open")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--axon.prot", "1"], "unknown flag --axon.prot; did you mean --axon.port?"),
        (["--axon.serve=false"], "--axon.serve takes no value: --axon.serve is on, --no-axon.serve is off"),
        (["--axon.po", "1"], "unknown flag --axon.po; did you mean --axon.port?"),
        (["--wallet.hotkye=5Gx"], "unknown flag --wallet.hotkye"),
        (["start"], "unexpected argument 'start'"),
        (["--axon.port"], "argument --axon.port: expected one argument; --help"),
        (["--axon.port", "--axon.debug"], "argument --axon.port: expected one argument"),
        (["--axon.port", "http"], "--axon.port must be a whole number; found 'http'"),
        (["--axon.port", "1.5"], "--axon.port must be a whole number; found '1.5'"),
        (["--axon.timeout", "nan"], "--axon.timeout must be a finite number; found 'nan'"),
        (["--axon.timeout", "1e999"], "--axon.timeout must be a finite number"),
        (["--axon.mode", "close"], "--axon.mode must be one of open, closed; found 'close'; did you mean closed?"),
        (["--axon.ports", "1", "x"], "--axon.ports must be a whole number; found 'x'"),
        (["--axon.port", "70000"], "axon.port must be at most 65535"),
        (["--config", "/nowhere.toml"], "no configuration file at /nowhere.toml; name an existing TOML file"),
        (["--config", "/"], "/ cannot be read as TOML"),
    ],
)
def test_a_wrong_flag_is_named_with_the_remedy(argv: list[str], expected: str) -> None:
    """One line that a person can act on."""
    assert message(*argv).startswith(expected)


def test_a_wrong_variable_is_named() -> None:
    """The message names the variable, not a flag that was never given."""
    assert message(environ={"DT_AXON_PORT": "x"}) == "DT_AXON_PORT must be a whole number; found 'x'"
    assert message(environ={"DT_AXON_SERVE": "maybe"}) == "DT_AXON_SERVE must be true or false; found 'maybe'"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[axon]\nprot = 1\n", "unknown setting 'axon.prot'; did you mean axon.port?"),
        ("[axn]\nport = 1\n", "unknown setting 'axn'"),
        ('wallet = "me"\n', "unknown setting 'wallet'"),
        ('[axon]\nport = "1"\n', "axon.port must be a whole number; found '1'"),
        ("[axon]\nport = true\n", "axon.port must be a whole number; found True"),
        ("[axon]\nserve = 1\n", "axon.serve must be true or false; found 1"),
        ("[axon]\npeers = 'a'\n", "axon.peers must be a list"),
        ("[axon]\ntimeout = inf\n", "axon.timeout must be a finite number"),
        ("[wallet]\npassword = 123456\n", "wallet.password must be a text"),
        ("[axon\n", "cannot be read as TOML"),
    ],
)
def test_a_wrong_file_is_named_with_the_place(tmp_path: Path, text: str, expected: str) -> None:
    """Typos and wrong types in a file are refused, never skipped; a secret is never shown."""
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    said = message("--config", str(path))
    assert said.startswith(str(path))
    assert expected in said
    assert "123456" not in said


def test_a_missing_setting_names_every_way_to_give_it() -> None:
    """No default is invented for what has none."""
    with pytest.raises(ConfigurationError, match=r"netuid is missing; give --netuid, or set DT_NETUID or netuid in"):
        parse(SECTIONS, [], {}, prog="miner", description="")


@pytest.mark.parametrize("argv", [["--wallet.password", "hunter2"], ["--wallet.password=hunter2"]])
def test_a_secret_flag_is_refused_with_the_reason(argv: list[str]) -> None:
    """Arguments are visible to everybody on the machine; the message does not repeat the secret."""
    said = message("--axon.prot", "1", *argv)
    assert "visible to everybody" in said
    assert "DT_WALLET_PASSWORD" in said
    assert "hunter2" not in said


def test_a_mistyped_secret_flag_does_not_show_the_secret() -> None:
    """The value behind an unknown flag is never part of a message."""
    for argv in (["--wallet.pasword", "hunter2"], ["--wallet.pasword=hunter2"]):
        assert "hunter2" not in message(*argv)


def test_a_secret_comes_from_the_environment_and_never_shows() -> None:
    """`reveal` is the only way out: not by str, repr, format, the dataclass or pickle."""
    wallet = parsed(environ={"DT_WALLET_PASSWORD": "hunter2"})["wallet"]
    assert wallet.password.reveal() == "hunter2"
    assert "hunter2" not in f"{wallet} {wallet!r} {wallet.password} {wallet.password!r} {[wallet.password]}"
    with pytest.raises(TypeError, match="not written anywhere"):
        pickle.dumps(wallet.password)


def test_help_is_readable() -> None:
    """Help lists each flag once with its text, default and section; leaving is up to the caller."""
    with pytest.raises(HelpRequested) as caught:
        parse(SECTIONS, ["-h"], {}, prog="miner", description="Trains.")
    text = str(caught.value)
    assert text.startswith("usage: miner [--config FILE] [flags]\n\nTrains.\n")
    assert "  --netuid N                        the subnet's number (required)\n" in text
    assert "What every neuron needs." in text
    assert "second paragraph" not in text
    assert "(default: on; --no-axon.serve turns it off)" in text
    assert "only by DT_WALLET_PASSWORD or wallet.password in the file" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 110


def test_a_type_that_no_flag_can_hold_is_a_bug() -> None:
    """The author of a section learns of it at once."""

    @dataclass(frozen=True, kw_only=True)
    class Wrong:
        table: dict[str, int]

    Wrong.__annotations__["table"] = dict[str, int]
    with pytest.raises(TypeError, match=r"Wrong\.table: no flag can hold"):
        parse({"wrong": Wrong}, [], {}, prog="x", description="")


def test_process_arguments_and_environment_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point gives neither."""
    monkeypatch.setattr("sys.argv", ["miner", "--netuid", "4"])
    monkeypatch.setenv("DT_WALLET_NAME", "me")
    found = parse(SECTIONS, prog="miner", description="")
    assert (found[""].netuid, found["wallet"].name) == (4, "me")


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads files."""

    file: tuple[Path, ...] = option("what to read", default=(), positional=True)
    lines: int = option("how many", default=1)


@pytest.mark.parametrize(
    ("argv", "files", "lines"),
    [([], (), 1), (["a", "b"], ("a", "b"), 1), (["--lines", "3", "a"], ("a",), 3), (["a", "--lines", "3"], ("a",), 3)],
)
def test_what_stands_without_a_flag(argv: list[str], files: tuple[str, ...], lines: int) -> None:
    """Goes to the positional setting, wherever it stands."""
    read = parse({"": Reader}, argv, {}, prog="reader", description="Reads.")[""]
    assert (read.file, read.lines) == (tuple(map(Path, files)), lines)
