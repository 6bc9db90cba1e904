"""A stranger's strategy in the simulator: one Python file, run in sandboxes, measured outside of them.

The file defines

    def strategy(optimizer: OptimizerSpec) -> Strategy: ...

where `Strategy` is the seam of strategies/base.py and `optimizer` says what the run gives everybody: the inner
optimiser's numbers, and the schedule over the run's steps (strategies/inner.py makes AdamW of it). It may import torch,
numpy, the standard library, and this project's strategies and codecs. The function is called once in each node's
process, with the same argument. Its code has no corpus, no model to run, no loss and no other node's anything: only
what `init`, `local`, `send` and `receive` are given. A clock cannot be hidden from it; the run's times come from
counted arithmetic and the ledger, outside, so that patching or reading one changes nothing.

The same file, optimiser, plan and number of threads give the same parameters to the bit, in a sandbox or out of it.

What remains: processes of one machine can signal to each other by how busy it is. That is slow, noisy and against the
rules, and no file system, memory or lock that two of them share can be used for it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable

import torch

from distributed_training.arena.corpus import Corpus
from distributed_training.arena.node import SimulatedNode
from distributed_training.arena.sandbox.backends import Backend, await_ready, canary, start
from distributed_training.arena.sandbox.limits import Limits
from distributed_training.arena.sandbox.node import SandboxedNode
from distributed_training.arena.simulator import Outcome, Plan, Simulator
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import Node
from template.clock import Clock, SystemClock
from template.errors import SubmissionError


def run_submission(
    source: bytes,
    optimizer: OptimizerSpec,
    plan: Plan,
    corpus: Corpus,
    device: torch.device,
    backend: Backend,
    limits: Limits | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    clock: Clock | None = None,
) -> Outcome:
    """Train `plan.nodes` nodes with the strategy that `source` defines, each in a sandbox of `backend`.

    When it returns or raises, none of their processes is left. `backend` is what `find_backend` found.

    Raises:
        SubmissionError: the submission failed, ended, was late, printed too much or answered what it must not.
        StrategyError: training diverged, or its messages do not fit together.
        SandboxUnavailable: a sandbox did not start; no line of the submission ran.
        ConfigurationError: the model cannot be built as asked.
    """
    limits, clock = limits or Limits(), clock or SystemClock()
    check_source(source, limits)
    wall = clock.monotonic() + limits.wall
    with contextlib.ExitStack() as stack:
        seen = stack.enter_context(canary())
        threads = torch.get_num_threads()
        processes = [
            stack.enter_context(start(backend, limits, seen, clock, threads=threads)) for _ in range(plan.nodes)
        ]
        for process in processes:
            await_ready(process, min(clock.monotonic() + limits.start, wall))

        def place(params: torch.Tensor, node: Node) -> SimulatedNode:
            sandboxed = SandboxedNode(processes[node.rank], limits, clock, wall, device)
            sandboxed.load(source, optimizer, params, node)
            return sandboxed

        return Simulator(place, plan, corpus, device).run(progress)


def check_source(source: bytes, limits: Limits) -> None:
    """Raise SubmissionError (reason `source`) for a file that is empty, too long or no UTF-8 text."""
    if not 0 < len(source) <= limits.source:
        raise SubmissionError(f"a submission has 1 to {limits.source} bytes; this one {len(source)}", reason="source")
    try:
        source.decode()
    except UnicodeDecodeError as error:
        raise SubmissionError("a submission is a text in UTF-8", reason="source") from error


def source_hash(source: bytes) -> str:
    """The name of a submission: its SHA-256, 64 hex digits."""
    return hashlib.sha256(source).hexdigest()
