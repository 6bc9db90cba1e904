"""Rounds on a real embedded chain: commitments, reveals, trials, judgement, and the weights of mechanism 1."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bittensor import Client

from distributed_training.arena.contest.audit import judged_again
from distributed_training.arena.contest.bench import Runner, open_bench
from distributed_training.arena.contest.places import FolderPlace
from distributed_training.arena.contest.referee import Referee
from distributed_training.arena.contest.spec import ContestSpec, round_numbered
from distributed_training.arena.contest.state import StateFile
from distributed_training.arena.contest.submission import Submission, new_salt, revealed
from distributed_training.arena.contest.validator import ContestValidator
from distributed_training.arena.corpus import Corpus
from distributed_training.arena.simulator import Outcome, Plan
from distributed_training.run import OptimizerSpec
from template.chain.commitments import publish_commitment
from template.chain.connect import connect
from template.chain.local import operator
from template.chain.local.genesis import Registration, create_chain
from template.chain.local.ledger import Ledger
from template.chain.metagraph import read_weights
from template.clock import ManualClock
from template.errors import ChainFault, HubUnavailable, StrategyError, SubmissionError
from template.telemetry import MemorySink, Telemetry
from tests.arena.contest.material import contest, trusted
from tests.arena.small import write_text
from tests.template.chain.conftest import wallet_of

IMPORTS = """
import dataclasses
from distributed_training.strategies.data_parallel import DataParallel
from distributed_training.strategies.inner import AdamW
from distributed_training.strategies.local_sgd import Apart, FedAvg
"""
GOOD = (
    IMPORTS + "def strategy(optimizer):\n"
    "    faster = dataclasses.replace(optimizer, learning_rate=0.006, minimum_learning_rate=0.001)\n"
    "    return DataParallel(inner=AdamW(faster))\n"
).encode()
BETTER = (
    IMPORTS + "def strategy(optimizer):\n"
    "    settings = {**vars(optimizer), 'learning_rate': max(0.02, 4 * optimizer.learning_rate)}\n"
    "    settings |= {'warmup_epochs': 0} if settings['decay_epochs'] > 1 else {}\n"
    "    return FedAvg(inner=AdamW(type(optimizer)(**settings)), period=1)\n"
).encode()
MOODY = (
    IMPORTS + "import os\n"
    "def strategy(optimizer):\n"
    "    rate = 0.02 + int.from_bytes(os.urandom(4)) / 1e13\n"
    "    mood = {'learning_rate': rate, 'minimum_learning_rate': 0.0, 'warmup_epochs': 0}\n"
    "    return FedAvg(inner=AdamW(dataclasses.replace(optimizer, **mood)), period=1)\n"
).encode()
SILENT = (IMPORTS + "def strategy(optimizer):\n    return Apart(inner=AdamW(optimizer))\n").encode()
BROKEN = b"def strategy(optimizer):\n    raise ValueError('no strategy today')\n"


@dataclass
class Scene:
    """Owner (uid 0), validator v (1), miners m1 (2) and m2 (3); rounds of 20 blocks from block 10 on."""

    folder: Path
    client: Client
    spec: ContestSpec
    runs: list[int]
    sink: MemorySink

    async def until(self, block: int) -> None:
        with Ledger(self.folder / "chain.db") as ledger:
            operator.advance(ledger, block - await self.client.block())

    async def commit(self, round_number: int, contest_id: str = "", **sources: bytes) -> None:
        """Miners commit in a round that is open, and reveal at once where nobody looks before it has closed."""
        for name, source in sources.items():
            hotkey = wallet_of(name).keys.hotkey
            made = Submission(
                contest_id=contest_id or self.spec.contest_id,
                netuid=1,
                round=round_number,
                hotkey=hotkey,
                salt=new_salt(),
                source=source,
            )
            await publish_commitment(self.client, wallet_of(name), 1, made.commitment)  # type: ignore[arg-type]
            FolderPlace(Path(self.spec.reveals.place)).put(round_number, hotkey, revealed(made))

    def runner(self, source: bytes, optimizer: OptimizerSpec, plan: Plan, corpus: Corpus) -> Outcome:
        self.runs.append(plan.seed)
        try:
            return trusted(source, optimizer, plan, corpus)
        except ValueError as error:
            raise StrategyError(str(error)) from error

    def validator(self, runner: Runner | None = None, name: str = "v") -> ContestValidator:
        """One that knows what is in its folder: a new one is a restart."""
        folder = self.folder / name
        state = StateFile(folder / "state.json")
        state.open(self.spec.contest_id, 0)
        bench = open_bench(self.spec, folder / "records", runner or self.runner)
        return ContestValidator(
            uid=1,
            netuid=1,
            spec=self.spec,
            client=self.client,
            wallet=wallet_of(name),  # type: ignore[arg-type]
            referee=Referee(bench, folder),
            place=FolderPlace(Path(self.spec.reveals.place)),
            state=state,
            results=folder / "rounds",
            telemetry=Telemetry([self.sink]),
            clock=ManualClock(),
        )

    def told(self, kind: str) -> list[Any]:
        return [record for record in self.sink.records if record["kind"] == kind]

    def statuses(self) -> dict[str, str]:
        """Of the last round."""
        names = {wallet_of(name).keys.hotkey: name for name in ("m1", "m2", "v", "owner")}
        return {names[s["hotkey"]]: s["status"] for s in self.told("ContestDecided")[-1]["standings"]}

    async def weights(self, mechid: int = 1) -> dict[int, float]:
        return (await read_weights(self.client, 1, mechid)).get(1, {})


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    (folder / "text").mkdir()
    write_text(folder / "text")
    neurons = [Registration(wallet_of("v").keys, 1000.0), *(Registration(wallet_of(n).keys) for n in ("m1", "m2"))]
    create_chain(
        folder / "chain.db",
        owner=wallet_of("owner").keys,
        neurons=neurons,
        block_seconds=12.0,
        tempo=20,
        manual=True,
    )
    async with connect(f"local://{folder / 'chain.db'}") as client:
        yield Scene(folder, client, contest(folder), [], MemorySink())


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of these tests is 30 kB."""
    monkeypatch.setattr("distributed_training.arena.contest.bench.PAGE", 512)


