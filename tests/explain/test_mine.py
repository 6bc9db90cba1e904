"""The miner's side on a real chain and over real sockets: what validators set, why, and proof of what they said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bittensor import Client, Wallet

from distributed_training.explain.__main__ import main
from distributed_training.explain.mine import Mine, ask, save, shown
from distributed_training.run import load_run
from distributed_training.scoring.combine import Evidence, ScoreBook, advance
from distributed_training.scoring.explain import score_epoch
from distributed_training.scoring.report import Report, ReportResponse
from distributed_training.validator.report_desk import ReportDesk
from template.chain.connect import connect
from template.chain.local import operator
from template.chain.local.genesis import Registration, create_chain
from template.chain.local.ledger import Ledger
from template.chain.local.operator import Keys
from template.chain.metagraph import read_metagraph
from template.chain.neuron_calls import serve_axon
from template.chain.wallet import create_wallet
from template.chain.weights import set_weights
from template.errors import BadResponse, NotRegistered
from template.telemetry import Telemetry
from template.transport.axon import Axon, AxonConfig
from template.transport.dendrite import Dendrite, Target
from template.transport.policy import Caller
from tests.roles import Chain
from tests.scoring.evidence import FAILED, RULES, evidence

TINY = Path(__file__).parents[1] / "fixtures" / "tiny.toml"
RUN_ID = load_run(TINY).run_id
MINER = 3


@dataclass
class Net:
    """Owner (uid 0), validators v1 and v2 (1, 2) with permits and axons, miners m1 and m2 (3, 4)."""

    folder: Path
    client: Client
    wallets: dict[str, Wallet]
    desks: dict[str, ReportDesk]
    axons: dict[str, Axon]

    def score(self, name: str, *epochs: list[Evidence]) -> None:
        """Let a validator score these epochs, counted from 0."""
        book = ScoreBook()
        for epoch, items in enumerate(epochs):
            after, rows = advance(book, epoch, {item.uid: item.hotkey for item in items}, items, RULES)
            self.desks[name].keep(score_epoch(book, after, rows, RULES), after)
            book = after

    def hotkey(self, name: str) -> str:
        return str(self.wallets[name].hotkey.ss58_address)

    def work(self, samples: int = 100, **fields: Any) -> list[Evidence]:
        """An epoch in which m1 did that and m2 an honest 300 samples."""
        mine = evidence(MINER, samples, hotkey=self.hotkey("m1"), **fields)
        return [mine, evidence(MINER + 1, 300, hotkey=self.hotkey("m2"))]

    async def ask(self, who: str = "m1", **options: Any) -> Mine:
        return await ask(self.client, self.wallets[who], 1, RUN_ID, **options)


@asynccontextmanager
async def network(folder: Path, first: type[ReportDesk] = ReportDesk) -> AsyncIterator[Net]:
    """`first` is what the first validator answers with."""
    names = ("v1", "v2", "m1", "m2")
    wallets = {name: create_wallet(name, "default", str(folder / "wallets")) for name in ("owner", *names, "stranger")}
    keys = {n: Keys(w.coldkeypub.ss58_address, w.hotkey.ss58_address) for n, w in wallets.items()}
    stakes = {"v1": 1000.0, "v2": 500.0}
    neurons = [Registration(keys[name], stakes.get(name, 0.0)) for name in names]
    path = folder / "chain.db"
    create_chain(path, owner=keys["owner"], neurons=neurons, block_seconds=12.0, tempo=20, manual=True)
    with Ledger(path) as ledger:
        operator.advance(ledger, 25)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect(f"local://{path}"))
        net = Net(folder, client, wallets, {}, {})
        chain = Chain(await read_metagraph(client, 1))
        for uid, name, kind in ((1, "v1", first), (2, "v2", ReportDesk)):
            net.desks[name] = kind(uid, None, Telemetry())
            axon = Axon(wallets[name].hotkey, RUN_ID, chain, AxonConfig(ip="127.0.0.2", port=0))
            axon.attach(Report, net.desks[name].answer, validators_only=False)
            net.axons[name] = await stack.enter_async_context(axon)
            await serve_axon(client, wallets[name], 1, "127.0.0.2", axon.port)
        yield net


async def test_what_validators_set_and_why(tmp_path: Path) -> None:
    """The share of each from the chain, beside the account that each has signed."""
    async with network(tmp_path) as net:
        net.score("v1", net.work(), net.work())
        net.score("v2", net.work(audits=(FAILED,)))
        await set_weights(net.client, net.wallets["v1"], 1, {3: 0.25, 4: 0.75}, version_key=0)
        one, two = (await net.ask()).judged
        assert (one.validator, one.share, one.silent, one.problem) == (1, pytest.approx(0.25, abs=1e-4), "", "")
        assert [reason.scored.epoch for reason in one.reasons] == [1]
        assert one.reasons[0].scored.rows[0].weight == pytest.approx(0.25)
        assert (two.validator, two.share) == (2, None)
        assert two.reasons[0].scored.rows[0].reason == "record 0: gradient differs"


async def test_who_does_not_answer_is_said(tmp_path: Path) -> None:
    """One that has not scored yet, one that is gone; neither keeps the other's report away."""
    async with network(tmp_path) as net:
        await net.axons["v2"].close()
        one, two = (await net.ask()).judged
        assert one.silent == "it has scored no epoch since it was started"
        assert "uid 2 at 127.0.0.2" in two.silent
        net.score("v1", [evidence(4, hotkey=net.hotkey("m2"))])
        assert "has not scored this hotkey in the epochs that it keeps, 0 to 0" in (await net.ask()).judged[0].silent


