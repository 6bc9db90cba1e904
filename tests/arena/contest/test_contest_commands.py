"""`submit` and `reveal` as a miner gives them, on an embedded chain with keys on disk; `contest` with the sandbox."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distributed_training.arena.__main__ import main
from distributed_training.arena.contest.command import ChainConfig, ReadyConfig, SubmitConfig, ready, submit
from distributed_training.arena.contest.spec import load_contest
from distributed_training.arena.sandbox.backends import Backend, Namespaces
from template.chain.local import operator
from template.chain.local.genesis import Registration, create_chain
from template.chain.local.ledger import Ledger
from template.chain.local.operator import Keys
from template.chain.wallet import WalletConfig, create_wallet
from template.clock import ManualClock
from template.errors import SandboxUnavailable
from tests.arena.contest.material import contest
from tests.arena.small import write_text
from tests.template.chain.conftest import wallet_of

SOURCE = """
import dataclasses
from distributed_training.strategies.data_parallel import DataParallel
from distributed_training.strategies.inner import AdamW

def strategy(optimizer):
    return DataParallel(inner=AdamW(dataclasses.replace(optimizer, learning_rate=0.006, minimum_learning_rate=0.001)))
"""


class Miner:
    """A subnet with owner, validator "v" and miner "m", whose keys lie in a folder; a contest from block 10 on."""

    def __init__(self, folder: Path, long_text: bool = False) -> None:
        self.folder = folder
        (folder / "text").mkdir()
        write_text(folder / "text")
        if long_text:
            (folder / "text" / "d.txt").write_text((folder / "text" / "a.txt").read_text() * 70)
        wallets = {name: create_wallet(name, "hot", str(folder / "wallets")) for name in ("v", "m")}
        keys = {n: Keys(w.coldkeypub.ss58_address, w.hotkey.ss58_address) for n, w in wallets.items()}
        neurons = [Registration(keys["v"], 1000.0), Registration(keys["m"])]
        self.hotkey = keys["m"].hotkey
        self.chain = folder / "chain.db"
        owner = wallet_of("owner").keys
        create_chain(self.chain, owner=owner, neurons=neurons, block_seconds=12.0, tempo=20, manual=True)
        self.spec = folder / "contest.toml"
        self.spec.write_text(toml(dataclasses.asdict(contest(folder))))
        (folder / "mine.py").write_text(SOURCE)

    def until(self, block: int) -> None:
        with Ledger(self.chain) as ledger:
            operator.advance(ledger, block - ledger.head())

    def on_chain(self, name: str) -> list[str]:
        return [
            *("--contest", str(self.spec), "--netuid", "1", "--subtensor.network", f"local://{self.chain}"),
            *(
                ("--wallet.name", name, "--wallet.hotkey", "hot", "--wallet.path", str(self.folder / "wallets"))
                if name
                else ()
            ),
        ]

    def submit(self) -> int:
        return main(["submit", str(self.folder / "mine.py"), *self.on_chain("m")])

    def reveal(self) -> int:
        return main(["reveal", str(self.folder / "mine.py.sealed"), *self.on_chain("")])


def toml(table: Mapping[str, Any]) -> str:
    """A contest spec as its file: text, numbers and lists, and sections of these."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    sections = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def test_submit_then_reveal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the round, while it is open, before and after it has closed, too late."""
    miner = Miner(tmp_path)
    assert load_contest(miner.spec) == contest(tmp_path)
    assert miner.submit() == 2
    assert "the first round opens at block 10" in capsys.readouterr().err
    miner.until(11)
    assert miner.submit() == 0
    assert "reveal from block 18 and before 22" in capsys.readouterr().out.replace("\n", " ")
    assert miner.reveal() == 2
    assert "who reveals before is copied" in capsys.readouterr().err
    miner.until(18)
    assert miner.submit() == 2
    assert "round 0 closed at block 18; the next one opens at block 30" in capsys.readouterr().err.replace("\n", " ")
    assert miner.reveal() == 0
    found = json.loads((tmp_path / "reveals" / "0" / f"{miner.hotkey}.json").read_text())
    assert (found["source"], found["hotkey"]) == (SOURCE, miner.hotkey)
    miner.until(22)
    assert miner.reveal() == 2
    assert "was decided from block 22 on" in capsys.readouterr().err


