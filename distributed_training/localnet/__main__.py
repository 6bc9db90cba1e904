"""`scripts/localnet`: a whole subnet on this machine, of real processes, and a picture of it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bittensor import Client
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from distributed_training.hub.build import HubConfig, build_hub
from distributed_training.localnet.contest import ENTRIES, MECHANISM, Contest, leaderboard, require_ready
from distributed_training.localnet.network import Network, open_network, remove
from distributed_training.localnet.plot import plot
from distributed_training.localnet.processes import Processes
from distributed_training.localnet.story import Story
from distributed_training.localnet.summary import contest_table, missing, summarize, table, write
from distributed_training.localnet.tail import Tail
from distributed_training.localnet.view import ChainNow, epoch_line, render
from distributed_training.settings import HubToken
from template.chain.commitments import read_commitments
from template.chain.connect import connect
from template.chain.metagraph import read_metagraph, read_weights
from template.clock import SystemClock
from template.config import HelpRequested, Secret, option, parse
from template.console import print_error, print_text
from template.errors import ConfigurationError, SubnetError
from template.telemetry import Telemetry

ROOT = Path(__file__).parents[2]
LOOK_SECONDS = 1.0
START_SECONDS = 120.0
EPOCH_SECONDS = 60.0  # of patience, for each epoch
SETTLE_SECONDS = 120.0
CONTEST_SECONDS = 1500.0  # more of patience with a contest
WIDE = 160  # columns of a table that goes into a file
KINDS = (  # tests/adversaries
    "free-rider",
    "lazy",
    "lazy-tenth",
    "copycat",
    "copycat-part",
    "plagiarist",
    "off-assignment",
    "same-page",
    "stale",
    "no-backward",
    "low-precision",
    "quantised",
    "replay",
    "overclaim",
    "nan",
    "infinite",
    "inflation",
    "sign-flip",
    "spike",
    "garbage",
    "honest-where-seen",
    "colluding-copies",
    "withholding",
    "never-comes",
    "lying-reducer",
    "shows-nothing",
    "excuses",
    "silent",
    "secretive",
)


@dataclass(frozen=True, kw_only=True)
class LocalnetConfig:
    """A whole subnet on this machine."""

    miners: int = option("how many miners", default=4)
    validators: int = option("how many validators", default=2)
    epochs: int = option("how many epochs to train", default=30)
    adversary: tuple[str, ...] = option(f"KIND[:COUNT], how many of the miners cheat: {', '.join(KINDS)}", default=())
    run: Path = option("run file", default=ROOT / "runs" / "nano.toml")
    folder: Path = option("where chain, keys, logs and models go", default=ROOT / ".localnet")
    contest: Path | None = option(
        "contest spec: run mechanism 1, too, with three strategies; runs/contests/localnet.toml is short", default=None
    )
    hub: str | None = option("where models go: hf://organisation/name or s3://bucket/prefix", default=None)
    hub_endpoint: str | None = option("address of that hub's API; default: the service's own", default=None)
    fresh: bool = option("start anew instead of going on from the last time", default=False)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigurationError("--epochs must be at least 1")
        if self.contest is not None and self.miners - len(self.kinds) < len(ENTRIES):
            raise ConfigurationError(f"--contest needs {len(ENTRIES)} honest miners: raise --miners")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each cheating miner."""
        return tuple(kind for text in self.adversary for kind in _kinds(text))


def _kinds(text: str) -> list[str]:
    kind, _, count = text.partition(":")
    if kind not in KINDS:
        raise ConfigurationError(f"--adversary {text}: unknown kind; known: {', '.join(KINDS)}")
    if count and not (count.isdigit() and int(count) > 0):
        raise ConfigurationError(f"--adversary {text}: the count must be a positive number, as in {kind}:2")
    return [kind] * int(count or 1)


