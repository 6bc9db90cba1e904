"""`python -m distributed_training.explain`: why a miner's weight is what it is.

    python -m distributed_training.explain --uid 3 [--epoch 7] [--json] LOG...
    python -m distributed_training.explain --replay LOG...

LOG is a validator's event log (`--telemetry.jsonl`); without one, those of the localnet. Exit status: 0 if every number
was found again, 1 if one was not (it is named), 2 if what was asked for is not there.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from distributed_training.explain import text
from distributed_training.explain.account import account, replay_log
from distributed_training.explain.log import Log, read_log
from template.config import HelpRequested, option, parse
from template.console import print_error, print_text
from template.errors import ConfigurationError, CorruptState, StateError, SubnetError

ROOT = Path(__file__).parents[2]
LOCALNET = ROOT / ".localnet"
PLAIN_WIDTH = 160  # where output goes to a file


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """What to explain."""

    log: tuple[Path, ...] = option(
        "event logs of validators; default: those of the localnet", default=(), positional=True
    )
    uid: int | None = option("the miner", default=None)
    epoch: int | None = option("the epoch; default: the last that was scored", default=None)
    replay: bool = option("compute every weight of the logs again", default=False)
    run_id: str | None = option("which run, where a log holds several", default=None)
    json: bool = option("print JSON", default=False)

    def __post_init__(self) -> None:
        if self.uid is None and not self.replay:
            raise ConfigurationError("give --uid of the miner whose weight is to be explained, or --replay")

    @property
    def logs(self) -> tuple[Path, ...]:
        """The files to read; ConfigurationError if there is none."""
        found = self.log or tuple(sorted(LOCALNET.glob("validator-*/events.jsonl")))
        if not found:
            raise ConfigurationError(
                f"no log was given, and there is no localnet in {LOCALNET}: name a validator's log"
            )
        return found


def run(config: ExplainConfig, console: Console) -> None:
    """Explain, or replay, each of the logs."""
    for path in config.logs:
        log = read_log(path, config.run_id)
        if log.torn:
            print_error(
                f"the last line of {path} is not complete and is left out: its writer is at work, or was killed"
            )
        if config.replay:
            _replay(log, config, console)
        else:
            assert config.uid is not None, "checked by the configuration"
            found = account(log, config.uid, config.epoch)
            _print(config, console, found, lambda: text.show(console, found))  # noqa: B023  called at once


def _replay(log: Log, config: ExplainConfig, console: Console) -> None:
    found = replay_log(log)
    _print(config, console, found, lambda: text.show_replayed(console, str(log.path), found))


def _print(config: ExplainConfig, console: Console, value: object, show: Callable[[], None]) -> None:
    if not config.json:
        show()
        return
    assert dataclasses.is_dataclass(value)
    assert not isinstance(value, type)
    print_text(json.dumps(dataclasses.asdict(value)) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: see above."""
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PLAIN_WIDTH)
    try:
        config: ExplainConfig = parse(
            {"": ExplainConfig},
            argv,
            prog="python -m distributed_training.explain",
            description="Show how a miner's weight came about, and compute it again.",
        )[""]
        run(config, console)
    except HelpRequested as request:
        print_text(str(request))
        return 0
    except CorruptState as error:
        print_error(str(error))
        return 2
    except StateError as error:
        print_error(f"the log does not bear out its own numbers: {error}")
        return 1
    except SubnetError as error:
        print_error(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