async def test_a_round_from_commitment_to_weights(tmp_path: Path) -> None:
    """Two strategies train faster than the references, the better one gets all the weight; mechanism 0 is untouched."""
    async with scene(tmp_path) as play:
        validator = play.validator()
        await play.until(29)  # round 0 has no entry
        await validator.look()
        assert play.told("ContestDecided")[-1]["champion"] is None
        assert await play.weights() == {0: 1.0}  # burned
        await play.until(31)  # round 1
        await play.commit(1, m1=GOOD, m2=BETTER)
        await play.until(41)
        await validator.look()
        assert len(play.told("ContestClosed")[-1]["committed"]) == 2
        assert len(play.told("ContestDecided")) == 1  # the sources are not due yet
        await play.until(43)
        await validator.look()
        assert play.statuses() == {"m1": "surpassed", "m2": "champion"}
        assert await play.weights() == {3: 1.0}
        assert await play.weights(0) == {}


async def test_the_round_is_written_down(tmp_path: Path) -> None:
    """Seeds, standings with intervals, and a record of each trial under its source's hash."""
    async with scene(tmp_path) as play:
        await play.until(11)
        await play.commit(0, m1=GOOD, m2=BROKEN)
        await play.until(23)
        await play.validator().look()
        found = json.loads((tmp_path / "v" / "rounds" / "0.json").read_text())
        assert found["contest"] == play.spec.contest_id
        assert len(found["seeds"]) == len(set(found["seeds"])) == 3
        winner = found["throne"]["source"]
        records = sorted(path.name for path in (tmp_path / "v" / "records").glob("*.json"))
        names = ["apart", "ddp", winner]
        assert records == sorted(f"{name}-{seed}.json" for name in names for seed in found["seeds"])
        assert (tmp_path / "v" / "sources" / f"{winner}.py").read_bytes() == GOOD
        assert {s["status"] for s in found["standings"]} == {"champion", "failed"}
        assert any("no strategy today" in s["reason"] for s in found["standings"])
        result = tmp_path / "v" / "rounds" / "0.json"
        assert judged_again(result) == ()
        result.write_text(result.read_text().replace('"failed"', '"beaten"'))
        assert judged_again(result) == ("standings",)


