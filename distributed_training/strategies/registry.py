"""Strategies of the live subnet by the name that a run spec gives them (catalogue.py has those of the arena).

strategy = "gradient-averaging"          or          [strategy]
                                                     name = "diloco"
                                                     outer_learning_rate = 0.7
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from distributed_training.averaging.codecs.names import TopKName, parse_pair
from distributed_training.protocol import MAX_MARKS
from distributed_training.run import OptimizerSpec, ReplaySpec, RunSpec
from distributed_training.strategies.checks import require
from distributed_training.strategies.gradient_averaging import GradientAveraging
from distributed_training.strategies.hyperparameters import Value, settled
from distributed_training.strategies.inner import AdamW, Inner
from distributed_training.strategies.muon import Muon
from distributed_training.strategies.outer_descent import OuterDescent
from distributed_training.strategies.shared import SharedUpdate
from template.errors import ConfigurationError

_ELSEWHERE = {  # hyper-parameters in the simulator that the live subnet has in other sections
    "period": "an epoch is as many inner steps as it has micro-batches: set data.pages_per_epoch, "
    "data.pages_per_micro_batch and epoch.target_samples",
    "codec": "set averaging.codec",
}


@dataclass(frozen=True)
class Entry:
    """How a strategy is made of a run spec and its hyper-parameters, of which `defaults` lists all."""

    make: Callable[[RunSpec, Mapping[str, Value]], SharedUpdate]
    defaults: Mapping[str, Value] = field(default_factory=dict)


def _gradient_averaging(spec: RunSpec, settings: Mapping[str, Value]) -> SharedUpdate:
    return GradientAveraging(spec.optimizer)


def _outer(
    spec: RunSpec, settings: Mapping[str, Value], make_inner: Callable[[OptimizerSpec], Inner] = AdamW
) -> OuterDescent:
    return OuterDescent(
        optimizer=spec.optimizer,
        make_inner=make_inner,
        learning_rate=float(settings.get("outer_learning_rate", 1.0)),
        momentum=float(settings.get("outer_momentum", 0.0)),
        feedback=float(settings.get("feedback", 1.0)),
    )


def _muloco(spec: RunSpec, settings: Mapping[str, Value]) -> OuterDescent:
    return _outer(spec, settings, Muon)


def _sparseloco(spec: RunSpec, settings: Mapping[str, Value]) -> OuterDescent:
    feedback = float(settings["feedback"])
    require(
        _is_sparse(spec),
        f"averaging.codec must be sparse for sparseloco, for example topk32-int2-block512+int8-block256; found "
        f"'{spec.averaging.codec}'",
    )
    require(0 < feedback <= 1, f"strategy.feedback must lie in (0, 1], the share of what is owed; found {feedback}")
    require(spec.averaging.error_feedback, "averaging.error_feedback must be true for sparseloco: most is sent later")
    return _outer(spec, settings)


def _is_sparse(spec: RunSpec) -> bool:
    return isinstance(parse_pair(spec.averaging.codec).parts, TopKName)


_NESTEROV = {"outer_learning_rate": 0.7, "outer_momentum": 0.9}
STRATEGIES: Mapping[str, Entry] = {
    "gradient-averaging": Entry(_gradient_averaging),
    "diloco": Entry(_outer, _NESTEROV),
    "muloco": Entry(_muloco, _NESTEROV),
    "fedavg": Entry(_outer),
    "sparseloco": Entry(_sparseloco, {"outer_learning_rate": 1.0, "feedback": 0.95}),
}


def find_strategy(spec: RunSpec) -> SharedUpdate:
    """The strategy of a run.

    Raises:
        ConfigurationError: no strategy of that name, hyper-parameters that it does not have or refuses, or other
            sections of the run spec that contradict it; the message names the remedy.
    """
    try:
        entry = STRATEGIES[spec.strategy]
    except KeyError:
        raise ConfigurationError(
            f"unknown strategy '{spec.strategy}'; known: {', '.join(sorted(STRATEGIES))}"
        ) from None
    for key in spec.hyperparameters.keys() & _ELSEWHERE.keys():
        raise ConfigurationError(f"strategy '{spec.strategy}' has no '{key}' in a run spec: {_ELSEWHERE[key]}")
    strategy = entry.make(spec, settled(spec.strategy, entry.defaults, spec.hyperparameters))
    _require_consistent(spec, strategy)
    return strategy


def _most_marks(spec: RunSpec, replay: ReplaySpec) -> int:
    """Before the first step, after each stretch, and at the end."""
    return spec.data.pages_per_epoch // spec.data.pages_per_micro_batch // replay.stretch + 2


def _require_consistent(spec: RunSpec, strategy: SharedUpdate) -> None:
    name, steps = spec.strategy, strategy.inner(0) is not None
    require(
        not spec.epoch.overlap or strategy.allows_overlap,
        f"epoch.overlap must be false: the strategy '{name}' averages only what was made at the state that it is "
        "applied to",
    )
    require(
        not steps or spec.audit.replay is not None,
        f"[audit.replay] is missing: what a miner's own steps led to can be checked only from states that it has "
        f"committed to, so the strategy '{name}' needs stretch, share and tolerance",
    )
    require(
        spec.audit.replay is None or _most_marks(spec, spec.audit.replay) <= MAX_MARKS,
        f"audit.replay.stretch is too short: miners can commit to {MAX_MARKS} states an epoch",
    )
    require(
        steps or spec.audit.replay is None,
        f"[audit.replay] must be left out: the strategy '{name}' has no inner steps to replay",
    )
    require(
        not steps or name == "sparseloco" or not _is_sparse(spec),
        f"averaging.codec '{spec.averaging.codec}' is sparse: take the strategy sparseloco",
    )
