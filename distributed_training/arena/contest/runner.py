"""How the contest runs a stranger's source: in a sandbox, and nowhere else."""

from __future__ import annotations

import torch

from distributed_training.arena.contest.bench import Runner
from distributed_training.arena.corpus import Corpus
from distributed_training.arena.sandbox.backends import Backend, find_backend
from distributed_training.arena.sandbox.limits import Limits
from distributed_training.arena.sandbox.submission import run_submission
from distributed_training.arena.simulator import Outcome, Plan
from distributed_training.run import OptimizerSpec

CPU = torch.device("cpu")


def sandboxed(limits: Limits, backend: Backend | None = None) -> Runner:
    """A runner with a sandbox; the backend is looked for when it is needed first, if none is given.

    The runner raises SandboxUnavailable where none works, and else what `run_submission` does.
    """

    def run(source: bytes, optimizer: OptimizerSpec, plan: Plan, corpus: Corpus) -> Outcome:
        return run_submission(source, optimizer, plan, corpus, CPU, backend or find_backend(), limits)

    return run
