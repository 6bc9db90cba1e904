"""What a localnet leaves behind: `summary.json`, a table for the terminal, and the list of what went wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from distributed_training.localnet.story import Story
from distributed_training.localnet.view import ChainNow

SCHEMA = "distributed_training/localnet-summary/1"


def summarize(story: Story, chain: ChainNow, *, first_epoch: int, epochs: int, seconds: float) -> dict[str, Any]:
    """Plain JSON. Lists over epochs run from `first_epoch` to the last one reached, both included."""
    reached = range(first_epoch, max(story.epochs, first_epoch) + 1)
    incentive = chain.metagraph.incentive
    miners = {n.uid: n for n in story.neurons.values() if n.role == "miner" and n.uid is not None}
    return {
        "schema": SCHEMA,
        "epochs": epochs,
        "first_epoch": first_epoch,
        "rounds_completed": len(story.completed),
        "rounds_failed": len(story.failed),
        "failed_rounds": story.failed,
        "held_out_loss": [story.held_out.get(epoch) for epoch in reached],
        "state_hashes": [sorted(story.states.get(epoch, ())) for epoch in reached],
        "samples": {str(uid): neuron.samples for uid, neuron in miners.items()},
        "scores": {
            str(validator): {str(uid): vars(score) for uid, score in book.items() if uid in miners}
            for validator, book in story.scores.items()
        },
        "weights": {
            str(validator): {str(uid): weight for uid, weight in row.items()}
            for validator, row in chain.weights.items()
        },
        "incentive": {str(uid): incentive[uid] for uid in miners},
        "names": {str(n.uid): n.name for n in story.neurons.values() if n.uid is not None},
        "published": sorted(story.published),
        "faults": story.faults,
        "seconds": seconds,
    }


def missing(summary: dict[str, Any], *, validators: int, honest: set[int]) -> list[str]:
    """What a run that went well would have and this one has not; each a line for a person."""
    problems = []
    last = summary["first_epoch"] + summary["epochs"]
    if summary["rounds_completed"] < summary["epochs"]:
        problems.append(f"only {summary['rounds_completed']} of {summary['epochs']} rounds completed")
    for offset, hashes in enumerate(summary["state_hashes"]):
        if len(hashes) > 1:
            problems.append(f"{len(hashes)} different states at epoch {summary['first_epoch'] + offset}")
    unmeasured = [i + summary["first_epoch"] for i, loss in enumerate(summary["held_out_loss"]) if loss is None]
    if unmeasured:
        problems.append(f"held-out loss was not measured at epochs {unmeasured}")
    if last not in summary["published"] and summary["rounds_completed"] >= summary["epochs"]:
        problems.append(f"the model of epoch {last} was not published")
    if len(summary["weights"]) < validators:
        problems.append(f"only {len(summary['weights'])} of {validators} validators have weights on the chain")
    unpaid = sorted(uid for uid in honest if summary["incentive"].get(str(uid), 0.0) <= 0.0)
    if unpaid:
        problems.append(f"no incentive was paid to uids {unpaid}")
    return problems


def write(summary: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(summary, indent=1, sort_keys=True, allow_nan=False) + "\n")


def table(summary: dict[str, Any]) -> Table:
    """The closing table, a row a miner."""
    shown = Table(title="Miners", header_style="bold")
    for name in ("uid", "neuron", "samples", "weight by validator", "incentive"):
        shown.add_column(name, justify="left" if name == "neuron" else "right")
    for uid in sorted(summary["samples"], key=int):
        weights = ", ".join(f"{row.get(uid, 0.0):.3f}" for row in summary["weights"].values())
        shown.add_row(
            uid, summary["names"][uid], str(summary["samples"][uid]), weights, f"{summary['incentive'][uid]:.4f}"
        )
    return shown


def contest_table(found: Mapping[str, Any]) -> Table:
    """Mechanism 1, a row an entry: what became of it, and its weights."""
    title, metric = "Mechanism 1: not decided", "loss in budget"
    if found["contest"] is not None:
        champion = "nobody" if found["champion"] is None else f"uid {found['champion']}"
        title = f"Mechanism 1, contest {found['contest']}, round {found['round']}: champion is {champion}"
        metric = f"loss in {found['budget']:g} s"
    shown = Table(title=title, header_style="bold")
    for name in ("uid", "entry", "status", metric, "weight by validator", "incentive", "why"):
        shown.add_column(name, justify="left" if name in ("entry", "status", "why") else "right")
    for row in found["standings"]:
        uid = str(row["uid"])
        weights = ", ".join(f"{given.get(uid, 0.0):.3f}" for given in found["weights"].values())
        loss = "-" if row["metric"] is None else f"{row['metric']:.4f}"
        paid = f"{found['incentive'].get(uid, 0.0):.4f}"
        shown.add_row(uid, row["entry"] or "-", row["status"], loss, weights, paid, Text(row["reason"]))
    return shown
