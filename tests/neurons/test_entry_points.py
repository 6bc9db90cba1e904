"""What an operator sees when something is wrong: one line that says what to do, status 2, and no traceback.

The real programs on an embedded chain. All but one run inside this process, because importing torch takes seconds.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distributed_training.localnet.network import ADDRESS
from neurons import miner, validator
from template.chain.local.genesis import Registration, create_chain
from template.chain.local.operator import Keys
from template.chain.wallet import create_wallet
from template.neuron import main

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny.toml"
Flags = dict[str, object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain with one registered miner and validator, their wallets, and a wallet that is not registered."""
    folder = tmp_path_factory.mktemp("operator")

    def keys(name: str) -> Keys:
        wallet = create_wallet(name, "default", str(folder / "wallets"))
        return Keys(coldkey=wallet.coldkeypub.ss58_address, hotkey=wallet.hotkey.ss58_address)

    neurons = [Registration(keys("validator"), 1000.0), Registration(keys("miner"))]
    create_chain(folder / "chain.db", owner=keys("owner"), neurons=neurons, block_seconds=1.0, tempo=20)
    keys("stranger")
    return folder


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of the localnet's address that somebody listens on."""
    with socket.create_server((ADDRESS, 0)) as holder:
        yield int(holder.getsockname()[1])


def arguments(folder: Path, changes: Flags, role: str = "miner") -> list[str]:
    flags: Flags = {
        "run": TINY,
        "netuid": 1,
        "folder": folder / role,
        "subtensor.network": f"local://{folder}/chain.db",
        "wallet.name": role,
        "wallet.path": folder / "wallets",
        "axon.ip": ADDRESS,
        "axon.port": 0,
        "dht.ip": ADDRESS,
        "hub.url": f"dir://{folder}/hub",
        **changes,
    }
    given = {f"--{name}": value for name, value in flags.items() if value is not None}
    return [text for flag, value in given.items() for text in ([flag] if value is True else [flag, str(value)])]


def small_corpus(folder: Path) -> Path:
    """tiny.toml, with a text of three words for its corpus."""
    corpus = folder / "words"
    corpus.mkdir(exist_ok=True)
    (corpus / "a.txt").write_text("three small words")
    text = TINY.read_text().replace('source = "stdlib"', f'source = "text"\npath = "{corpus}"')
    path = folder / "small.toml"
    path.write_text(text)
    return path


def other_run(folder: Path) -> Path:
    path = folder / "other.toml"
    path.write_text(TINY.read_text().replace("seed = 1", "seed = 2"))
    return path


Case = tuple[Callable[[Path], Flags], str]
WRONG: dict[str, Case] = {
    "unknown flag": (lambda f: {"wallet.nmae": "x"}, r"unknown flag --wallet.nmae; did you mean --wallet.name\?"),
    "no run file given": (lambda f: {"run": None}, r"run is missing; give --run, or set DT_RUN"),
    "no hub given": (lambda f: {"hub.url": None}, r"hub.url is missing; give --hub.url"),
    "unknown run file": (
        lambda f: {"run": TINY.parent / "none.toml"},
        r"no run file at .*none.toml; run files there: .*tiny",
    ),
    "no wallet": (lambda f: {"wallet.name": "nobody"}, r"no cold key at .*nobody.*; create it with: btcli wallet"),
    "no hotkey": (lambda f: {"wallet.hotkey": "second"}, r"no hotkey at .*second; create it with: btcli wallet"),
    "not registered": (lambda f: {"wallet.name": "stranger"}, r"has no uid on subnet 1 .*: register it first"),
    "no chain file": (lambda f: {"subtensor.network": f"local://{f}/gone.db"}, r"no chain file at .*; create it with"),
    "unknown network": (lambda f: {"subtensor.network": "mars"}, r"unknown network 'mars'; accepted: finney, test"),
    "unknown subnet": (lambda f: {"netuid": 9}, r"has no mechanism 0 of subnet 9; check netuid"),
    "corpus too small": (lambda f: {"run": small_corpus(f)}, r"take a larger corpus, or lower"),
    "unknown device": (lambda f: {"device": "quantum"}, r"--device quantum cannot be used: .*use cpu"),
    "no such gpu": (lambda f: {"device": "cuda:77"}, r"--device cuda:77 cannot be used"),
    "nowhere to write": (lambda f: {"folder": "/proc/here"}, r"--folder /proc/here cannot be made: .*choose another"),
    "not reachable": (lambda f: {"axon.ip": "0.0.0.0"}, r"give --axon.external_ip the address"),
    "a name for an address": (lambda f: {"axon.ip": "localhost"}, r"--axon.ip 'localhost' is not an IP address"),
    "a relay of nobody": (lambda f: {"dht.relay": True}, r"reached through its initial peers alone: name some"),
    "a port that is none": (lambda f: {"dht.direct_port": 70000}, r"a dht port must lie in \[0, 65535\], not 70000"),
    "a bad number": (lambda f: {"netuid": "one"}, r"--netuid must be a whole number; found 'one'"),
    "a pause of nothing": (lambda f: {"chain.poll_seconds": 0}, r"--chain.poll_seconds must be above 0"),
}


def complaint(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error that is no log line."""
    error = capfd.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_ends_with_one_clear_line(
    case: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong is named, with the remedy."""
    changes, expected = WRONG[case]
    monkeypatch.setattr(sys, "argv", ["miner", *arguments(folder, changes(folder))])
    assert main(miner.start) == 2
    assert re.search(expected, complaint(capfd))


@pytest.mark.integration
@pytest.mark.parametrize("flag", ["axon.port", "dht.port"])
def test_a_port_in_use_is_named(
    flag: str, folder: Path, taken: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found late, since the axon opens last; everything opened before is closed."""
    monkeypatch.setattr(sys, "argv", ["miner", *arguments(folder, {flag: taken})])
    assert main(miner.start) == 2
    assert str(taken) in complaint(capfd)


@pytest.mark.integration
def test_a_folder_of_another_run_is_named(
    folder: Path, taken: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is never trained on under other rules."""
    monkeypatch.setattr(sys, "argv", ["miner", *arguments(folder, {"axon.port": taken, "folder": folder / "used"})])
    assert main(miner.start) == 2
    capfd.readouterr()
    again = arguments(folder, {"run": other_run(folder), "folder": folder / "used"})
    monkeypatch.setattr(sys, "argv", ["miner", *again])
    assert main(miner.start) == 2
    assert "give each run a --folder of its own" in complaint(capfd)


def test_a_damaged_memory_of_a_validator_is_named(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not start without its scores unless it is told to."""
    (folder / "validator").mkdir()
    (folder / "validator" / "validator.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["validator", *arguments(folder, {}, "validator")])
    assert main(validator.start) == 2
    assert "move it away to start without scores" in complaint(capfd)


def test_help_lists_the_flags(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard output, with status 0; the validator has its own flags as well."""
    monkeypatch.setattr(sys, "argv", ["validator", "--help"])
    assert main(validator.start) == 0
    out = capfd.readouterr().out
    assert "--validator.until_epoch" in out
    assert "--wallet.name" in out


@pytest.mark.integration
def test_the_program_itself_ends_so(folder: Path) -> None:
    """As a process: status 2, nothing on standard output, one line on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "neurons.miner", *arguments(folder, {"wallet.name": "stranger"})],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()
