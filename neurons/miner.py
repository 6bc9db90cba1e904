"""Run a miner: `python neurons/miner.py --help` lists the flags; scripts/run_miner.sh shows a call."""

from __future__ import annotations

import sys

from distributed_training.composition import open_miner
from distributed_training.settings import Settings
from template.console import set_up_logging
from template.neuron import Ending, main, run_neuron
from template.telemetry import open_telemetry


async def start() -> Ending:
    settings = Settings.from_command_line("miner", "Train the subnet's model and be paid for it.")
    set_up_logging(settings.logging)
    telemetry = open_telemetry(settings.telemetry)
    try:
        return await run_neuron(
            lambda tasks: open_miner(settings, telemetry, tasks), telemetry=telemetry, config=settings.neuron
        )
    finally:
        telemetry.close()


if __name__ == "__main__":
    sys.exit(main(start))
