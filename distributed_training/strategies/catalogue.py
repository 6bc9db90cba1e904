"""Every built-in strategy by name, with its inner optimiser and settings: `build("diloco", spec, {"period": 30})`."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import Strategy
from distributed_training.strategies.data_parallel import DataParallel
from distributed_training.strategies.demo import DeMo
from distributed_training.strategies.diloco import DiLoCo
from distributed_training.strategies.hyperparameters import Value, settled
from distributed_training.strategies.inner import AdamW, Inner
from distributed_training.strategies.local_sgd import Apart, FedAvg
from distributed_training.strategies.muon import Muon
from distributed_training.strategies.sparseloco import SparseLoCo
from distributed_training.strategies.sparta import Sparta
from distributed_training.strategies.streaming import StreamingDiLoCo
from template.errors import ConfigurationError


@dataclass(frozen=True)
class Entry:
    """A strategy: its class, its inner optimiser, and hyper-parameters that differ from the class's defaults."""

    make: Callable[..., Strategy]
    inner: Callable[[OptimizerSpec], Inner] = AdamW
    settings: Mapping[str, Value] = field(default_factory=dict)

    def hyperparameters(self) -> dict[str, Value]:
        """Names and values, as they are without options."""
        fields = dataclasses.fields(typing.cast("type[typing.Any]", self.make))
        return {f.name: self.settings.get(f.name, typing.cast(Value, f.default)) for f in fields if f.name != "inner"}


# Of what is not the papers' the reason is docs/strategies.md: after a few dozen exchanges an outer momentum of 0.9 has
# not yet come to its speed, and lags behind nodes that train apart.
_OUTER: Mapping[str, Value] = {"outer_momentum": 0.5}
_INT4: Mapping[str, Value] = {"codec": "int4-block64", "feedback": 1.0}
_INT2: Mapping[str, Value] = {"codec": "int2-block512", "feedback": 1.0}

CATALOGUE: Mapping[str, Entry] = {
    "apart": Entry(Apart),
    "ddp": Entry(DataParallel),
    "fedavg": Entry(FedAvg),
    "diloco": Entry(DiLoCo, settings=_OUTER),
    "diloco-int4": Entry(DiLoCo, settings={**_OUTER, **_INT4}),
    "diloco-int2": Entry(DiLoCo, settings={**_OUTER, **_INT2}),
    "muloco": Entry(DiLoCo, Muon, _OUTER),
    "muloco-int2": Entry(DiLoCo, Muon, {**_OUTER, **_INT2}),
    "streaming-diloco": Entry(StreamingDiLoCo),
    "sparseloco": Entry(SparseLoCo, settings={"outer_learning_rate": 2.0}),
    "sparta": Entry(Sparta),
    "demo": Entry(DeMo, settings={"decay": 0.95}),
}


def entry_named(name: str) -> Entry:
    """The entry of that name.

    Raises:
        ConfigurationError: there is none; the message names those that are.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise ConfigurationError(f"unknown strategy '{name}'; known: {', '.join(CATALOGUE)}") from None


def build(name: str, optimizer: OptimizerSpec, options: Mapping[str, Value]) -> Strategy:
    """The strategy `name` with `options` in place of its own hyper-parameters; text is converted.

    Raises:
        ConfigurationError: an unknown name, hyper-parameter or value, or values that contradict each other.
    """
    entry = entry_named(name)
    settings = settled(name, entry.hyperparameters(), options)
    make = functools.partial(entry.make, inner=entry.inner(optimizer))
    return make(**settings)
