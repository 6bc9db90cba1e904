"""The picture of a run: held-out loss over epochs, and each miner's weight over blocks."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from distributed_training.localnet.story import Story


def plot(story: Story, names: dict[int, str], path: Path) -> None:
    """Write a PNG. `names` are the miners to show, by uid; weights are the mean over the validators' last ones."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, weight = figure.subplots(1, 2)
    epochs = sorted(story.held_out)
    loss.plot(epochs, [story.held_out[epoch] for epoch in epochs], marker=".")
    loss.set(xlabel="epoch", ylabel="held-out loss, nats per token", title="Model")
    blocks, series = weight_series(story, list(names))
    for uid, values in series.items():
        weight.step(blocks, values, where="post", label=f"{names[uid]} (uid {uid})")
    weight.set(xlabel="block", ylabel="weight, mean of validators", title="Weights set on the chain", ylim=(0, None))
    if series and blocks:
        weight.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def weight_series(story: Story, uids: list[int]) -> tuple[list[int], dict[int, list[float]]]:
    """Blocks at which any validator set weights, and for each uid the mean of the validators' latest ones there."""
    latest: dict[int, dict[int, float]] = {}
    blocks: list[int] = []
    series: dict[int, list[float]] = {uid: [] for uid in uids}
    for block, validator, weights in sorted(story.weight_history, key=lambda entry: entry[0]):
        latest[validator] = weights
        blocks.append(block)
        for uid, values in series.items():
            values.append(sum(known.get(uid, 0.0) for known in latest.values()) / len(latest))
    return blocks, series
