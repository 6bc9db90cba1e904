"""A long log with all that happens in a subnet: every weight in it, and on the chain, is found again to the bit."""

from __future__ import annotations

import json
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distributed_training.explain.__main__ import main
from distributed_training.explain.account import account, replay_log
from distributed_training.explain.log import read_log
from distributed_training.scoring.bandwidth import Measured
from distributed_training.scoring.combine import Evidence, Outcome, advance
from distributed_training.scoring.explain import score_epoch
from distributed_training.scoring.participation import Standing
from distributed_training.validator.memory import MemoryFile, Remembered
from distributed_training.validator.paymaster import Paymaster
from template.chain.connect import connect
from template.chain.local import operator
from template.chain.local.genesis import Registration, create_chain
from template.chain.local.ledger import Ledger
from template.chain.metagraph import read_metagraph
from template.chain.weights import read_held
from template.clock import ManualClock
from template.telemetry import JsonlSink, Telemetry
from tests.roles import Chain
from tests.scoring.evidence import FAILED, RULES, audit, evidence, silent
from tests.template.chain.conftest import DevWallet, wallet_of

MINERS = 10
EPOCHS = 60


@dataclass
class Life:
    """A validator (uid 1) that scores and pays on a real chain. Miners hold uids 2 to 11, one of them comes late."""

    folder: Path
    paymaster: Paymaster
    view: Chain
    telemetry: Telemetry
    memory: Remembered
    rng: random.Random
    names: dict[int, str] = field(default_factory=dict)

    def happens(self, uid: int) -> Evidence:
        """Some of everything."""
        hotkey = self.names[uid]
        transfers = (Measured(bytes=self.rng.randint(1, 10**7), seconds=self.rng.uniform(0.1, 9.0)),)
        honest = evidence(uid, self.rng.randint(1, 500), hotkey=hotkey, transfers=transfers)
        return self.rng.choices(
            (
                honest,
                replace(honest, audits=(audit(agreement=self.rng.uniform(0.9, 1.0), uid=uid), audit(uid=uid))),
                replace(honest, standings=(Standing.FAILED, Standing.DELIVERED)),
                replace(honest, standings=(Standing.LEFT_OUT,)),
                replace(honest, audits=(FAILED,)),
                replace(honest, transfers=()),
                replace(honest, audits=()),
                replace(silent(uid), hotkey=hotkey),
                Evidence(uid=uid, hotkey=hotkey, unobserved="the corpus could not be read"),
            ),
            weights=(56, 10, 8, 4, 3, 6, 4, 4, 5),
        )[0]

    async def epoch(self, number: int) -> None:
        """Hotkeys come and are replaced; most miners are sampled; weights are set every few epochs."""
        metagraph = self.view.metagraph
        for uid in range(2, 2 + MINERS - (number < 20)):
            if uid not in self.names or self.rng.random() < 0.02:
                self.names[uid] = f"hotkey-{uid}-{number}"
        hotkeys = (*metagraph.hotkeys[:2], *(self.names.get(uid, f"nobody-{uid}") for uid in range(2, 2 + MINERS)))
        self.view.metagraph = replace(metagraph, hotkeys=hotkeys)
        seen = [self.happens(uid) for uid in self.names if self.rng.random() < 0.8]
        before = self.memory.now.book
        after, rows = advance(before, number, self.names, seen, RULES)
        await self.memory.change(book=after)
        self.telemetry.emit(score_epoch(before, after, rows, RULES))
        if number % 4 == 3:
            await self.pay()

    async def pay(self) -> None:
        """After a hotkey was lost that is still in the book."""
        left = self.rng.randrange(2, 2 + MINERS)
        hotkeys = tuple("somebody" if uid == left else h for uid, h in enumerate(self.view.metagraph.hotkeys))
        self.view.metagraph = replace(self.view.metagraph, hotkeys=hotkeys)
        with Ledger(self.folder / "chain.db") as ledger:
            operator.advance(ledger, 10)
        await self.paymaster.pay()


@asynccontextmanager
async def life(folder: Path, wallet: DevWallet, seed: int) -> AsyncIterator[Life]:
    """Goes on with the memory and the log that are in the folder."""
    path, sink = folder / "chain.db", JsonlSink(folder / "events.jsonl")
    telemetry = Telemetry([sink])
    memory = Remembered(MemoryFile(folder / "validator.json"), "run-1", telemetry)
    async with connect(f"local://{path}") as client:
        view = Chain(await read_metagraph(client, 1))
        paymaster = Paymaster(
            uid=1,
            spec=replace(RULES.scoring, version_key=0),
            netuid=1,
            chain=view,
            client=client,
            wallet=wallet,  # type: ignore[arg-type]
            memory=memory,
            telemetry=telemetry,
            clock=ManualClock(),
        )
        yield Life(folder, paymaster, view, telemetry, memory, random.Random(seed))
    telemetry.close()


