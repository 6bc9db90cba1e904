"""The record of a run: everything needed to run it again, and what came of it, as one JSON object (`VERSION`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distributed_training.arena.corpus import Corpus
from distributed_training.arena.ledger import Ledger, Traffic
from distributed_training.arena.links import Link, simulated_seconds
from distributed_training.arena.simulator import Outcome, Plan
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.hyperparameters import Value

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was run, on a model by name: a built-in strategy with all its hyper-parameters, or a submission, of which
    `submission` is the SHA-256 and `sandbox` the kind of its sandbox. `optimizer` is the inner one that a strategy has,
    or that a submission was offered.
    """

    strategy: str
    hyperparameters: Mapping[str, Value]
    optimizer: OptimizerSpec
    model: str
    tokenizer: str
    flops: float  # a second, that each node is declared to compute
    links: Mapping[str, Link]
    submission: str | None = None
    sandbox: str | None = None


def slowest(outcome: Outcome, nodes: int) -> Traffic:
    """The traffic of the node that moved most."""
    return max((outcome.ledger.traffic(node) for node in range(nodes)), key=lambda t: (t.sent + t.received, t.peak))


def times(subject: Subject, plan: Plan, outcome: Outcome) -> dict[str, tuple[float, ...]]:
    """Simulated seconds at the end of each step [steps], for each link."""
    step_seconds = outcome.step_flops / subject.flops
    return {
        name: simulated_seconds(outcome.ledger.entries, plan.steps, step_seconds, link)
        for name, link in subject.links.items()
    }


def record(subject: Subject, plan: Plan, corpus: Corpus, outcome: Outcome, device: torch.device) -> dict[str, Any]:
    """The record as plain values."""
    clocks = times(subject, plan, outcome)
    parameters = outcome.params.numel()
    traffic = slowest(outcome, plan.nodes)
    tokens = plan.nodes * plan.steps * plan.size.samples * plan.size.block
    return {
        "version": VERSION,
        "subject": dataclasses.asdict(subject),
        "plan": dataclasses.asdict(plan),
        "corpus": corpus.fingerprint,
        "parameters": parameters,
        "loss": outcome.curve[-1].loss,
        "curve": [_point(point, clocks) for point in map(dataclasses.asdict, outcome.curve)],
        "training": list(outcome.training),
        "traffic": dataclasses.asdict(traffic),
        "nodes": [dataclasses.asdict(outcome.ledger.traffic(node)) for node in range(plan.nodes)],
        "operations": {name: dataclasses.asdict(part) for name, part in outcome.ledger.by_operation(0).items()},
        "ledger_sha256": ledger_hash(outcome.ledger),
        "sent_per_parameter_and_step": traffic.sent / parameters / plan.steps,
        "step_flops": outcome.step_flops,
        "seconds": {name: clock[-1] for name, clock in clocks.items()},
        "tokens_per_second": {name: tokens / clock[-1] for name, clock in clocks.items()},
        "params_sha256": hashlib.sha256(outcome.params.cpu().numpy().tobytes()).hexdigest(),
        "machine": {**environment(device), "wall_seconds": outcome.seconds},
    }


def environment(device: torch.device) -> dict[str, Any]:
    """What the bits of a run may depend on besides the record's other fields."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def ledger_hash(ledger: Ledger) -> str:
    """sha256 over all entries, one JSON line each, 64 hex digits."""
    digest = hashlib.sha256()
    for entry in ledger.entries:
        line = {**dataclasses.asdict(entry), "combine": entry.combine.value}
        digest.update(json.dumps(line, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _point(point: dict[str, Any], clocks: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
    step = point["step"]
    return {**point, "seconds": {name: clock[step - 1] if step else 0.0 for name, clock in clocks.items()}}
