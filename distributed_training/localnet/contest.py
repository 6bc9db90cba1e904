"""Mechanism 1 in a localnet: miners submit strategies, every validator judges them in sandboxes and pays the best.

The arena's own commands do all of it, as processes beside the neurons: `submit --wait` for each entry, one after the
other, so that who copies comes later; `contest` for each validator. This file starts them and follows what they tell.
A localnet that goes on later submits nothing again: the judges go on with the champion that they have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed_training.localnet.network import HOTKEY, NETUID, Network
from distributed_training.localnet.processes import Command, Processes
from distributed_training.localnet.tail import Tail
from distributed_training.localnet.view import ChainNow
from template.chain.commitments import Commitment
from template.chain.metagraph import Metagraph
from template.errors import ConfigurationError

MECHANISM = 1
ENTRIES = ("good", "better", "copied")  # runs/contests/entries, in the order in which they are submitted
READY_SECONDS = 300.0
SHOW_SECONDS = 120.0
WHOLE = 0.999  # a weight of 1, as the chain keeps it
ARENA = (sys.executable, "-m", "distributed_training.arena")


@dataclass
class Judge:
    """What is known of one validator's contest. `result`: the newest round that somebody took part in, as its file has
    it; `paid`: the hotkey that it last set weights for, "" to burn them, None before it did."""

    name: str
    uid: int
    folder: Path
    result: Mapping[str, Any] | None = None
    paid: str | None = None
    postponed: str = ""

    @property
    def champion(self) -> str:
        """The hotkey that it should pay, "" for nobody's."""
        return "" if self.result is None else self.result["throne"]["hotkey"] or ""

    @property
    def is_done(self) -> bool:
        """It has judged, and set the weights that follow from that."""
        return self.result is not None and self.paid == self.champion