class Localnet:
    """One run of the processes of a network."""

    def __init__(self, network: Network, config: LocalnetConfig, console: Console, token: Secret | None) -> None:
        self._network = network
        self._token = token
        self._config = config
        self._console = console
        self._story = Story()
        self._contest: Contest | None = None
        if config.contest is not None:
            self._contest = Contest(network, config.contest, ROOT / "runs" / "contests" / "entries")
        self._chain: ChainNow | None = None
        self._contest_chain: ChainNow | None = None  # of mechanism 1
        self._contest_told = ""
        self._started = time.monotonic()
        self._told = 0

    async def run(self) -> list[str]:
        """Run to the end and leave the results in the folder. Returns what went wrong, each with where to read on."""
        new = self._network.prepare()
        first = 0 if new else await _last_published(self._network.hub, self._token)
        self._told = first
        commands = self._network.commands(first + self._config.epochs)
        tail = Tail({command.name: command.events for command in commands})
        tail.skip_existing()
        problems: list[str] = []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with Processes(environment, ROOT) as processes, self._live() as live:
            for command in commands:
                processes.start(command)
            if self._contest is not None:
                self._contest.open()
                self._contest.start(processes)
            async with connect(self._network.chain_url) as client:
                async for _ in self._watch(tail, processes, problems, first):
                    self._chain = ChainNow(await read_metagraph(client, 1), await read_weights(client, 1, 0))
                    if self._contest is not None:
                        await self._follow(self._contest, client, processes)
                    self._show(live)
            problems += [f"{name} did not stop when asked; it was killed" for name in processes.stop_all()]
        for name, record in tail.read():
            self._story.take(name, record)
        return problems + self._finish(first)

    async def _watch(self, tail: Tail, processes: Processes, problems: list[str], first: int):  # type: ignore[no-untyped-def]
        """Yield once a look, until the run is over or has taken too long."""
        last = first + self._config.epochs
        deadline = self._started + START_SECONDS + EPOCH_SECONDS * self._config.epochs
        settled = None
        while not problems:
            for name, record in tail.read():
                self._story.take(name, record)
            for name, (command, status) in processes.ended().items():
                if self._contest is None or not self._contest.ends_well(name, status):
                    problems.append(f"{name} ended with status {status}: read {command.log}")
            yield
            now = time.monotonic()
            if self._story.epochs >= last:
                settled = settled or now + SETTLE_SECONDS
                is_judged = self._is_contest_over() or now > settled + CONTEST_SECONDS
                if is_judged and (self._is_settled(last) or now > settled):
                    return
            elif now > deadline:
                problems.append(
                    f"epoch {self._story.epochs} did not end in time: read the logs in {self._network.folder}"
                )
            await asyncio.sleep(LOOK_SECONDS)

    async def _follow(self, contest: Contest, client: Client, processes: Processes) -> None:
        """What mechanism 1 does on the chain now; the next entry, if it is its turn."""
        self._contest_chain = ChainNow(
            await read_metagraph(client, 1, MECHANISM), await read_weights(client, 1, MECHANISM)
        )
        contest.listen()
        if not contest.is_handed_in:
            graph = self._contest_chain.metagraph
            contest.hand_in(processes, graph, await read_commitments(client, 1, graph.block))

    def _is_contest_over(self) -> bool:
        """It has come to its end, or to something that went wrong; true as well if there is none."""
        if self._contest is None or self._contest_chain is None:
            return True
        return bool(self._contest.problems) or self._contest.is_settled(self._contest_chain)

    def _is_settled(self, last: int) -> bool:
        """The last epoch is scored and published, every honest miner has weights, and Yuma has paid it."""
        story, chain, layout = self._story, self._chain, self._network.layout
        assert chain is not None, "the chain was read before"
        validators = [layout.uids[name] for name in layout.validator_names]
        if last not in story.published or any(story.scored.get(v, -1) < last - 1 for v in validators):
            return False
        honest = [uid for name, uid in layout.uids.items() if name in layout.miner_names and name not in layout.kinds]
        weighed = all(chain.weights.get(v, {}).get(uid, 0) > 0 for v in validators for uid in honest)
        return weighed and all(chain.metagraph.incentive[uid] > 0 for uid in honest)

    def _live(self) -> Live:
        return Live(console=self._console, refresh_per_second=4, transient=False)

    def _show(self, live: Live) -> None:
        if self._console.is_terminal:
            seconds, more = time.monotonic() - self._started, self._contest.status() if self._contest else ""
            live.update(Group(render(self._story, self._chain, self._config.epochs, seconds), Text(more)))
            return
        if self._contest is not None and self._contest.status() != self._contest_told:
            self._contest_told = self._contest.status()
            self._console.print(self._contest_told, highlight=False)
        while self._told in self._story.held_out and self._told <= self._story.epochs:
            self._console.print(epoch_line(self._story, self._told), highlight=False)
            self._told += 1

    def _finish(self, first: int) -> list[str]:
        """Write summary and plot, print the closing table."""
        if self._chain is None:
            return []
        folder, layout = self._network.folder, self._network.layout
        seconds = time.monotonic() - self._started
        summary = summarize(
            self._story, self._chain, first_epoch=first, epochs=self._config.epochs, seconds=round(seconds, 1)
        )
        honest = {uid for name, uid in layout.uids.items() if name in layout.miner_names and name not in layout.kinds}
        problems = missing(summary, validators=layout.validators, honest=honest)
        if self._contest is not None and self._contest_chain is not None:
            problems += self._contest.missing(self._contest_chain)
            summary["contest"] = self._contest.summary(self._contest_chain)
        summary["faults"] = [*summary["faults"], *problems]
        names = {uid: layout.kinds.get(name, name) for name, uid in layout.uids.items() if name in layout.miner_names}
        plot(self._story, names, folder / "localnet.png")
        write(summary, folder / "summary.json")
        self._console.print(table(summary))
        if "contest" in summary:
            self._show_contest(summary["contest"])
        loss = [value for value in summary["held_out_loss"] if value is not None]
        if loss:
            self._console.print(f"held-out loss {loss[0]:.3f} -> {loss[-1]:.3f} nats per token, {seconds:.0f} s")
        self._console.print(f"summary {folder / 'summary.json'}  plot {folder / 'localnet.png'}", soft_wrap=True)
        return [*self._story.faults, *problems]

    def _show_contest(self, found: Mapping[str, Any]) -> None:
        self._console.print(contest_table(found))
        columns = self._console.width if self._console.is_terminal else WIDE
        self._console.print(leaderboard(found, ROOT, columns), markup=False, highlight=False, soft_wrap=True)


async def _last_published(config: HubConfig, token: Secret | None) -> int:
    """The epoch that an earlier run reached: a resumed localnet counts from there."""
    hub = build_hub(config, token=token, telemetry=Telemetry(), clock=SystemClock())
    return max(await hub.epochs(), default=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all went well, 1 something is named that did not, 2 bad arguments, 130 interrupted."""
    console = Console()
    try:
        description = "Runs a whole subnet on this machine."
        sections = {"": LocalnetConfig, "secret": HubToken}
        found = parse(sections, argv, prog="scripts/localnet", description=description)
        config: LocalnetConfig = found[""]
        if config.contest is not None:
            console.print(require_ready(config.contest, ROOT), soft_wrap=True, highlight=False)
        if config.fresh:
            remove(config.folder)
        network = open_network(
            config.folder, config.run, config.miners, config.validators, config.kinds, config.hub, config.hub_endpoint
        )
        problems = asyncio.run(Localnet(network, config, console, found["secret"].token).run())
    except HelpRequested as wanted:
        print_text(str(wanted))
        return 0
    except SubnetError as error:
        print_error(str(error))
        return 2
    except KeyboardInterrupt:
        print_error("interrupted; all processes were stopped")
        return 130
    for problem in problems:
        print_error(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
