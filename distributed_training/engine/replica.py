"""One copy of the model on one device: loss and gradient of a micro-batch at given parameters, for miner and auditor.

With precision `bfloat16` the forward pass runs under autocast on any device; parameters, loss and gradients are
float32. On CUDA, attention may use the flash and the plain kernel only: the others add up in changing order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from distributed_training.engine.batch import IGNORED, MicroBatch
from distributed_training.model.build import build
from distributed_training.model.layout import Layout, Vector, ordered_parameters, unflatten
from distributed_training.run import RunSpec
from template.errors import DataError, StateError

LOGITS = 1 << 28  # 1 GiB of float32, held some four times at once; 5 samples of 1024 tokens with GPT-2's vocabulary


class Replica:
    """A model, and a flat gradient buffer that the parameters' gradients are views of.

    A page of documents can be of any length, so a micro-batch goes through the model in slices of at most `logits`
    values (at least one sample): memory is bounded by them, not by the longest document of the corpus.
    """

    def __init__(
        self, spec: RunSpec, vocab_size: int, device: str | torch.device = "cpu", *, logits: int = LOGITS
    ) -> None:
        """Builds the initial model of the run on `device`; raises ConfigurationError for an impossible one."""
        self._device = torch.device(device)
        self._vocab_size = vocab_size
        self._logits = logits
        self._precision = spec.precision
        module = build(spec.model, vocab_size, spec.data.sequence_length, spec.seed)
        self.module = module.to(self._device).train()  # there is no dropout to switch on
        self.layout = Layout.of(self.module)
        self._gradient = torch.zeros(self.layout.size, device=self._device)
        self._parameters = ordered_parameters(self.module)
        for tensor, (_, parameter) in zip(self.layout.tensors, self._parameters, strict=True):
            parameter.grad = self._gradient[tensor.slice].view(tensor.shape)
        self._loaded: Vector | None = None

    def load(self, params: Vector) -> None:
        """Take over `params` [P]. The same read-only vector twice costs nothing.

        Raises:
            CorruptState: it does not fit.
        """
        if params is self._loaded and not params.flags.writeable:
            return
        self._loaded = None
        unflatten(params, self.module)
        self._loaded = params

    def place(self, params: torch.Tensor) -> None:
        """Take over `params` [P], on the device already."""
        self._loaded = None
        with torch.no_grad():
            for tensor, (_, parameter) in zip(self.layout.tensors, self._parameters, strict=True):
                parameter.copy_(params[tensor.slice].view(tensor.shape))

    def gradient(self, batch: MicroBatch) -> tuple[float, torch.Tensor]:
        """Mean loss over the labels that count, and its gradient [P] on the device, valid until the next call.

        Raises:
            DataError: the batch does not fit the model.
            StateError: loss or gradient is not finite.
        """
        inputs, labels = self._tensors(batch)
        self._gradient.zero_()
        count, losses = (labels != IGNORED).sum(), []
        for part in self._slices(inputs, labels):
            loss = self._summed_loss(*part) / count
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            losses.append(loss.detach())
        value = float(torch.stack(losses).sum())
        if not math.isfinite(value) or not bool(torch.isfinite(self._gradient).all()):
            raise StateError(f"micro-batch {batch.number}: loss or gradient is not finite")
        return value, self._gradient

    def mean_loss(self, batches: Iterable[MicroBatch]) -> float:
        """Nats per label that counts, over all batches.

        Raises:
            DataError: a batch does not fit, or there is none.
        """
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in batches:
                inputs, labels = self._tensors(batch)
                total += sum(float(self._summed_loss(*part)) for part in self._slices(inputs, labels))
                count += int((labels != IGNORED).sum())
        if not count:
            raise DataError("no labels to compute a loss of")
        return total / count

    def _slices(self, inputs: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The samples, so many at a time as the logits may take memory; the same for miner and auditor."""
        samples = max(1, self._logits // (inputs.shape[1] * self._vocab_size))
        return zip(torch.split(inputs, samples), torch.split(labels, samples), strict=True)

    def _summed_loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with self._numerics():
            logits = self.module(input_ids=inputs, use_cache=False).logits
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    @contextlib.contextmanager
    def _numerics(self) -> Iterator[None]:
        half = torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bfloat16")
        kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        exact = sdpa_kernel(kernels) if self._device.type == "cuda" else contextlib.nullcontext()
        with half, exact:
            yield

    def _tensors(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels on the device, checked: an index out of range would take a GPU down with it."""
        inputs, labels = batch.input_ids, batch.labels
        if inputs.ndim != 2 or inputs.shape != labels.shape or not 1 <= batch.samples <= len(inputs):
            shapes = f"input_ids {inputs.shape}, labels {labels.shape}, samples {batch.samples}"
            raise DataError(f"micro-batch {batch.number} is not [samples, tokens]: {shapes}")
        counted = labels[labels != IGNORED]
        for name, ids in (("input_ids", inputs), ("labels", counted)):
            if not ids.size or ids.min() < 0 or ids.max() >= self._vocab_size:
                raise DataError(f"micro-batch {batch.number}: {name} are empty or outside 0..{self._vocab_size - 1}")
        return self._put(inputs), self._put(labels)

    def _put(self, ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.int64).to(self._device, non_blocking=True)
