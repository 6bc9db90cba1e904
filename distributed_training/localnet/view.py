"""What a person sees of a localnet: one table a neuron a row, and a line on the run, redrawn while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distributed_training.localnet.story import NeuronStory, Score, Story
from template.chain.metagraph import Metagraph


@dataclass(frozen=True)
class ChainNow:
    """The chain as the view shows it; `weights` by validator uid and uid."""

    metagraph: Metagraph
    weights: Mapping[int, Mapping[int, float]]


def render(story: Story, chain: ChainNow | None, epochs: int, seconds: float) -> RenderableType:
    """The whole picture."""
    return Group(_headline(story, chain, epochs, seconds), _table(story, chain), _losses(story))


def epoch_line(story: Story, epoch: int) -> str:
    """One line on a finished epoch, for a log or a terminal that cannot redraw."""
    loss = story.held_out.get(epoch)
    states = len(story.states.get(epoch, ()))
    shown = "-" if loss is None else f"{loss:.3f}"
    return f"epoch {epoch:3d}  held-out loss {shown}  states {states}  rounds failed {len(story.failed)}"


def _headline(story: Story, chain: ChainNow | None, epochs: int, seconds: float) -> Text:
    block = chain.metagraph.block if chain else "-"
    text = Text(f"block {block}   epoch {story.epochs}/{epochs}   ")
    text.append(f"rounds {len(story.completed)} done, {len(story.failed)} failed   ")
    text.append(f"published {len(story.published)}   {seconds:.0f} s")
    if story.faults:
        text.append(f"   faults {len(story.faults)}", style="bold red")
    return text


def _table(story: Story, chain: ChainNow | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("uid", "right"),
        ("neuron", "left"),
        ("epoch", "right"),
        ("state", "left"),
        ("samples", "right"),
        ("loss", "right"),
        ("gradient", "right"),
        ("steps", "right"),
        ("bandwidth", "right"),
        ("weight", "right"),
        ("incentive", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich's Literal
    for neuron in sorted(story.neurons.values(), key=lambda n: (n.uid is None, n.uid)):
        table.add_row(*_row(neuron, _mean_score(story, neuron.uid), chain))
    return table


def _row(neuron: NeuronStory, scores: list[Score], chain: ChainNow | None) -> list[str]:
    uid = neuron.uid
    start = ["-" if uid is None else str(uid), neuron.name, str(neuron.epoch), neuron.state_hash[:8]]
    if neuron.role == "validator":
        return start + [""] * 7
    weight = incentive = "-"
    if chain is not None and uid is not None and uid < len(chain.metagraph.incentive):
        rows = [row.get(uid, 0.0) for row in chain.weights.values()]
        weight = f"{sum(rows) / len(rows):.3f}" if rows else "-"
        incentive = f"{chain.metagraph.incentive[uid]:.3f}"
    return [
        *start,
        f"{neuron.samples}+{neuron.pending}",
        _number(neuron.loss),
        _number(_mean([s.gradient for s in scores])),
        _number(_mean([float(s.steps) for s in scores]), 0),
        _number(_mean([s.bandwidth for s in scores])),
        weight,
        incentive,
    ]


def _mean_score(story: Story, uid: int | None) -> list[Score]:
    return [book[uid] for book in story.scores.values() if uid is not None and uid in book]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _losses(story: Story) -> Text:
    known = sorted(story.held_out.items())
    if not known:
        return Text("held-out loss: not measured yet")
    bars = "▁▂▃▄▅▆▇█"
    low, high = min(loss for _, loss in known), max(loss for _, loss in known)
    span = (high - low) or 1.0
    line = "".join(bars[round((loss - low) / span * (len(bars) - 1))] for _, loss in known)
    return Text(f"held-out loss {known[0][1]:.3f} {line} {known[-1][1]:.3f} nats/token at epoch {known[-1][0]}")
