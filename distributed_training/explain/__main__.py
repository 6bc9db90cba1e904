"""`python -m distributed_training.explain`: why a miner's weight is what it is.

    python -m distributed_training.explain --uid 3 [--epoch 7] [--json] LOG...
    python -m distributed_training.explain --replay LOG...
    python -m distributed_training.explain --mine --run runs/nano.toml --netuid 1 --wallet.name W [--save FILE]
    python -m distributed_training.explain --evidence FILE...

LOG is a validator's event log (`--telemetry.jsonl`); without one, those of the localnet. `--mine` asks the validators
for the scores of the wallet's hotkey, and `--save` keeps what they signed; `--evidence` checks such a file without
anybody's help. Exit status: 0 if every number was found again, 1 if one was not or a signature does not hold (it is
named), 2 if what was asked for is not there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from distributed_training.explain import text
from distributed_training.explain.account import account, replay_log
from distributed_training.explain.log import read_log
from distributed_training.explain.mine import Mine, ask, save, shown
from distributed_training.run import load_run
from distributed_training.scoring.report import MAX_REPORTED
from template.chain.connect import connect
from template.chain.wallet import WalletConfig, open_wallet
from template.config import HelpRequested, option, parse
from template.console import print_error, print_text
from template.errors import BadResponse, ConfigurationError, CorruptState, StateError, SubnetError

ROOT = Path(__file__).parents[2]
LOCALNET = ROOT / ".localnet"
PLAIN_WIDTH = 160  # where output goes to a file
FALSE = "the numbers do not bear each other out"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """With --mine: the chain."""

    # a neuron's flag of the same name; its own section would load all that it takes to train
    network: str = option("finney, test, ws://host:port, or local:///path/chain.db", default="finney")


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """What to explain: one of --uid, --replay, --mine and --evidence."""

    log: tuple[Path, ...] = option(
        "event logs of validators (with --evidence: saved reports); default: those of the localnet",
        default=(),
        positional=True,
    )
    uid: int | None = option("the miner", default=None)
    epoch: int | None = option("the epoch; default: the last that was scored", default=None)
    replay: bool = option("compute every weight of the logs again", default=False)
    mine: bool = option("ask the validators about the wallet's hotkey", default=False)
    evidence: bool = option("check reports that --save kept", default=False)
    run_id: str | None = option("which run, where a log holds several", default=None)
    json: bool = option("print JSON", default=False)
    run: Path | None = option("with --mine: the run file", default=None)
    netuid: int | None = option("with --mine: the subnet's number on the chain", default=None)
    epochs: int = option("with --mine: how many epochs to ask for", default=1)
    save: Path | None = option("with --mine: append what the validators signed to this file", default=None)

    def __post_init__(self) -> None:
        if (self.uid is not None) + self.replay + self.mine + self.evidence != 1:
            raise ConfigurationError(
                "give one of --uid (of the miner whose weight is to be explained), --replay, --mine and --evidence"
            )
        if self.mine and (self.run is None or self.netuid is None):
            raise ConfigurationError("--mine needs --run, the run file, and --netuid, the subnet's number")
        if self.evidence and not self.log:
            raise ConfigurationError("--evidence needs the files that --save wrote")
        if not 1 <= self.epochs <= MAX_REPORTED:
            raise ConfigurationError(f"--epochs must lie between 1 and {MAX_REPORTED}")

    @property
    def logs(self) -> tuple[Path, ...]:
        """The logs to read; ConfigurationError if there is none."""
        found = self.log or tuple(sorted(LOCALNET.glob("validator-*/events.jsonl")))
        if not found:
            raise ConfigurationError(f"no log was given, and no localnet is in {LOCALNET}: name a validator's log")
        return found


class Explainer:
    """One call of the command."""

    def __init__(self, config: ExplainConfig, chain: NetworkConfig, wallet: WalletConfig, console: Console) -> None:
        self._config = config
        self._chain = chain
        self._wallet = wallet
        self._console = console

    def run(self) -> int:
        """Do what was asked for; the exit status if nothing was in the way."""
        if self._config.mine:
            return self._mine()
        if self._config.evidence:
            return self._evidence()
        return self._logs()

    def _logs(self) -> int:
        for path in self._config.logs:
            log = read_log(path, self._config.run_id)
            if log.torn:
                print_error(f"the last line of {path} is torn and left out: its writer is at work, or was killed")
            if self._config.uid is None:
                self._print(replay_log(log), lambda found: text.show_replayed(self._console, str(log.path), found))  # noqa: B023  called at once
            else:
                found = account(log, self._config.uid, self._config.epoch)
                self._print(found, lambda found: text.show(self._console, found))
        return 0

    def _mine(self) -> int:
        mine = asyncio.run(self._ask())
        if self._config.save is not None:
            save(mine.evidence, self._config.save)
        self._print(dataclasses.replace(mine, evidence=()), lambda mine: text.show_mine(self._console, mine))
        false = [judged for judged in mine.judged if judged.problem]
        for judged in false:
            print_error(f"validator {judged.validator}: {FALSE}: {judged.problem}")
        return 1 if false else 0

    async def _ask(self) -> Mine:
        config, keys = self._config, self._wallet
        assert config.run is not None, "checked by the configuration"
        assert config.netuid is not None, "checked by the configuration"
        run_id = load_run(config.run).run_id
        wallet = open_wallet(keys.name, keys.hotkey, keys.path)
        async with connect(self._chain.network) as client:
            return await ask(client, wallet, config.netuid, run_id, config.epoch, config.epochs)

    def _evidence(self) -> int:
        for path in self._config.log:
            for report in shown(path):
                self._print(report, lambda report: text.show_report(self._console, report))
        return 0

    def _print(self, value: Any, show: Callable[[Any], None]) -> None:
        if self._config.json:
            print_text(json.dumps(dataclasses.asdict(value)) + "\n")
        else:
            show(value)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: see above."""
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PLAIN_WIDTH)
    try:
        found: Mapping[str, Any] = parse(
            {"": ExplainConfig, "subtensor": NetworkConfig, "wallet": WalletConfig},
            argv,
            prog="python -m distributed_training.explain",
            description="Show how a miner's weight came about, and compute it again.",
        )
        return Explainer(found[""], found["subtensor"], found["wallet"], console).run()
    except HelpRequested as request:
        print_text(str(request))
        return 0
    except (StateError, BadResponse) as error:
        print_error(str(error) if isinstance(error, CorruptState | BadResponse) else f"{FALSE}: {error}")
        return 2 if isinstance(error, CorruptState) else 1
    except SubnetError as error:
        print_error(str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
