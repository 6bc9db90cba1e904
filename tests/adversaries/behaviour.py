"""What a neuron may do otherwise than an honest one: one object says which of its parts are replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distributed_training.composition import honest_engine
from distributed_training.data.loader import Loader
from distributed_training.engine.engine import Engine
from distributed_training.run import RunSpec
from tests.adversaries.subnet.hall import Line
from tests.adversaries.subnet.wire import Handler

if TYPE_CHECKING:
    pass


class Behaviour:
    """Honest. A cheat overrides one of these.

    `pace`: seconds that a micro-batch takes it, of those that it takes an honest miner with the same machine.
    """

    name = "honest"
    harmful = False
    pace = 1.0

    def engine(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> Engine:
        """What trains."""
        return honest_engine(spec, loader, uid, device)

    def line(self, rate: float) -> Line:
        """What it does in rounds."""
        return Line(rate)

    def train_handler(self, uid: int, honest: Handler, world: Any) -> Handler:
        """What answers `Train`."""
        return honest

    def alive_handler(self, uid: int, honest: Handler, world: Any) -> Handler:
        """What answers `IsAlive`."""
        return honest

    def round_handler(self, uid: int, honest: Handler, world: Any) -> Handler:
        """What answers `AllReduce`."""
        return honest


HONEST = Behaviour()