class Blocks(ManualClock):
    """Time in which the chain goes on: a block for each sleep."""

    def __init__(self, chain: Path) -> None:
        super().__init__()
        self._chain = chain

    async def sleep(self, seconds: float) -> None:
        with Ledger(self._chain) as ledger:
            operator.advance(ledger, 1)


async def test_submit_and_wait(tmp_path: Path) -> None:
    """One command commits, stays until the round has closed, and reveals."""
    miner = Miner(tmp_path)
    miner.until(11)
    config = SubmitConfig(file=(str(tmp_path / "mine.py"),), contest=miner.spec, netuid=1, wait=True)
    wallet = WalletConfig(name="m", hotkey="hot", path=str(tmp_path / "wallets"))
    await submit(config, ChainConfig(network=f"local://{miner.chain}"), wallet, Console(), Blocks(miner.chain))
    with Ledger(miner.chain) as ledger:
        assert ledger.head() == 18
    assert (tmp_path / "reveals" / "0" / f"{miner.hotkey}.json").is_file()


def test_what_cannot_be_submitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is told before anything goes on chain."""
    miner = Miner(tmp_path)
    miner.until(11)
    for source, message in (("x" * 20_001, "at most 20000 are taken"), ("def f(:", "not Python")):
        (tmp_path / "mine.py").write_text(source)
        assert miner.submit() == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert main(["submit", str(tmp_path / "none.py"), *miner.on_chain("m")]) == 2
    assert "cannot be read" in capsys.readouterr().err


async def test_waiting_for_a_round_to_open(tmp_path: Path) -> None:
    """Before the first one, and when one has closed; at another place than the spec's."""
    miner = Miner(tmp_path)
    wallet = WalletConfig(name="m", hotkey="hot", path=str(tmp_path / "wallets"))
    place = str(tmp_path / "mirror")
    config = SubmitConfig(file=(str(tmp_path / "mine.py"),), contest=miner.spec, netuid=1, wait=True, place=place)
    for number in (0, 1):
        miner.until(20 * number + 2)
        await submit(config, ChainConfig(network=f"local://{miner.chain}"), wallet, Console(), Blocks(miner.chain))
        assert (tmp_path / "mirror" / str(number) / f"{miner.hotkey}.json").is_file()
    assert not (tmp_path / "reveals").exists()


def test_whether_a_machine_can_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only with the contest's text, and with a sandbox that works."""
    miner = Miner(tmp_path, long_text=True)
    ready(ReadyConfig(contest=miner.spec), Console(), Namespaces)
    assert "sandboxes of kind 'namespaces'" in capsys.readouterr().out

    def none() -> Backend:
        raise SandboxUnavailable("no sandbox works here")

    with pytest.raises(SandboxUnavailable, match="no sandbox works here"):
        ready(ReadyConfig(contest=miner.spec), Console(), none)
    (tmp_path / "text" / "d.txt").unlink()
    assert main(["ready", "--contest", str(miner.spec)]) == 2
    assert "20 are needed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_contest_with_the_sandbox(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the miner's command to the validator's: the source trains in sandboxes, wins, and its record can be verified
    by who has nothing but the record and the source."""
    miner = Miner(tmp_path, long_text=True)
    miner.until(11)
    assert miner.submit() == 0
    miner.until(18)
    assert miner.reveal() == 0
    miner.until(23)
    state = ["--state", str(tmp_path / "state"), "--rounds", "1", "--telemetry.jsonl", str(tmp_path / "events.jsonl")]
    assert main(["contest", *miner.on_chain("v"), *state]) == 0
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    decided = next(event for event in events if event["kind"] == "ContestDecided")
    assert [s["status"] for s in decided["standings"]] == ["champion"], decided
    paid = [event for event in events if event["kind"] == "ContestWeightsSet"][-1]
    assert (paid["mechid"], paid["weights"], paid["outcome"]) == (1, {"2": 1.0}, "set")
    result = json.loads((tmp_path / "state" / "rounds" / "0.json").read_text())
    record = tmp_path / "state" / "records" / f"{result['throne']['source']}-{result['seeds'][0]}.json"
    assert main(["verify", str(record), "--text", str(tmp_path / "text")]) == 0
    assert "the same, to the bit" in capsys.readouterr().out.replace("\n", " ")
