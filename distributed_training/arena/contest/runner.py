"""How the contest runs a stranger's source: in the sandbox, and nowhere else."""

from __future__ import annotations

from distributed_training.arena.corpus import Corpus
from distributed_training.arena.simulator import Outcome, Plan
from distributed_training.run import OptimizerSpec
from template.errors import ConfigurationError


def run_sandboxed(source: bytes, optimizer: OptimizerSpec, plan: Plan, corpus: Corpus) -> Outcome:
    """One trial of a submission on the CPU.

    Raises:
        StrategyError: the source is to blame.
        ConfigurationError: there is no sandbox here that holds.
    """
    raise ConfigurationError("there is no sandbox on this machine: submissions are not run")
