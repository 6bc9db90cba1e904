"""One model that all simulated nodes share: loss and gradient at given parameters, on any device.

A node's samples go through it in slices, so that memory is bounded by `LOGITS`, not by the samples of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from distributed_training.arena.sizes import Size
from distributed_training.model.build import build
from distributed_training.model.layout import Layout, ordered_parameters
from template.errors import StrategyError

LOGITS = 1 << 28  # values held at a time: 1 GiB of float32


@dataclass(frozen=True, eq=False)
class Batch:
    """`inputs` and `labels` int64 [samples, block]; `labels[s, t]` is the token after `inputs[s, t]`."""

    inputs: torch.Tensor
    labels: torch.Tensor


class SharedModel:
    """The module, with its parameters and gradients as views of one vector each."""

    def __init__(self, size: Size, seed: int, device: torch.device, logits: int = LOGITS) -> None:
        """Initial weights are a function of `seed` alone (model/build.py)."""
        self._size, self._device = size, device
        self._samples = max(1, logits // (size.block * size.vocabulary))
        module = build(size.spec, size.vocabulary, size.block, seed)
        self._module = module.to(device).train()  # there is no dropout to switch on
        self.layout = Layout.of(self._module)
        self._params = torch.empty(self.layout.size, device=device)
        self._gradient = torch.zeros(self.layout.size, device=device)
        for tensor, (_, parameter) in zip(self.layout.tensors, ordered_parameters(self._module), strict=True):
            view = self._params[tensor.slice].view(tensor.shape)
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = self._gradient[tensor.slice].view(tensor.shape)
        self._initial = self._params.clone()

    @property
    def initial(self) -> torch.Tensor:
        """A copy of the initial parameters [P]."""
        return self._initial.clone()

    def gradient(self, params: torch.Tensor, batch: Batch) -> tuple[float, torch.Tensor]:
        """Mean loss of `batch` at `params` [P], and its gradient, a new float32 [P].

        Raises:
            StrategyError: the loss is not finite: the parameters diverged.
        """
        self._params.copy_(params)
        self._gradient.zero_()
        total = torch.zeros((), device=self._device)
        for inputs, labels in self._slices(batch):
            loss = self._summed_loss(inputs, labels) / batch.labels.numel()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += loss.detach()
        return _finite(float(total)), self._gradient.clone()

    def loss(self, params: torch.Tensor, batch: Batch) -> float:
        """Mean loss in nats a token; raises StrategyError as `gradient` does."""
        self._params.copy_(params)
        with torch.no_grad():
            total = sum(float(self._summed_loss(*part)) for part in self._slices(batch))
        return _finite(total / batch.labels.numel())

    def flops(self, batch: Batch) -> int:
        """Floating point operations of one `gradient` of such a batch, counted as it runs."""
        with FlopCounterMode(display=False) as counter:
            self.gradient(self._initial, batch)
        return int(counter.get_total_flops())

    def _slices(self, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        parts = (torch.split(ids.to(self._device), self._samples) for ids in (batch.inputs, batch.labels))
        return zip(*parts, strict=True)

    def _summed_loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        half = torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda")
        with half:
            logits = self._module(input_ids=inputs, use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise StrategyError("the loss is not finite: training diverged; lower the learning rates")
    return loss