async def test_the_champion_is_defended_on_new_seeds(tmp_path: Path) -> None:
    """A copy by another hotkey earns nothing; a better one dethrones; a restart in between forgets nothing."""
    async with scene(tmp_path) as play:
        await play.until(11)
        await play.commit(0, m1=GOOD)
        await play.until(23)
        await play.validator().look()
        assert await play.weights() == {2: 1.0}
        await play.until(31)
        await play.commit(1, m2=GOOD)
        await play.until(43)
        await play.validator().look()
        assert play.statuses() == {"m2": "duplicate"}
        await play.until(51)
        await play.commit(2, m2=BETTER)
        await play.until(63)
        await play.validator().look()
        assert play.statuses() == {"m2": "champion"}
        seeds = [tuple(record["seeds"]) for record in play.told("ContestDecided")]
        assert len(set(seeds)) == 3
        assert await play.weights() == {3: 1.0}


async def test_a_record_that_nobody_could_verify_wins_nothing(tmp_path: Path) -> None:
    """A source that draws from the system's randomness: it ends elsewhere when it is run again."""
    async with scene(tmp_path) as play:
        await play.until(11)
        await play.commit(0, m1=MOODY, m2=GOOD)
        await play.until(23)
        await play.validator().look()
        assert play.statuses() == {"m1": "failed", "m2": "champion"}
        assert "ended elsewhere" in play.told("ContestDecided")[-1]["standings"][0]["reason"]
        assert judged_again(tmp_path / "v" / "rounds" / "0.json") == ()


async def test_a_champion_that_is_late_stays_champion(tmp_path: Path) -> None:
    """It may be the machine that is slow; one that breaks off on the new seeds has lost its throne."""
    async with scene(tmp_path) as play:
        await play.until(11)
        await play.commit(0, m1=GOOD)
        await play.until(23)
        await play.validator().look()
        await play.until(31)
        await play.commit(1, m2=BROKEN)
        await play.until(43)

        def stopped(reason: str) -> Runner:
            def run(source: bytes, optimizer: OptimizerSpec, plan: Plan, corpus: Corpus) -> Outcome:
                raise SubmissionError(f"it was {reason}", reason=reason)

            return run

        await play.validator(stopped("late")).look()
        assert play.told("ContestPostponed")[-1]["reason"] == "it was late"
        await play.validator(stopped("failed")).look()
        assert play.told("ContestDecided")[-1]["champion"] is None
        assert await play.weights() == {2: 1.0}  # the chain takes no others so soon
        await play.until(await play.client.block() + 10)
        await play.validator().look()
        assert await play.weights() == {0: 1.0}


async def test_a_restart_in_the_middle_of_a_round(tmp_path: Path) -> None:
    """Trials that are on disk are not run again, and the commitments are those that were read at the deadline."""
    async with scene(tmp_path) as play:
        await play.until(11)
        await play.commit(0, m1=GOOD)
        await play.until(23)

        def dying(source: bytes, optimizer: OptimizerSpec, plan: Plan, corpus: Corpus) -> Outcome:
            if len(play.runs) == 2:
                raise ChainFault("the machine goes down")
            return play.runner(source, optimizer, plan, corpus)

        await play.validator(dying).look()
        assert play.told("ContestPostponed")[-1]["reason"] == "the machine goes down"
        assert (await play.weights()) == {0: 1.0}
        before = len(play.runs)
        await play.validator().look()
        assert play.statuses() == {"m1": "champion"}
        assert len(play.runs) - before == 2  # the third seed, and the first once more: can it be verified?


