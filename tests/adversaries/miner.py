"""A real miner with one part replaced: `python -m tests.adversaries.miner --adversary.kind lazy ...miner flags...`."""

from __future__ import annotations

import sys

from distributed_training.averaging import round
from distributed_training.averaging.codecs import floating
from distributed_training.composition import open_miner
from distributed_training.settings import Settings
from template.console import set_up_logging
from template.errors import ConfigurationError
from template.neuron import Ending, main, run_neuron
from template.telemetry import open_telemetry
from tests.adversaries.engines import ENGINES


def _kind(argv: list[str]) -> tuple[str, list[str]]:
    if len(argv) < 2 or argv[0] != "--adversary.kind" or argv[1] not in ENGINES:
        raise ConfigurationError(f"the first flag must be --adversary.kind with one of {', '.join(ENGINES)}")
    return argv[1], argv[2:]


async def start() -> Ending:
    kind, argv = _kind(sys.argv[1:])
    if kind == "nan":
        round._require_fit = lambda *_: None  # an honest averager would refuse to send it
        floating.require_within = lambda *_: None  # and so would its codec
    settings = Settings.from_command_line("adversary", f"A miner that is a {kind}.", argv)
    set_up_logging(settings.logging)
    telemetry = open_telemetry(settings.telemetry)
    try:
        return await run_neuron(
            lambda tasks: open_miner(settings, telemetry, tasks, ENGINES[kind]),
            telemetry=telemetry,
            config=settings.neuron,
        )
    finally:
        telemetry.close()


if __name__ == "__main__":
    sys.exit(main(start))
