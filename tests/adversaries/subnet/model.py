"""The model of the simulation, in the place of `engine.replica.Replica`: next-token logits E U' + b, in numpy.

Loss and gradient depend on a micro-batch by its counts of pairs of tokens alone, so both are exact and cost some ten
microseconds. There is a product of two matrices in it, so it is not convex, and its gradient changes with the state.

Its values lie in the vector in a random order. A stretch of it, as a reducer's share is one, then has to do with all
tokens; in order it would be the rows of a handful of them, of which most micro-batches of so few tokens know nothing.

No two machines round alike: each replica moves what it computes by `NOISE`, the relative disagreement that honest
recomputations have. Under `bfloat16` parameters and gradients are rounded to eight bits, as autocast does.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch

from distributed_training.engine import audit, engine
from distributed_training.engine.batch import IGNORED, MicroBatch
from distributed_training.model.layout import Layout, Vector, flatten
from distributed_training.run import RunSpec

WIDTH = 640  # many parameters for a small vocabulary: each validator's share has to hold enough of them
SCALE = 0.06


@dataclass(frozen=True)
class Noise:
    """Relative disagreement of two honest machines on a loss, and on a gradient (L2)."""

    loss: float = 1e-7
    gradient: float = 1e-5


NOISE = Noise()


class Bilinear(torch.nn.Module):
    """Holds the parameters under names that the audit's coordinates know."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.wte = torch.nn.Embedding(vocab_size, WIDTH)
        self.head = torch.nn.Linear(WIDTH, vocab_size)
        with torch.no_grad():
            for parameter in (self.wte.weight, self.head.weight):
                parameter.copy_(SCALE * torch.randn(parameter.shape, generator=random))
            self.head.bias.zero_()


class SmallReplica:
    """What engine and auditor ask of a replica."""

    _numbers = itertools.count()

    def __init__(self, spec: RunSpec, vocab_size: int, device: str | torch.device = "cpu") -> None:
        self.module = Bilinear(vocab_size, spec.seed)
        self.layout = Layout.of(self.module)
        self._vocab_size = vocab_size
        self._half = spec.precision == "bfloat16"
        random = np.random.default_rng((spec.seed, next(SmallReplica._numbers)))
        self._wobble = (1 + NOISE.gradient * random.standard_normal(self.layout.size)).astype(np.float32)
        self._loss_wobble = 1 + NOISE.loss * float(random.standard_normal())
        self._gradient = torch.zeros(self.layout.size)
        self._slices = {tensor.name: tensor.slice for tensor in self.layout.tensors}
        self._places = np.random.default_rng(0).permutation(self.layout.size)
        self._loaded: Vector | None = None
        self.load(flatten(self.module))

    def load(self, params: Vector) -> None:
        """Take over `params` [P]."""
        if params is self._loaded:
            return
        self.layout.check(params)
        self._loaded = params
        held = (rounded(params) if self._half else params)[self._places]
        self._embedding = held[self._slices["wte.weight"]].reshape(self._vocab_size, WIDTH)
        self._output = held[self._slices["head.weight"]].reshape(self._vocab_size, WIDTH)
        logits = (self._embedding @ self._output.T + held[self._slices["head.bias"]]).astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        likely = np.exp(logits)
        total = likely.sum(1, keepdims=True)
        self._logarithms = logits - np.log(total)
        self._likely = likely / total

    def gradient(self, batch: MicroBatch) -> tuple[float, torch.Tensor]:
        """Mean loss over the labels that count, and its gradient [P], valid until the next call."""
        counts = self._counts(batch)
        total = counts.sum()
        loss = -float((counts * self._logarithms).sum() / total)
        at_logits = ((counts.sum(1, keepdims=True) * self._likely - counts) / total).astype(np.float32)
        flat = np.empty(self.layout.size, dtype=np.float32)
        flat[self._slices["wte.weight"]] = (at_logits @ self._output).ravel()
        flat[self._slices["head.weight"]] = (at_logits.T @ self._embedding).ravel()
        flat[self._slices["head.bias"]] = at_logits.sum(0)
        shuffled = np.empty_like(flat)
        shuffled[self._places] = flat
        shuffled *= self._wobble
        self._gradient.copy_(torch.from_numpy(rounded(shuffled) if self._half else shuffled))
        return loss * self._loss_wobble, self._gradient

    def mean_loss(self, batches: Iterable[MicroBatch]) -> float:
        """Nats per label that counts, over all batches."""
        counts = np.sum([self._counts(batch) for batch in batches], axis=0)
        return -float((counts * self._logarithms).sum() / counts.sum())

    def _counts(self, batch: MicroBatch) -> npt.NDArray[np.float64]:
        """How often each token follows each other one [V, V]."""
        inputs, labels = batch.input_ids.ravel(), batch.labels.ravel()
        kept = labels != IGNORED
        pairs = inputs[kept] * self._vocab_size + labels[kept]
        counts = np.bincount(pairs, minlength=self._vocab_size**2).astype(np.float64)
        return counts.reshape(self._vocab_size, self._vocab_size)


def rounded(values: Vector) -> Vector:
    """`values` to the nearest bfloat16."""
    return torch.from_numpy(values.copy()).to(torch.bfloat16).to(torch.float32).numpy()


@contextlib.contextmanager
def small_models() -> Iterator[None]:
    """Engines and auditors made in here have the small model."""
    SmallReplica._numbers = itertools.count()
    with mock.patch.object(engine, "Replica", SmallReplica), mock.patch.object(audit, "Replica", SmallReplica):
        yield
