"""Strategies of the live subnet by the name that a run spec gives them (catalogue.py has those of the arena)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distributed_training.run import RunSpec
from distributed_training.strategies.base import SharedUpdate
from distributed_training.strategies.gradient_averaging import GradientAveraging
from template.errors import ConfigurationError

STRATEGIES: Mapping[str, Callable[[RunSpec], SharedUpdate]] = {
    "gradient-averaging": lambda spec: GradientAveraging(spec.optimizer),
}


def find_strategy(spec: RunSpec) -> SharedUpdate:
    """The strategy of a run.

    Raises:
        ConfigurationError: no strategy of that name, hyperparameters that it refuses, or overlap where it allows none.
    """
    try:
        make = STRATEGIES[spec.strategy]
    except KeyError:
        raise ConfigurationError(
            f"unknown strategy '{spec.strategy}'; known: {', '.join(sorted(STRATEGIES))}"
        ) from None
    strategy = make(spec)
    if spec.epoch.overlap and not strategy.allows_overlap:
        raise ConfigurationError(
            f"epoch.overlap must be false: the strategy '{spec.strategy}' averages only what was made at the state "
            "that it is applied to"
        )
    return strategy
