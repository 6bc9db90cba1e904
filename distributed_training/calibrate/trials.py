"""Trains a run for a few epochs and measures, at each of them, how far honest and dishonest computations lie apart.

What is measured of contributions went through the run's own codec and error feedback, as in a round.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codec import Codec, Floats, pair_named
from distributed_training.averaging.codecs.names import parse_pair
from distributed_training.averaging.feedback import Attempt
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.plan import chunk_for
from distributed_training.averaging.robust import weighted_mean
from distributed_training.calibrate.machines import Case, Machine, Way
from distributed_training.data.loader import Loader, MicroBatch
from distributed_training.engine.engine import Contribution, Engine
from distributed_training.model.layout import Vector
from distributed_training.run import RunSpec
from distributed_training.scoring.contribution import USUAL, alignment, inflation, least_alignment, relative_size
from distributed_training.scoring.gradient import relative_gradient_difference, relative_loss_difference
from template.errors import StateError

MINERS = 2
SHARE = 6  # a validator's part of the reduction is one in so many
DRAWN = 1 << 16

Pair = tuple[float, float]


@dataclass
class Measurements:
    """By the name of a way: (loss, gradient) differences of records, (alignment, inflation) of contributions.

    `whole`: alignments of honest contributions with all of their records together. `least`: those with one record that
    chance does not reach.
    """

    honest: dict[str, list[Pair]] = field(default_factory=lambda: defaultdict(list))
    cheats: dict[str, list[Pair]] = field(default_factory=lambda: defaultdict(list))
    contributions: dict[str, list[Pair]] = field(default_factory=lambda: defaultdict(list))
    bad_contributions: dict[str, list[Pair]] = field(default_factory=lambda: defaultdict(list))
    whole: list[float] = field(default_factory=list)
    least: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured: at `epochs` epochs, `batches` micro-batches a miner and epoch, `records` looked at."""

    epochs: int
    batches: int
    records: int
    ages: tuple[int, ...]