async def test_another_validator_comes_to_the_same(tmp_path: Path) -> None:
    """From the chain and the reveals alone, to the bit."""
    async with scene(tmp_path) as play:
        await play.until(11)
        await play.commit(0, m1=GOOD)
        await play.until(23)
        for name in ("v", "owner"):
            await play.validator(name=name).look()
        one, other = (json.loads((tmp_path / name / "rounds" / "0.json").read_text()) for name in ("v", "owner"))
        assert one == other


async def test_what_does_not_take_part(tmp_path: Path) -> None:
    """Too late, for another round, not revealed, not what was committed; one that tells nobody anything."""
    async with scene(tmp_path) as play:
        await play.until(11)
        await play.commit(1, v=GOOD)  # not open yet
        await play.commit(0, m1=SILENT, m2=GOOD)
        text = (tmp_path / "reveals" / "0" / f"{wallet_of('m2').keys.hotkey}.json").read_text()
        FolderPlace(tmp_path / "reveals").put(0, wallet_of("m2").keys.hotkey, text.replace("0.006", "0.007"))
        await play.commit(0, "another-contest", owner=GOOD)
        await play.until(18)
        await play.commit(0, v=GOOD)  # closed
        await play.until(23)
        await play.validator().look()
        assert play.statuses() == {"m1": "no_communication", "m2": "refused", "owner": "refused"}
        assert await play.weights() == {0: 1.0}


async def test_a_full_round_takes_those_that_came_first(tmp_path: Path) -> None:
    """By the block of the commitment; the others are not run."""
    async with scene(tmp_path) as play:
        play.spec = dataclasses.replace(play.spec, rules=dataclasses.replace(play.spec.rules, entries=1))
        await play.until(11)
        await play.commit(0, m2=SILENT)
        await play.commit(0, m1=GOOD)
        await play.until(23)
        await play.validator().look()
        assert play.statuses() == {"m2": "no_communication", "m1": "refused"}
        assert "full" in play.told("ContestDecided")[-1]["standings"][1]["reason"]
        assert len(play.runs) == 1


async def test_a_place_that_is_silent_costs_nobody_anything(tmp_path: Path) -> None:
    """The round is taken up again; when the next one's turn has come it is void, and the champion stays."""
    async with scene(tmp_path) as play:
        await play.until(11)
        await play.commit(0, m1=GOOD)
        await play.until(23)
        validator = play.validator()
        validator._place = Silent()
        await validator.look()
        assert "silent" in play.told("ContestPostponed")[-1]["reason"]
        assert round_numbered(play.spec.calendar, 1).revealed == 42
        await play.until(42)
        await validator.look()
        assert play.told("ContestVoid")[-1]["round"] == 0
        assert not play.told("ContestDecided")


class Silent:
    """A place that does not answer."""

    def put(self, round_number: int, hotkey: str, text: str) -> None:
        raise HubUnavailable("silent")

    def get(self, round_number: int, hotkey: str, largest: int) -> bytes | None:
        raise HubUnavailable("silent")


async def test_a_champion_that_has_left_is_not_paid(tmp_path: Path) -> None:
    """Its uid is another's now: the weight is burned, though it keeps the throne."""
    async with scene(tmp_path) as play:
        await play.until(11)
        await play.commit(0, m1=GOOD)
        await play.until(23)
        validator = play.validator()
        await validator.look()
        assert await play.weights() == {2: 1.0}
        with Ledger(tmp_path / "chain.db") as ledger:
            limit = [("max_allowed_uids", 4), ("immunity_period", 0)]
            for name, value in limit:
                operator.apply(ledger, lambda s, n=name, v=value: operator.set_hyperparameter(s, 1, n, v))  # type: ignore[misc]
            operator.apply(ledger, lambda state: operator.fund(state, wallet_of("new").keys.coldkey, 10.0))
            operator.apply(ledger, lambda state: operator.register(state, 1, wallet_of("new").keys))
        await play.until(await play.client.block() + 60)
        validator._state.save(dataclasses.replace(validator._state.now, round=99))
        await validator.look()
        champion = validator._state.now.champion
        assert champion is not None
        assert champion.hotkey == wallet_of("m1").keys.hotkey
        assert await play.weights() == {0: 1.0}
