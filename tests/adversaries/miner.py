"""A real miner with one part replaced: `python -m tests.adversaries.miner --adversary.kind lazy ...miner flags...`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from typing import Any

from distributed_training import node
from distributed_training.averaging import averager, exchange, reducer, round, wire_exhibits
from distributed_training.averaging.codecs import floating
from distributed_training.composition import honest_engine, open_miner
from distributed_training.invitation import Reason, refuse
from distributed_training.miner import miner
from distributed_training.settings import Settings
from template.console import set_up_logging
from template.errors import ConfigurationError, Refused
from template.neuron import Ending, main, run_neuron
from template.telemetry import open_telemetry
from tests.adversaries.engines import ENGINES

HOUR = 3600.0


def _send_unfit() -> None:
    """An honest averager would refuse to send it, and so would its codec."""
    round._require_fit = lambda *_: None
    floating.require_within = lambda *_: None


def _withhold() -> None:
    """Takes the averages and sends no part."""
    exchange.Exchange._send_part = lambda *_: None  # type: ignore[method-assign]


def _never_come() -> None:
    """Agrees to every round and opens no stream."""

    async def run(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(HOUR)

    averager.Averager.run = run  # type: ignore[method-assign]


def _lie_as_reducer() -> None:
    """Gives everybody, itself included, minus three times the average of its share."""
    honest = reducer.Reducer._encode

    def encode(self: reducer.Reducer, mean: Any) -> memoryview:
        mean *= -3
        return honest(self, mean)

    reducer.Reducer._encode = encode  # type: ignore[method-assign]


def _show_nothing() -> None:
    """Shows no validator what it sent in a round."""

    async def serve(*_: Any) -> None:
        return

    wire_exhibits.Showcase.serve = serve  # type: ignore[method-assign]


def _make_excuses() -> None:
    """Refuses every round with a reason that is no fault."""

    async def take_part(*_: Any) -> Any:
        raise refuse(Reason.NOTHING_TO_GIVE, "nothing was trained")

    node.Node.take_part = take_part  # type: ignore[method-assign]


def _be_silent() -> None:
    """Never says that it is alive."""

    async def is_alive(*_: Any) -> Any:
        raise Refused("busy", status=503, reason="busy")

    node.Node._is_alive = is_alive  # type: ignore[method-assign]


def _be_secretive() -> None:
    """Shows its records to nobody."""

    async def report(*_: Any) -> Any:
        raise Refused("busy", status=503, reason="busy")

    miner.Miner.report = report  # type: ignore[method-assign]


SABOTAGES: Mapping[str, Callable[[], None]] = {
    "withholding": _withhold,
    "never-comes": _never_come,
    "lying-reducer": _lie_as_reducer,
    "shows-nothing": _show_nothing,
    "excuses": _make_excuses,
    "silent": _be_silent,
    "secretive": _be_secretive,
}
UNFIT = ("nan", "infinite")


def _kind(argv: list[str]) -> tuple[str, list[str]]:
    known = (*ENGINES, *SABOTAGES)
    if len(argv) < 2 or argv[0] != "--adversary.kind" or argv[1] not in known:
        raise ConfigurationError(f"the first flag must be --adversary.kind with one of {', '.join(known)}")
    return argv[1], argv[2:]


async def start() -> Ending:
    kind, argv = _kind(sys.argv[1:])
    if kind in UNFIT:
        _send_unfit()
    if kind in SABOTAGES:
        SABOTAGES[kind]()
    settings = Settings.from_command_line("adversary", f"A miner that is a {kind}.", argv)
    set_up_logging(settings.logging)
    telemetry = open_telemetry(settings.telemetry)
    try:
        return await run_neuron(
            lambda tasks: open_miner(settings, telemetry, tasks, ENGINES.get(kind, honest_engine)),
            telemetry=telemetry,
            config=settings.neuron,
        )
    finally:
        telemetry.close()


if __name__ == "__main__":
    sys.exit(main(start))
