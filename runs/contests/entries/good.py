"""A good entry: Muon between the exchanges, and every eighth step the mean of all parameters."""

import dataclasses

from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import Strategy
from distributed_training.strategies.local_sgd import FedAvg
from distributed_training.strategies.muon import Muon


def strategy(optimizer: OptimizerSpec) -> Strategy:
    """FedAvg over Muon."""
    careful = dataclasses.replace(optimizer, learning_rate=0.006, minimum_learning_rate=0.0006)
    return FedAvg(inner=Muon(careful), period=8)
