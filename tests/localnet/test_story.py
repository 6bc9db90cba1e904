"""The story of a run, its summary, its picture and its view, from events alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from distributed_training.localnet.plot import plot, weight_series
from distributed_training.localnet.story import Story
from distributed_training.localnet.summary import missing, summarize, table, write
from distributed_training.localnet.tail import Tail
from distributed_training.localnet.view import ChainNow, epoch_line, render
from template.chain.metagraph import Metagraph


def chain(incentive: tuple[float, ...] = (0.0, 0.0, 0.4, 0.6)) -> ChainNow:
    n = len(incentive)
    graph = Metagraph(
        netuid=1, mechid=0, block=50, tempo=20, hotkeys=tuple("abcd"), coldkeys=tuple("abcd"), stake=(0.0,) * n,
        validator_permit=(True, True, False, False), axons=(None,) * n, last_update=(0,) * n, registered_at=(0,) * n,
        incentive=incentive, dividends=(0.0,) * n, emission=(0.0,) * n, weights_version=0, weights_rate_limit=0,
        min_allowed_weights=0, max_weights_limit=65535, max_uids=64, owner_hotkey="a",
    )  # fmt: skip
    return ChainNow(graph, {1: {2: 0.4, 3: 0.6}})


def started(uid: int, role: str) -> dict[str, Any]:
    return {"kind": "NeuronStarted", "uid": uid, "role": role, "epoch": 0, "state_hash": "h0"}


def finished(epoch: int, state: str, samples: int, completed: bool = True) -> dict[str, Any]:
    return {
        "kind": "RoundFinished", "epoch": epoch, "state_hash": state, "samples": samples, "completed": completed,
    }  # fmt: skip


def led(epoch: int, completed: bool = True) -> dict[str, Any]:
    return {"kind": "RoundLed", "epoch": epoch, "attempt": 0, "completed": completed, "named": [3], "silent": []}


def good_run() -> Story:
    """Two epochs of one validator and two miners, one attempt failed."""
    story = Story()
    for name, record in [
        ("v", started(1, "validator")), ("m", started(2, "miner")), ("n", started(3, "miner")),
        ("v", {"kind": "HeldOut", "epoch": 0, "loss": 5.5}),
        ("m", {"kind": "Trained", "samples": 7, "mean_loss": 4.0}),
        ("v", led(0, completed=False)), ("m", finished(0, "h0", 7, completed=False)), ("v", led(0)),
        ("m", finished(0, "h1", 8)), ("n", finished(0, "h1", 9)), ("v", finished(0, "h1", 0)),
        ("v", {"kind": "HeldOut", "epoch": 1, "loss": 5.0}), ("v", {"kind": "Published", "epoch": 1}),
        ("v", {"kind": "WeightsSet", "outcome": "set", "block": 40, "weights": {"2": 0.4, "3": 0.6}}),
    ]:  # fmt: skip
        story.take(name, record)
    return story


def test_a_good_run_is_told_as_it_was() -> None:
    """Counts, losses, hashes and samples come from the events; a run with all of it misses nothing."""
    summary = summarize(good_run(), chain(), first_epoch=0, epochs=1, seconds=3.0)
    assert (summary["rounds_completed"], summary["rounds_failed"]) == (1, 1)
    assert summary["held_out_loss"] == [5.5, 5.0]
    assert summary["state_hashes"] == [["h0"], ["h1"]]
    assert summary["samples"] == {"2": 8, "3": 9}
    assert summary["incentive"] == {"2": 0.4, "3": 0.6}
    assert missing(summary, validators=1, honest={2, 3}) == []


def test_what_is_missing_is_named() -> None:
    """Another state, an unpaid miner, rounds that never came, no weights: a line each."""
    story = good_run()
    story.take("n", finished(0, "other", 0))
    summary = summarize(story, chain((0.0, 0.0, 1.0, 0.0)), first_epoch=0, epochs=2, seconds=3.0)
    problems = " | ".join(missing(summary, validators=2, honest={2, 3}))
    for part in ("1 of 2 rounds", "2 different states at epoch 1", "uids [3]", "1 of 2 validators"):
        assert part in problems


def test_faults_are_told_with_their_reason() -> None:
    """An event that means trouble becomes a line with the neuron's name."""
    story = Story()
    story.take("v", {"kind": "PublishFailed", "epoch": 3, "reason": "no route"})
    assert story.faults == ["v: epoch 3 was not published: no route"]


def test_summary_is_json_and_the_picture_a_png(tmp_path: Path) -> None:
    """Both land where they are asked to."""
    story = good_run()
    write(summarize(story, chain(), first_epoch=0, epochs=1, seconds=1.0), tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["schema"].startswith("distributed_training/")
    plot(story, {2: "m", 3: "n"}, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert weight_series(story, [2, 3]) == ([40], {2: [0.4], 3: [0.6]})


def test_the_view_shows_every_neuron_before_and_after_the_chain_is_known() -> None:
    """Names, losses, weights and incentive are on the screen."""
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  # closed with the console
    with console.file:
        console.print(render(Story(), None, 5, 0.0))
        console.print(render(good_run(), chain(), 5, 12.0))
        console.print(table(summarize(good_run(), chain(), first_epoch=0, epochs=1, seconds=1.0)))
        text = console.export_text()
    for part in ("epoch 1/5", "5.500", "0.400", "0.600", "8+0", "1 failed"):
        assert part in text
    assert epoch_line(good_run(), 1) == "epoch   1  held-out loss 5.000  states 1  rounds failed 1"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_a_tail_takes_each_line_once_when_it_is_complete(cuts: list[int]) -> None:
    """However a writer's bytes arrive, every record is read exactly once."""
    import tempfile

    records = [{"kind": "x", "n": n} for n in range(6)]
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        tail = Tail({"m": path})
        seen = list(tail.read())
        with path.open("ab", buffering=0) as file:
            while content:
                size = cuts[len(content) % len(cuts)]
                file.write(content[:size])
                content = content[size:]
                seen += tail.read()
    assert seen == [("m", record) for record in records]