class Trials:
    """One run, trained by two miners in this process."""

    def __init__(self, spec: RunSpec, loader: Loader, extent: Extent, device: str = "cpu") -> None:
        """Raises ConfigurationError for a model that cannot be built."""
        vocab_size = loader.tokenizer.vocab_size
        self._spec = spec
        self._loader = loader
        self._extent = extent
        self._engines = [Engine(spec, vocab_size, device) for _ in range(MINERS)]
        self._usual = Machine(spec, vocab_size, device)
        self._codecs = pair_named(spec.averaging.codec)
        self._zeros = parse_pair(spec.averaging.codec).makes_zeros
        self._older: dict[int, Vector] = {}
        self._random = np.random.default_rng(0)

    def run(self, honest: Mapping[str, Way], cheats: Mapping[str, Way], told: Callable[[int], None]) -> Measurements:
        """Measure; `told` hears of each epoch that is done.

        Raises:
            DataError, StateError: the corpus or the numbers of this machine are of no use.
        """
        found = Measurements()
        for epoch in range(self._extent.epochs):
            batches = [
                [self._loader.micro_batch(epoch, uid, number) for number in range(self._extent.batches)]
                for uid in range(MINERS)
            ]
            self._records(epoch, batches, honest, cheats, found)
            self._train(epoch, batches, found)
            told(epoch + 1)
        return found

    def _records(
        self,
        epoch: int,
        batches: list[list[MicroBatch]],
        honest: Mapping[str, Way],
        cheats: Mapping[str, Way],
        found: Measurements,
    ) -> None:
        params = self._engines[0].state.params
        older = {age: self._older[epoch - age] for age in self._extent.ages if epoch - age in self._older}
        for batch, other in list(zip(*batches, strict=True))[: self._extent.records]:
            ours, theirs = (self._usual.record(epoch, params, each) for each in (batch, other))
            case = Case(epoch, params, older, batch, other, ours, theirs)
            for ways, into in ((honest, found.honest), (cheats, found.cheats)):
                for name, way in ways.items():
                    reported = way(case)
                    if reported is not None:
                        into[name].append(_differences(reported.loss, reported.gradient, case))
        self._older[epoch] = params
        self._older = {e: kept for e, kept in self._older.items() if e > epoch - max(self._extent.ages, default=0)}

    def _train(self, epoch: int, batches: list[list[MicroBatch]], found: Measurements) -> None:
        """One epoch: contributions as they arrive at a reducer, looked at, averaged and applied."""
        arrived: list[tuple[Floats, Contribution]] = []
        attempts = [engine.attempt() for engine in self._engines]
        for engine, mine, attempt in zip(self._engines, batches, attempts, strict=True):
            for batch in mine:
                engine.train(batch)
            contribution = engine.contribution()
            arrived.append((_through(self._codecs.parts, contribution.vector, attempt), contribution))
            self._contributions(arrived[-1][0], contribution, mine, found)
        average = np.empty_like(arrived[0][0])
        weighted_mean([vector for vector, _ in arrived], [c.samples for _, c in arrived], average)
        for engine, attempt in zip(self._engines, attempts, strict=True):
            engine.apply(average, attempt)

    def _contributions(
        self, sent: Floats, contribution: Contribution, batches: list[MicroBatch], found: Measurements
    ) -> None:
        params, size = self._engines[0].state.params, sent.size
        for low, high in itertools.pairwise(range(0, size + 1, size // SHARE)):
            found.whole.append(alignment(sent[low:high], contribution.vector[low:high], 1.0, zeros=self._zeros)[0])
        start = int(self._random.integers(0, size - size // SHARE + 1))
        where = np.sort(self._random.choice(size // SHARE, min(DRAWN, size // SHARE), replace=False)) + start
        signs = self._random.integers(0, 2, size).astype(np.float32) * 2 - 1
        garbage = np.abs(sent) * signs
        for batch in batches[: self._extent.records]:
            _, gradient = self._usual.gradient(params, batch)
            share = batch.samples / contribution.samples
            relative = relative_size(contribution.records[batch.number], contribution.records)
            if relative < USUAL:
                continue  # an audit would conclude nothing from it
            found.least.append(least_alignment(where.size, share))
            without: Floats = ((sent - share * gradient) / max(1 - share, share)).astype(np.float32)
            tried: Iterable[tuple[dict[str, list[Pair]], str, Floats]] = (
                (found.contributions, "honest", sent),
                (found.bad_contributions, "garbage of the right size", garbage),
                (found.bad_contributions, "sign flipped", -sent),
                (found.bad_contributions, "10 times too large", 10 * sent),
                (found.bad_contributions, "this record left out", without),
            )
            for into, name, vector in tried:
                into[name].append(self._compare(vector[where], gradient[where], share, relative))

    def _compare(self, sent: Floats, gradient: Floats, share: float, relative: float) -> Pair:
        if not gradient.any():
            raise StateError("a gradient without any value in a whole share: the model cannot be calibrated")
        surplus, _ = alignment(sent, gradient, share, zeros=self._zeros)
        return surplus, inflation(sent, gradient, relative)


def _through(codec: Codec, vector: Floats, attempt: Attempt | None) -> Floats:
    """What a reducer decodes of a contribution [P], chunk by chunk as a round sends it."""
    arrived: NDArray[np.float32] = np.empty_like(vector)
    for low, high in chunks(vector.size, chunk_for(vector.size, SHARE)):
        part = np.ascontiguousarray(vector[low:high])
        payload = codec.encode(part) if attempt is None else attempt.encode(codec, low, part)
        arrived[low:high] = codec.decode(payload, high - low)
    return arrived


def _differences(loss: float, gradient: tuple[float, ...], case: Case) -> Pair:
    return (
        relative_loss_difference(loss, case.honest.loss),
        relative_gradient_difference(gradient, case.honest.gradient),
    )