@dataclass
class Contest:
    """One contest among the neurons of a network; `problems` is what went wrong, each a line for a person."""

    network: Network
    spec: Path
    entries: Path
    judges: dict[str, Judge] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    started: int = 0  # entries
    asked_at: int = 0  # block at which the last of them was started

    def __post_init__(self) -> None:
        layout = self.network.layout
        self.entrants = [name for name in layout.miner_names if name not in layout.kinds][: len(ENTRIES)]
        assert len(self.entrants) == len(ENTRIES), "the configuration sees to it that there are enough"
        for name in layout.validator_names:
            folder = self.network.folder.resolve() / name / "contest"
            self.judges[f"{name}/contest"] = Judge(name, layout.uids[name], folder)

    def open(self) -> None:
        """Begin, or go on with what an earlier localnet in this folder has left."""
        for judge in self.judges.values():
            for path in sorted((judge.folder / "rounds").glob("*.json"), key=lambda path: int(path.stem)):
                self._take_result(judge, path)
        if all(self._sealed(number).exists() for number in range(len(ENTRIES))):
            self.started = len(ENTRIES)
        self._tail = Tail({name: judge.folder / "events.jsonl" for name, judge in self.judges.items()})
        self._tail.skip_existing()

    def start(self, processes: Processes) -> None:
        """The judges."""
        for name, judge in self.judges.items():
            arguments = ["contest", "--state", judge.folder, "--telemetry.jsonl", judge.folder / "events.jsonl"]
            processes.start(self._command(name, judge.name, judge.folder, *arguments))

    @property
    def is_handed_in(self) -> bool:
        """Whether all entries are on their way."""
        return self.started == len(ENTRIES)

    def listen(self) -> None:
        """Take in what the judges told since the last time."""
        for name, record in self._tail.read():
            self._take(self.judges[name], record)

    def hand_in(self, processes: Processes, graph: Metagraph, committed: Mapping[str, Commitment]) -> None:
        """Start the next entry, if the one before is on the chain. `committed`: the last commitment by hotkey."""
        if self.started:
            before = committed.get(graph.hotkeys[self._uid(self.started - 1)])
            if before is None or before.block < self.asked_at:
                return
        number, self.started, self.asked_at = self.started, self.started + 1, graph.block
        entrant, folder = self.entrants[number], self._sealed(number).parent
        source = self.entries / f"{ENTRIES[number]}.py"
        arguments = ["submit", str(source), "--sealed", self._sealed(number), "--wait"]
        processes.start(self._command(f"{entrant}/contest", entrant, folder, *arguments))

    def ends_well(self, name: str, status: int) -> bool:
        """Whether a process that has ended was to: who submitted is done when its source is revealed."""
        return status == 0 and name.removesuffix("/contest") in self.entrants

    def is_settled(self, chain: ChainNow) -> bool:
        """Every validator has judged, its weights are on the chain, and Yuma has paid whom they are for."""
        if not all(judge.is_done for judge in self.judges.values()):
            return False
        champion = self.champion_uid(chain)
        return champion is None or (self._is_whole(chain, champion) and chain.metagraph.incentive[champion] > 0)

    def champion_uid(self, chain: ChainNow) -> int | None:
        """Of the first validator's champion; None if there is none."""
        return chain.metagraph.uid_of(next(iter(self.judges.values())).champion)

    def missing(self, chain: ChainNow) -> list[str]:
        """What a contest that went well would have and this one has not."""
        problems = [
            f"{judge.name} has not decided the contest in time{judge.postponed and f' ({judge.postponed})'}: read "
            f"{judge.folder / 'log.txt'}"
            for judge in self.judges.values()
            if judge.result is None
        ]
        champions = {judge.champion for judge in self.judges.values()}
        if len(champions) > 1:
            problems.append(f"the validators have {len(champions)} different champions: {', '.join(sorted(champions))}")
        champion = self.champion_uid(chain)
        if not problems and champion is not None and not self._is_whole(chain, champion):
            problems.append(f"the weights of mechanism {MECHANISM} are not all of uid {champion}")
        return [*self.problems, *problems]

    def status(self) -> str:
        """One line for a person."""
        if all(judge.is_done for judge in self.judges.values()):
            return "contest: decided and paid"
        decided = [judge.name for judge in self.judges.values() if judge.result is not None]
        if decided:
            return f"contest: decided by {', '.join(decided)}"
        return f"contest: {self.started} of {len(ENTRIES)} entries handed in"

    def summary(self, chain: ChainNow) -> dict[str, Any]:
        """Plain JSON: champion, standings of the first validator, and the weights and incentive of mechanism 1."""
        first, graph = next(iter(self.judges.values())), chain.metagraph
        result = first.result
        return {
            "contest": None if result is None else result["contest"],
            "round": None if result is None else result["round"]["number"],
            "champion": self.champion_uid(chain),
            "standings": [] if result is None else [self._row(s, chain) for s in result["standings"]],
            "weights": {str(v): {str(uid): w for uid, w in row.items()} for v, row in chain.weights.items()},
            "incentive": {str(uid): paid for uid, paid in enumerate(graph.incentive) if paid > 0},
            "records": str(first.folder / "records"),
            "budget": None if result is None else result["spec"]["trial"]["budget"],
        }

    def _row(self, standing: Mapping[str, Any], chain: ChainNow) -> dict[str, Any]:
        uid = chain.metagraph.uid_of(standing["hotkey"])
        names = {self._uid(number): entry for number, entry in enumerate(ENTRIES)}
        shown = {key: standing[key] for key in ("hotkey", "source", "status", "metric")}
        reason = standing["reason"]
        for name, number in self.network.layout.uids.items():
            reason = reason.replace(chain.metagraph.hotkeys[number], name)
        return {"uid": uid, "entry": None if uid is None else names.get(uid), "reason": reason, **shown}

    def _uid(self, number: int) -> int:
        return self.network.layout.uids[self.entrants[number]]

    def _sealed(self, number: int) -> Path:
        return self.network.folder.resolve() / self.entrants[number] / "contest" / f"{ENTRIES[number]}.sealed"

    def _is_whole(self, chain: ChainNow, champion: int) -> bool:
        return all(chain.weights.get(j.uid, {}).get(champion, 0.0) >= WHOLE for j in self.judges.values())

    def _take(self, judge: Judge, record: Mapping[str, Any]) -> None:
        match record["kind"]:
            case "ContestDecided":
                self._take_result(judge, Path(record["result"]))
            case "ContestWeightsSet" if record["outcome"] == "set":
                judge.paid = record["champion"] or ""
            case "ContestPostponed":
                judge.postponed = record["reason"]
            case "ContestVoid":
                self.problems.append(
                    f"{judge.name}: round {record['round']} of the contest is void: {record['reason']}"
                )

    def _take_result(self, judge: Judge, path: Path) -> None:
        found = json.loads(path.read_text())
        if found["standings"]:
            judge.result = found

    def _command(self, name: str, neuron: str, folder: Path, *arguments: object) -> Command:
        home = self.network.folder.resolve()
        options = {
            "contest": self.spec.resolve(),
            "netuid": NETUID,
            "place": home / "reveals",
            "parent": os.getpid(),
            "subtensor.network": self.network.chain_url,
            "wallet.name": neuron,
            "wallet.hotkey": HOTKEY,
            "wallet.path": home / "wallets",
        }
        given = [*map(str, arguments), *(str(part) for key, value in options.items() for part in (f"--{key}", value))]
        return Command(name, [*ARENA, *given], folder)


def require_ready(spec: Path, root: Path) -> str:
    """Ask the arena whether the contest's text is here and a sandbox works; its answer, one line.

    Raises:
        ConfigurationError: not so; nothing was started.
    """
    done = _arena(root, READY_SECONDS, "ready", "--contest", str(spec.resolve()))
    if done.returncode:
        raise ConfigurationError(f"--contest: {' '.join(done.stderr.split()).removeprefix('error: ')}")
    return done.stdout.strip()


def leaderboard(summary: Mapping[str, Any], root: Path, columns: int) -> str:
    """The arena's table of all trials of the first validator, references among them; empty if there are none."""
    if summary["budget"] is None:
        return ""
    given = ("leaderboard", summary["records"], "--budget", str(summary["budget"]))
    done = _arena(root, SHOW_SECONDS, *given, COLUMNS=str(columns))
    return done.stdout if done.returncode == 0 else done.stderr


def _arena(root: Path, seconds: float, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of the arena's, to its end."""
    return subprocess.run(
        [*ARENA, *arguments],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
