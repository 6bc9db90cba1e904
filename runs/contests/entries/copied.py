"""What a plagiarist hands in: `better.py` with other names, words and numbers. The contest pays nothing for it."""

from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import Strategy
from distributed_training.strategies.diloco import DiLoCo
from distributed_training.strategies.muon import Muon

HIGHEST = 0.015
SHARE = 0.12


def strategy(optimizer: OptimizerSpec) -> Strategy:
    """All my own work."""
    numbers = {**vars(optimizer), "learning_rate": HIGHEST, "minimum_learning_rate": SHARE * HIGHEST}
    muon = Muon(OptimizerSpec(**numbers))
    return DiLoCo(
        inner=muon,
        period=11,
        outer_learning_rate=0.75,
        outer_momentum=0.45,
        codec="int2-block512",
        feedback=1.0,
    )