async def live(folder: Path, seed: int = 0) -> None:
    """All epochs, with a restart in the middle."""
    wallet = wallet_of("v")
    neurons = [Registration(wallet.keys, 1000.0), *(Registration(wallet_of(f"m{n}").keys) for n in range(MINERS))]
    path = folder / "chain.db"
    create_chain(path, owner=wallet_of("owner").keys, neurons=neurons, block_seconds=12.0, tempo=20, manual=True)
    with Ledger(path) as ledger:
        operator.advance(ledger, 25)
    names: dict[int, str] = {}
    for part in range(2):
        async with life(folder, wallet, seed + part) as at:
            at.names = names
            for number in range(part * EPOCHS // 2, (part + 1) * EPOCHS // 2):
                await at.epoch(number)


def by_hand(log: list[dict[str, Any]]) -> list[dict[int, float]]:
    """The weights after each epoch by design.md's formula, written down once more from the raw evidence."""
    state: dict[tuple[int, str], dict[str, Any]] = {}
    found = []
    for event in log:
        now: dict[tuple[int, str], dict[str, Any]] = {}
        for row in event["rows"]:
            seen, key = row["evidence"], (row["evidence"]["uid"], row["evidence"]["hotkey"])
            old = state.get(key, {"ema": 0.0, "b": None, "until": -1})
            now[key] = one_by_hand(seen, old, event["epoch"])
        state, total = now, math.fsum(entry["ema"] for entry in now.values())
        found.append({uid: entry["ema"] / total for (uid, _), entry in state.items()} if total else {})
    return found


def one_by_hand(seen: dict[str, Any], old: dict[str, Any], epoch: int) -> dict[str, Any]:
    rates = sorted(t["bytes"] / t["seconds"] for t in seen["transfers"])
    b = min(1.0, rates[0] / 1e6) if rates else old["b"]
    g = min((a["agreement"] for a in seen["audits"]), default=None)
    if any(not a["passed"] for a in seen["audits"]):
        return {"ema": 0.0, "b": b, "until": epoch + 3}
    counted = [s for s in seen["standings"] if s in ("delivered", "asked, did not deliver", "did not answer")]
    p = counted.count("delivered") / len(counted) if counted else None
    left_out = p is None and "left out by the leader" in seen["standings"]
    unaudited = g is None and seen["steps"]["samples"] > 0
    score = (1.0 if g is None else g) * seen["steps"]["samples"] * (1.0 if b is None else 1.0 - 0.2 + 0.2 * b)
    averaged = (1.0 - 0.2) * old["ema"] + 0.2 * (score * (1.0 if p is None else p))
    if epoch <= old["until"]:
        return {"ema": 0.0, "b": b, "until": old["until"]}
    if seen["unobserved"]:
        averaged = old["ema"]
    return {"ema": min(old["ema"], averaged) if left_out or unaudited else averaged, "b": b, "until": old["until"]}


async def test_a_long_log_is_found_again_to_the_bit(tmp_path: Path) -> None:
    """Failures, penalties, newcomers, replaced hotkeys, a restart, and payments that the chain was read to hold."""
    await live(tmp_path)
    log = read_log(tmp_path / "events.jsonl")
    found = replay_log(log)
    assert (found.epochs, found.payments, found.restarts) == (EPOCHS, EPOCHS // 4, 0)
    outcomes = {row.outcome for event in log.scored for row in event.rows}
    assert outcomes == set(Outcome)
    assert found.miners > MINERS
    assert main(["--replay", str(log.path)]) == 0


async def test_the_weights_are_those_of_the_formula(tmp_path: Path) -> None:
    """An independent hand gets the same, bit for bit, for every miner in every epoch."""
    await live(tmp_path, seed=7)
    records = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    scored = [record for record in records if record["kind"] == "EpochScored"]
    ours = [{row["evidence"]["uid"]: row["weight"] for row in event["rows"]} for event in scored]
    assert ours == by_hand(scored)


async def test_the_chain_holds_what_the_log_says(tmp_path: Path) -> None:
    """The last payment's u16, and none to a hotkey that had lost its uid."""
    await live(tmp_path, seed=3)
    log = read_log(tmp_path / "events.jsonl")
    async with connect(f"local://{tmp_path}/chain.db") as client:
        held = await read_held(client, wallet_of("v").keys.hotkey, 1)
    paid = [record for record in map(json.loads, log.path.read_text().splitlines()) if record["kind"] == "WeightsSet"]
    assert {record["outcome"] for record in paid} == {"set"}
    assert {int(uid): value for uid, value in paid[-1]["stored"].items()} == held.row
    assert any(record["departed"] for record in paid)
    assert all(str(uid) not in record["weights"] for record in paid for uid in record["departed"])
    known = next(row.evidence.uid for row in log.scored[-1].rows if str(row.evidence.uid) in paid[-1]["stored"])
    assert account(log, known).chain[-1].stored == held.row[known]
