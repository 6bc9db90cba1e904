"""A better one: Muon between the exchanges, an outer optimiser over them, and two bits a value with error feedback."""

from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import Strategy
from distributed_training.strategies.diloco import DiLoCo
from distributed_training.strategies.muon import Muon

PEAK = 0.016
LAST = 0.1  # of it


def strategy(optimizer: OptimizerSpec) -> Strategy:
    """MuLoCo, exchanged as 2-bit values."""
    settings = {**vars(optimizer), "learning_rate": PEAK, "minimum_learning_rate": LAST * PEAK}
    inner = Muon(OptimizerSpec(**settings))
    return DiLoCo(
        inner=inner,
        period=10,
        outer_learning_rate=0.8,
        outer_momentum=0.5,
        codec="int2-block512",
        feedback=1.0,
    )
