"""Run a validator: `python neurons/validator.py --help` lists the flags; scripts/run_validator.sh shows a call."""

from __future__ import annotations

import sys

from distributed_training.composition import open_validator
from distributed_training.settings import validator_settings
from template.console import set_up_logging
from template.neuron import Ending, main, run_neuron
from template.telemetry import open_telemetry


async def start() -> Ending:
    settings, config = validator_settings("validator", "Audit the miners, lead the averaging and set weights.")
    set_up_logging(settings.logging)
    telemetry = open_telemetry(settings.telemetry)
    try:
        return await run_neuron(
            lambda tasks: open_validator(settings, config, telemetry, tasks),
            telemetry=telemetry,
            config=settings.neuron,
        )
    finally:
        telemetry.close()


if __name__ == "__main__":
    sys.exit(main(start))
