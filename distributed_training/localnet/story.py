"""What happened in a localnet, folded from its neurons' events: what view, summary and plot read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FAULTS = {
    # event kind -> what to say; `{field}` is filled from the event
    "PublishFailed": "epoch {epoch} was not published: {reason}",
    "TaskFailed": "task {task} failed: {error}",
    "SinkFailed": "telemetry sink {sink} failed: {error}",
    "AuditNotPossible": "epoch {epoch} could not be audited: {reason}",
    "RoundNotPossible": "round of epoch {epoch} was not possible: {reason}",
}


@dataclass
class Score:
    """One validator's last word on one miner."""

    gradient: float | None = None
    steps: int = 0
    bandwidth: float | None = None
    participation: float | None = None
    score: float = 0.0
    weight: float = 0.0
    outcome: str = ""


@dataclass
class NeuronStory:
    """What is known of one neuron; `samples` are those of all completed rounds, `pending` those of this epoch."""

    name: str
    uid: int | None = None
    role: str = ""
    epoch: int = 0
    state_hash: str = ""
    samples: int = 0
    pending: int = 0
    loss: float | None = None


@dataclass
class Story:
    """The run so far. `states[e]` are the distinct state hashes seen at epoch e, `held_out[e]` the loss there."""

    neurons: dict[str, NeuronStory] = field(default_factory=dict)
    states: dict[int, set[str]] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    completed: set[int] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    published: set[int] = field(default_factory=set)
    scored: dict[int, int] = field(default_factory=dict)
    scores: dict[int, dict[int, Score]] = field(default_factory=dict)
    weights_set: dict[int, int] = field(default_factory=dict)
    weight_history: list[tuple[int, int, dict[int, float]]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """How many epochs in a row, from the first, were averaged."""
        return max(self.completed, default=-1) + 1

    def take(self, name: str, record: Mapping[str, Any]) -> None:
        """Fold in one event of the neuron `name`."""
        neuron = self.neurons.setdefault(name, NeuronStory(name))
        kind = record["kind"]
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, neuron, record)
        if kind in FAULTS:
            self.faults.append(f"{name}: {FAULTS[kind].format_map(record)}")

    def at_state(self, epoch: int, state_hash: str) -> None:
        self.states.setdefault(epoch, set()).add(state_hash)


def _started(story: Story, neuron: NeuronStory, record: Mapping[str, Any]) -> None:
    neuron.uid, neuron.role = record["uid"], record["role"]
    _moved(story, neuron, record)


def _moved(story: Story, neuron: NeuronStory, record: Mapping[str, Any]) -> None:
    neuron.epoch, neuron.state_hash, neuron.pending = record["epoch"], record["state_hash"], 0
    story.at_state(neuron.epoch, neuron.state_hash)


def _trained(story: Story, neuron: NeuronStory, record: Mapping[str, Any]) -> None:
    neuron.pending, neuron.loss = record["samples"], record["mean_loss"]


def _round_ended(story: Story, neuron: NeuronStory, record: Mapping[str, Any]) -> None:
    if not record["completed"]:
        return
    neuron.samples += record["samples"]
    neuron.pending = 0
    neuron.epoch, neuron.state_hash = record["epoch"] + 1, record["state_hash"]
    story.at_state(neuron.epoch, neuron.state_hash)


def _round_led(story: Story, neuron: NeuronStory, record: Mapping[str, Any]) -> None:
    if record["completed"]:
        story.completed.add(record["epoch"])
        return
    parts = [f"epoch {record['epoch']} attempt {record['attempt']} led by {neuron.name}"]
    for word in ("named", "silent"):
        if record[word]:
            parts.append(f"{word} {record[word]}")
    story.failed.append(", ".join(parts))


def _held_out(story: Story, neuron: NeuronStory, record: Mapping[str, Any]) -> None:
    story.held_out[record["epoch"]] = record["loss"]


def _published(story: Story, neuron: NeuronStory, record: Mapping[str, Any]) -> None:
    story.published.add(record["epoch"])


def _epoch_scored(story: Story, neuron: NeuronStory, record: Mapping[str, Any]) -> None:
    assert neuron.uid is not None, "a validator says who it is before it scores"
    story.scored[neuron.uid] = record["epoch"]
    book = story.scores.setdefault(neuron.uid, {})
    for row in record["rows"]:
        score = row["score"]
        book[row["evidence"]["uid"]] = Score(
            gradient=score["gradient"],
            steps=score["samples"],
            bandwidth=score["bandwidth"],
            participation=score["participation"],
            score=score["score"],
            weight=row["weight"],
            outcome=row["outcome"],
        )


def _weights_set(story: Story, neuron: NeuronStory, record: Mapping[str, Any]) -> None:
    if record["outcome"] != "set":
        return
    assert neuron.uid is not None, "a validator says who it is before it sets weights"
    story.weights_set[neuron.uid] = record["block"]
    weights = {int(uid): weight for uid, weight in record["weights"].items()}
    story.weight_history.append((record["block"], neuron.uid, weights))


_HANDLERS = {
    "NeuronStarted": _started,
    "CaughtUp": _moved,
    "Trained": _trained,
    "RoundFinished": _round_ended,
    "RoundLed": _round_led,
    "HeldOut": _held_out,
    "Published": _published,
    "EpochScored": _epoch_scored,
    "WeightsSet": _weights_set,
}
