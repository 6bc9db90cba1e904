"""Mechanism 1 in a localnet, as it is followed from what the judges tell: no process is started here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from distributed_training.localnet.contest import ENTRIES, Contest, require_ready
from distributed_training.localnet.network import open_network
from distributed_training.localnet.processes import Command, Processes
from distributed_training.localnet.summary import contest_table
from distributed_training.localnet.view import ChainNow
from template.chain.commitments import Commitment
from template.errors import ConfigurationError
from tests.integration.subnet import ROOT, TINY
from tests.localnet.test_story import chain

SPEC = ROOT / "runs" / "contests" / "localnet.toml"
HOTKEYS = tuple(f"5{letter}" for letter in "oabcdefg")  # owner, two validators, then the miners


class Started(Processes):
    """Only writes down what would be started."""

    def __init__(self) -> None:
        super().__init__({}, ROOT)
        self.commands: list[Command] = []

    def start(self, command: Command) -> None:
        self.commands.append(command)


def contest(folder: Path) -> Contest:
    """Two validators, and four miners of which the last cheats."""
    network = open_network(folder / "net", TINY, 4, 2, ("nan",))
    made = Contest(network, SPEC, ROOT / "runs" / "contests" / "entries")
    made.open()
    return made


def now(weights: dict[int, dict[int, float]], block: int = 50) -> ChainNow:
    incentive = tuple(float(uid in next(iter(weights.values()), {})) for uid in range(len(HOTKEYS)))
    graph = dataclasses.replace(chain().metagraph, hotkeys=HOTKEYS, block=block, incentive=incentive)
    return ChainNow(graph, weights)


def tell(made: Contest, name: str, **record: Any) -> None:
    """A judge writes an event."""
    path = made.judges[name].folder / "events.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    made.listen()


def decide(made: Contest, name: str, champion: str | None) -> None:
    """A judge is done with round 0, and pays."""
    path = made.judges[name].folder / "rounds" / "0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    standing = {"hotkey": "5d", "source": "f0", "status": "champion", "reason": "gain over 5c [3 %]", "metric": 2.5}
    result = {
        "contest": "localnet-1",
        "round": {"number": 0},
        "spec": {"trial": {"budget": 3.0}},
        "throne": {"hotkey": champion},
        "standings": [standing],
    }
    path.write_text(json.dumps(result))
    tell(made, name, kind="ContestDecided", result=str(path))
    tell(made, name, kind="ContestWeightsSet", outcome="set", champion=champion)


JUDGES = ("validator-1/contest", "validator-2/contest")


def test_entries_are_handed_in_one_after_the_other(tmp_path: Path) -> None:
    """By honest miners, each when the one before is on the chain, so that who copies comes later."""
    made, processes = contest(tmp_path), Started()
    made.start(processes)
    assert [command.name for command in processes.commands] == list(JUDGES)
    graph = now({}).metagraph
    early = {"5c": Commitment(49, b"of an earlier localnet")}
    for committed in ({}, {}, early, early | {"5c": Commitment(50, b"")}, {}):
        made.hand_in(processes, graph, committed)
    started = processes.commands[2:]
    assert [command.name for command in started] == ["miner-1/contest", "miner-2/contest"]
    assert [Path(command.arguments[4]).stem for command in started] == ["good", "better"]
    made.hand_in(processes, graph, {"5d": Commitment(51, b"")})
    assert made.is_handed_in
    assert made.ends_well("miner-1/contest", 0)
    assert not made.ends_well("miner-1/contest", 2)
    assert not made.ends_well("validator-1/contest", 0)


def test_it_is_over_when_all_weights_are_the_champion_s(tmp_path: Path) -> None:
    """Both judges have decided and paid, and what they set is on the chain."""
    made = contest(tmp_path)
    for name in JUDGES:
        assert not made.is_settled(now({1: {4: 1.0}, 2: {4: 1.0}}))
        tell(made, name, kind="ContestWeightsSet", outcome="set", champion=None)  # burned, before the round is decided
        decide(made, name, "5d")
    assert not made.is_settled(now({1: {4: 1.0}}))
    paid = now({1: {4: 1.0}, 2: {4: 1.0}})
    assert made.is_settled(paid)
    assert made.missing(paid) == []
    found = made.summary(paid)
    assert (found["champion"], found["incentive"], found["standings"][0]["entry"]) == (4, {"4": 1.0}, "better")
    console = Console(width=160, record=True)
    console.print(contest_table(found))
    text = console.export_text()
    assert "champion is uid 4" in text
    assert "gain over miner-1 [3 %]" in text  # by the neuron's name


def test_what_went_wrong_is_named(tmp_path: Path) -> None:
    """A judge that never decides, with the last reason; a void round; two champions; weights that are elsewhere."""
    made = contest(tmp_path)
    tell(made, JUDGES[0], kind="ContestPostponed", reason="no sandbox works here")
    assert any("validator-1 has not" in p and "no sandbox works here" in p for p in made.missing(now({})))
    for name in JUDGES:
        decide(made, name, "5d")
    assert "weights of mechanism 1" in made.missing(now({1: {4: 1.0}, 2: {5: 1.0}}))[0]
    decide(made, JUDGES[1], "5e")
    assert "2 different champions" in made.missing(now({}))[0]
    tell(made, JUDGES[0], kind="ContestVoid", round=1, reason="too slow")
    assert "round 1 of the contest is void: too slow" in made.missing(now({}))[0]


def test_a_localnet_that_goes_on_keeps_its_champion(tmp_path: Path) -> None:
    """Nothing is handed in again, and the judges need not decide again."""
    first = contest(tmp_path)
    for name in JUDGES:
        decide(first, name, "5d")
    for miner, entry in zip(("miner-1", "miner-2", "miner-3"), ENTRIES, strict=True):
        path = tmp_path / "net" / miner / "contest" / f"{entry}.sealed"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    again = contest(tmp_path)
    paid = now({1: {4: 1.0}, 2: {4: 1.0}})
    assert again.is_handed_in
    assert not again.is_settled(paid)
    for name in JUDGES:
        tell(again, name, kind="ContestWeightsSet", outcome="set", champion="5d")
    assert again.is_settled(paid)


def test_a_machine_that_cannot_judge_is_told_so(tmp_path: Path) -> None:
    """Before anything is started, in the arena's own words."""
    text = SPEC.read_text().replace('text = "runs/contests/text"', f'text = "{tmp_path}"')
    (tmp_path / "contest.toml").write_text(text)
    with pytest.raises(ConfigurationError, match="--contest: the corpus has 1 pages of 32768 bytes"):
        require_ready(tmp_path / "contest.toml", ROOT)
