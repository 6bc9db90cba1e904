"""What auditing costs a validator, as a part of what one miner computes in the same epoch.

Sixteen miners train an epoch each with the real engine, one after another. Then a validator examines the epoch as often
as told, with new draws each time: it draws with the run's budget, or the default one, recomputes with its own model,
compares, and checks every miner's contribution and the hash of its records. Between two examinations a miner trains one
micro-batch, so that both are timed in turns, in one process on one thread; the ratio is what counts.

    python -m benchmarks.audit [--run runs/nano.toml] [--miners 16] [--batches 16 64] [--epochs 200]
        [--output benchmarks/results/audit.md]

Wanted at the default budget: at most 5 % of one miner's compute for 16 miners. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from distributed_training.averaging.codecs.errors import error_bounds
from distributed_training.averaging.witness import Watch, Witness
from distributed_training.data.build import build_loader
from distributed_training.data.loader import Loader
from distributed_training.engine.audit import Auditor
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.engine.records import records_hash
from distributed_training.run import AuditSpec, RunSpec, load_run
from distributed_training.scoring.contribution import Sent, judge_sum, judge_work, relative_size
from distributed_training.scoring.detection import caught_in_epoch, penalty_needed
from distributed_training.scoring.gradient import judge
from distributed_training.scoring.sampling import audit_rate, drawn
from distributed_training.validator.watch import DRAWN

SHARE = 1 / 17  # of the reduction, which is this validator's: one of 16 miners and itself


@dataclass(frozen=True)
class Cost:
    """One row: what was measured with so many micro-batches a miner."""

    batches: int
    miner_seconds: float
    validator_seconds: float
    checking_seconds: float
    recomputed: float
    failed: int

    @property
    def ratio(self) -> float:
        return self.validator_seconds / self.miner_seconds


def work_of(spec: RunSpec, loader: Loader, miners: int, batches: int) -> list[Contribution]:
    """The contributions of an epoch."""
    contributions = []
    engine = Engine(spec, loader.tokenizer.vocab_size)
    start = engine.snapshot()
    for uid in range(miners):
        engine.restore(start)
        for number in range(batches):
            engine.train(loader.micro_batch(0, uid, number))
        contributions.append(engine.contribution())
    return contributions


def measure(spec: RunSpec, loader: Loader, audit: AuditSpec, miners: int, batches: int, epochs: int) -> Cost:
    """Examine the same epoch again and again, with other draws."""
    contributions = work_of(spec, loader, miners, batches)
    miner = Engine(spec, loader.tokenizer.vocab_size)
    fresh = miner.snapshot()
    auditor = Auditor(spec, loader.tokenizer.vocab_size)
    params = miner.state.params
    layout, rng = auditor.layout, random.Random(0)
    known = coordinates(spec.run_id, 0, layout, audit.coordinates)
    hashes = [records_hash(c.records) for c in contributions]
    stop = int(layout.size * SHARE)
    training = checking = recomputing = 0.0
    count = failed = 0
    for epoch in range(epochs):
        miner.restore(fresh)
        began = time.process_time()
        miner.train(loader.micro_batch(0, epoch % miners, epoch % batches))
        training += time.process_time() - began
        began = time.process_time()
        witness = Witness(Watch(known, DRAWN, epoch), 0, stop, "none")
        for uid, contribution in enumerate(contributions):
            witness.see(uid, 0, contribution.vector[:stop])
        seen = witness.sightings(contributions[0].vector, {})
        columns = np.searchsorted(known, seen.known)
        for uid, contribution in enumerate(contributions):
            sight = seen.by_uid[uid]
            sent = Sent(columns, sight.known, error_bounds("none", sight.known, np.arange(sight.known.size)))
            failed += records_hash(contribution.records) != hashes[uid]
            failed += not judge_sum(uid, 0, contribution.records, float(contribution.samples), 1e9, sent).passed
        chosen = drawn({uid: c.records for uid, c in enumerate(contributions)}, audit, rng)
        checking += time.process_time() - began
        began = time.process_time()
        for uid, records in chosen.items():
            for record in records:
                batch = loader.micro_batch(0, uid, record.number)
                recomputed, gradient = auditor.recompute_at(0, params, batch, seen.drawn)
                failed += not judge(uid, 0, record, recomputed, batch.pages, audit).passed
                share = record.samples / contributions[uid].samples
                relative = relative_size(record, contributions[uid].records)
                sent_there = seen.by_uid[uid].drawn
                result = judge_work(uid, 0, sent_there, gradient, share, relative, audit, zeros=False)
                failed += result is not None and not result.passed
                count += 1
        recomputing += time.process_time() - began
    seconds = training / epochs * batches
    return Cost(batches, seconds, (checking + recomputing) / epochs, checking / epochs, count / epochs, failed)


def report(spec: RunSpec, audit: AuditSpec, miners: int, epochs: int, costs: list[Cost]) -> str:
    """The results as Markdown."""
    lines = [
        "# The cost of audits",
        "",
        f"`python -m benchmarks.audit`, run `{spec.name}`, {miners} audited miners, one thread, {epochs} examinations",
        "",
        f"Budget: share {audit.share:g} of a miner's samples, overhead {audit.overhead:g} of one miner's compute.",
        "",
        "| micro-batches a miner | miner, s an epoch | validator, s an epoch | of it checks | records recomputed "
        "| validator / miner | a miner that fakes all is found in an epoch | penalty needed, epochs | honest failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        chance = audit_rate(miners, audit)
        lines.append(
            f"| {cost.batches} | {cost.miner_seconds:.3f} | {cost.validator_seconds:.4f} | {cost.checking_seconds:.4f} "
            f"| {cost.recomputed:.2f} | {100 * cost.ratio:.2f} % "
            f"| {100 * caught_in_epoch(1.0, cost.batches, chance):.1f} % | {penalty_needed(cost.batches, chance)} "
            f"| {cost.failed} |"
        )
    lines += [
        "",
        "Seconds are processor time. `of it checks`: hashes of all records, sums of all contributions, draws; they",
        "cost the same whatever the model is, so their part is that of a model this small. The chance of a record",
        "to be recomputed follows from the budget alone (`scoring/sampling.py`).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/nano.toml"))
    parser.add_argument("--miners", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--own-budget", action="store_true", help="the run's budget instead of the default one")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/audit.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec = load_run(arguments.run)
    default = {field.name: field.default for field in dataclasses.fields(AuditSpec)}
    budget = {} if arguments.own_budget else {name: default[name] for name in ("share", "overhead")}
    audit = dataclasses.replace(spec.audit, **budget)
    loader = build_loader(spec, cache=arguments.cache)
    sizes = arguments.batches
    costs = [measure(spec, loader, audit, arguments.miners, size, arguments.epochs) for size in sizes]
    text = report(spec, audit, arguments.miners, arguments.epochs, costs)
    arguments.output.write_text(text)
    Console().print(text, markup=False, highlight=False)


if __name__ == "__main__":
    main()
