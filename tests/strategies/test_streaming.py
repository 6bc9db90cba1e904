"""Streaming DiLoCo: which tensors are a fragment, when it travels, and the whole of it against plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distributed_training.strategies.inner import AdamW
from distributed_training.strategies.streaming import StreamingDiLoCo, fragments
from template.errors import ConfigurationError
from tests.strategies.lossy import four_bits
from tests.strategies.problem import LAYOUT, SPEC, P, Worker, begin, close, initial, play

INNER = AdamW(SPEC)
FIRST = (".h.0.", ".h.2.", ".wpe.", ".wte.")  # of two fragments


def first_of_two() -> np.ndarray:
    mask = np.zeros(P, bool)
    for tensor in LAYOUT.tensors:
        mask[tensor.slice] = any(word in tensor.name for word in FIRST)
    return mask


def test_fragments_are_strided_blocks() -> None:
    """Blocks 0 and 2 with the embeddings, block 1 with the last norm; together every parameter once."""
    first, second = (part.take(torch.arange(P)).numpy() for part in fragments(LAYOUT, 2))
    assert np.array_equal(first, np.flatnonzero(first_of_two()))
    assert np.array_equal(second, np.flatnonzero(~first_of_two()))


def test_each_fragment_travels_once_a_period() -> None:
    """Of a period of 6 in 3 fragments one leaves every other step, and is due 2 steps later."""
    strategy = StreamingDiLoCo(inner=INNER, period=6, fragments=3, overlap=2)
    entries = [entry for entry in play(strategy, 2, 18)[1] if entry.node == 0]
    assert [(entry.step, entry.operation) for entry in entries] == [
        (6, "fragment-0"), (8, "fragment-1"), (10, "fragment-2"),
        (12, "fragment-0"), (14, "fragment-1"), (16, "fragment-2"), (18, "fragment-0"),
    ]  # fmt: skip
    assert {entry.delay for entry in entries} == {2}


@pytest.mark.parametrize(("overlap", "mixing", "codec"), [(0, 0.0, "none"), (2, 0.5, "none"), (2, 0.5, "int4-block64")])
def test_follows_the_reference(overlap: int, mixing: float, codec: str) -> None:
    """Two nodes, two fragments, a period of 4: 13 steps of workers with an outer SGD for each fragment."""
    masks = [torch.from_numpy(mask) for mask in (first_of_two(), ~first_of_two())]
    workers = [Worker(node) for node in range(2)]
    anchors = [torch.nn.Parameter(initial().double()[mask]) for mask in masks]
    outers = [torch.optim.SGD([anchor], lr=0.7, momentum=0.9, nesterov=True) for anchor in anchors]
    flying: dict[int, tuple[int, torch.Tensor]] = {}
    for step in range(1, 14):
        for worker in workers:
            worker.train()
        for f, offset in enumerate((0, 2)):
            if step > offset and (step - offset) % 4 == 0:
                ways = [(anchors[f].detach() - worker.vector[masks[f]]).numpy() for worker in workers]
                sent = ways if codec == "none" else [four_bits(way, 64) for way in ways]
                flying[step + overlap] = f, torch.from_numpy(np.mean(sent, axis=0))
        if step in flying:
            f, anchors_grad = flying.pop(step)
            anchors[f].grad = anchors_grad
            outers[f].step()
            for worker in workers:
                vector = worker.vector
                vector[masks[f]] = mixing * vector[masks[f]] + (1 - mixing) * anchors[f].detach()
                worker.take_over(vector)
    strategy = StreamingDiLoCo(inner=INNER, period=4, fragments=2, overlap=overlap, mixing=mixing, codec=codec)
    close(play(strategy, 2, 13)[0], [worker.vector for worker in workers], flips=0 if codec == "none" else 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fragments": 16}, "fragments must lie between 1 and the period"),
        ({"overlap": 15}, "overlap must lie between 0 and the period - 1"),
        ({"mixing": 1.0}, "mixing must lie in"),
        ({"overlap": 0}, "mixing must be 0 without overlap"),
    ],
)
def test_contradictions_are_refused(change: dict[str, int | float], message: str) -> None:
    """And the message names the remedy."""
    with pytest.raises(ConfigurationError, match=message):
        StreamingDiLoCo(inner=INNER, **change)


def test_more_fragments_than_blocks_are_refused() -> None:
    """When the model is known."""
    with pytest.raises(ConfigurationError, match="4 fragments of a model of 3 blocks"):
        begin(StreamingDiLoCo(inner=INNER, fragments=4), 2)
