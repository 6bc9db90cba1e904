"""Computing one record in different ways: as honest machines differ, and as cheats do."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from distributed_training.data.loader import MicroBatch
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.local_work import make_record
from distributed_training.engine.replica import LOGITS, Replica
from distributed_training.model.layout import Vector
from distributed_training.protocol import Record
from distributed_training.run import RunSpec


class Machine:
    """Computes records as a miner of `spec` would on `device`, with another precision or split if wanted."""

    def __init__(
        self,
        spec: RunSpec,
        vocab_size: int,
        device: str = "cpu",
        *,
        precision: Literal["float32", "bfloat16"] | None = None,
        logits: int = LOGITS,
    ) -> None:
        """Raises ConfigurationError for a model that cannot be built."""
        self._spec = spec
        other = dataclasses.replace(spec, precision=precision or spec.precision)
        self._replica = Replica(other, vocab_size, device, logits=logits)

    def gradient(self, params: Vector, batch: MicroBatch) -> tuple[float, Vector]:
        """Loss and gradient [P] of a micro-batch; raises as `Replica.gradient` does."""
        self._replica.load(params)
        loss, gradient = self._replica.gradient(batch)
        return loss, gradient.to("cpu", copy=True).numpy()

    def record(self, epoch: int, params: Vector, batch: MicroBatch) -> Record:
        """The record of a micro-batch; raises as `Replica.gradient` does."""
        loss, gradient = self.gradient(params, batch)
        chosen = coordinates(self._spec.run_id, epoch, self._replica.layout, self._spec.audit.coordinates)
        return make_record(batch, loss, torch.from_numpy(gradient), torch.from_numpy(chosen))


@dataclass(frozen=True, eq=False)
class Case:
    """One micro-batch in one epoch: its parameters [P], those of earlier epochs by age, and another honest record.

    `other` is another micro-batch of as many samples or so, `neighbour` the honest record of that.
    """

    epoch: int
    params: Vector
    older: Mapping[int, Vector]
    batch: MicroBatch
    other: MicroBatch
    honest: Record
    neighbour: Record


Way = Callable[[Case], Record | None]  # None: not to be tried in this case


def honest_ways(spec: RunSpec, vocab_size: int, threads: int, devices: tuple[str, ...]) -> dict[str, Way]:
    """The same computation as other honest machines would do it, by a name for people."""
    usual = Machine(spec, vocab_size)
    split = Machine(spec, vocab_size, logits=1)  # sample by sample

    def plain(case: Case) -> Record:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch tells of a setting for GPUs that comes along
            with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel([SDPBackend.MATH]):
                return usual.record(case.epoch, case.params, case.batch)

    def threaded(case: Case) -> Record:
        with threads_of(threads):
            return usual.record(case.epoch, case.params, case.batch)

    ways: dict[str, Way] = {
        f"{threads} threads": threaded,
        "sample by sample": lambda case: split.record(case.epoch, case.params, case.batch),
        "other kernels": plain,
    }
    for device in devices:
        there = Machine(spec, vocab_size, device)
        ways[device] = lambda case, there=there: there.record(case.epoch, case.params, case.batch)  # type: ignore[misc]
    if spec.precision == "bfloat16":  # between two machines that round to bfloat16 at other places lies no more
        exact = Machine(spec, vocab_size, precision="float32")
        ways["float32"] = lambda case: exact.record(case.epoch, case.params, case.batch)
    return ways


def cheating_ways(spec: RunSpec, vocab_size: int, ages: tuple[int, ...]) -> dict[str, Way]:
    """What is cheaper than the work, or is none; each as near to honest as it can be had."""
    usual = Machine(spec, vocab_size)
    random = np.random.default_rng(0)
    ways: dict[str, Way] = {
        "other data": lambda case: usual.record(case.epoch, case.params, case.other),
        "no backward": lambda case: case.honest.model_copy(update={"gradient": case.neighbour.gradient}),
        "made up": lambda case: _made_up(case, random),
        "half the samples": lambda case: usual.record(case.epoch, case.params, _half(case.batch)),
        "half the tokens": lambda case: usual.record(case.epoch, case.params, _short(case.batch)),
        "weights in 8 bits": lambda case: usual.record(case.epoch, _coarse(case.params), case.batch),
        "gradient in 8 bits": lambda case: _coarse_gradient(case.honest),
    }
    if spec.precision == "float32":
        half = Machine(spec, vocab_size, precision="bfloat16")
        ways["half precision"] = lambda case: half.record(case.epoch, case.params, case.batch)
    for age in ages:
        ways[f"{age} epochs stale"] = lambda case, age=age: (  # type: ignore[misc]
            usual.record(case.epoch, case.older[age], case.batch) if age in case.older else None
        )
    return ways


@contextlib.contextmanager
def threads_of(count: int) -> Iterator[None]:
    """So many threads for torch, for as long as the block lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _made_up(case: Case, random: np.random.Generator) -> Record:
    """The true loss of a neighbour, and numbers of the right size."""
    size = float(np.std(case.neighbour.gradient))
    values = tuple(random.normal(0, size, len(case.neighbour.gradient)).tolist())
    return case.neighbour.model_copy(update={"gradient": values})


def _half(batch: MicroBatch) -> MicroBatch:
    samples = max(1, batch.samples // 2)
    return MicroBatch(batch.number, batch.pages, batch.input_ids[:samples], batch.labels[:samples])


def _short(batch: MicroBatch) -> MicroBatch:
    tokens = max(2, batch.input_ids.shape[1] // 2)
    return MicroBatch(batch.number, batch.pages, batch.input_ids[:, :tokens], batch.labels[:, :tokens])


def _coarse(params: Vector) -> Vector:
    """Each run of 1024 parameters in steps of its largest one over 127."""
    padded = np.zeros(-(-params.size // 1024) * 1024, dtype=np.float32)
    padded[: params.size] = params
    blocks = padded.reshape(-1, 1024)
    steps = np.maximum(np.abs(blocks).max(axis=1, keepdims=True) / 127, np.float32(1e-30))
    coarse: Vector = (np.rint(blocks / steps) * steps).astype(np.float32).reshape(-1)[: params.size]
    return coarse


def _coarse_gradient(record: Record) -> Record:
    values = np.array(record.gradient)
    step = max(float(np.abs(values).max()) / 127, 1e-30)
    return record.model_copy(update={"gradient": tuple((np.rint(values / step) * step).tolist())})