class Liar(ReportDesk):
    """Says that the others earned more than they did."""

    async def answer(self, request: Report, caller: Caller) -> ReportResponse:
        honest = await super().answer(request, caller)
        return honest.model_copy(update={"epochs": tuple(e.model_copy(update={"total": 999.0}) for e in honest.epochs)})


async def test_a_report_that_contradicts_itself_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the command ends with status 1, after it has shown the others."""
    async with network(tmp_path, Liar) as net:
        net.score("v1", net.work())
        net.score("v2", net.work())
        one, two = (await net.ask()).judged
        assert "the evidence gives weight" in one.problem
        assert two.reasons
        assert await asyncio.to_thread(main, command(net)) == 1
        assert "validator 1: the numbers do not bear each other out" in capsys.readouterr().err


def command(net: Net, *more: str, wallet: str = "m1") -> list[str]:
    where = ["--subtensor.network", f"local://{net.folder}/chain.db", "--netuid", "1", "--run", str(TINY)]
    keys = ["--wallet.name", wallet, "--wallet.path", str(net.folder / "wallets")]
    return ["--mine", *where, *keys, *more]


async def test_the_command_shows_and_keeps_what_was_signed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it keeps is checked without chain and validator, by anybody, later."""
    async with network(tmp_path) as net:
        net.score("v1", net.work(), net.work(50))
        net.score("v2", net.work())
        kept = tmp_path / "reports.jsonl"
        assert await asyncio.to_thread(main, command(net, "--epochs", "5", "--save", str(kept))) == 0
        out = capsys.readouterr().out
        assert "validator 1, hotkey " + net.hotkey("v1") in out
        signer = net.hotkey("v1")
    assert main(["--evidence", str(kept), "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["signed_by"], first["validator"], first["run_id"]) == (signer, 1, RUN_ID)
    assert [reason["scored"]["epoch"] for reason in first["reasons"]] == [0, 1]
    assert len(second["reasons"]) == 1
    assert main(["--evidence", str(kept)]) == 0
    assert f"signed this for hotkey {net.hotkey('m1')}" in capsys.readouterr().out


async def test_changed_evidence_is_no_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One other byte, and the signature does not hold: status 1, with the line."""
    async with network(tmp_path) as net:
        net.score("v1", net.work())
        kept = tmp_path / "reports.jsonl"
        save((await net.ask()).evidence, kept)
    assert shown(kept)[0].signed_by == net.hotkey("v1")
    first, rest = kept.read_text().split("\n", 1)
    item = json.loads(first)
    item["body"] = item["body"][:-8] + "AAAAfQ=="
    kept.write_text(json.dumps(item) + "\n" + rest)
    with pytest.raises(BadResponse, match=r"line 1: the answer in the evidence is not signed by"):
        shown(kept)
    assert main(["--evidence", str(kept)]) == 1
    assert "line 1" in capsys.readouterr().err


async def test_only_registered_hotkeys_are_answered(tmp_path: Path) -> None:
    """A stranger has nothing to ask, and is refused if it does; so is another run."""
    async with network(tmp_path) as net:
        net.score("v1", net.work())
        with pytest.raises(NotRegistered, match="nobody can have set weights for it"):
            await net.ask("stranger")
        target = Target(1, net.hotkey("v1"), "127.0.0.2", net.axons["v1"].port)
        async with Dendrite(net.wallets["stranger"].hotkey) as dendrite:
            assert (await dendrite.call(target, Report(run_id=RUN_ID), 5)).reason == "unregistered"
        async with Dendrite(net.wallets["m1"].hotkey) as dendrite:
            assert (await dendrite.call(target, Report(run_id="other-1"), 5)).reason == "wrong_run"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mine"], "--mine needs --run, the run file, and --netuid"),
        (["--mine", "--uid", "3"], "give one of --uid"),
        (["--mine", "--run", "x", "--netuid", "1", "--epochs", "99"], "--epochs must lie between 1 and 16"),
        (["--evidence"], "--evidence needs the files"),
        (["--evidence", "/nowhere"], "give a file that --save wrote"),
    ],
)
def test_bad_questions_are_status_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line."""
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
