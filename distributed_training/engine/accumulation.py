"""What is accumulated of one epoch: the sum of n_k g_k over its micro-batches, on the device."""

from __future__ import annotations

import torch

from distributed_training.engine.coordinates import coordinates
from distributed_training.model.layout import Layout, Vector
from distributed_training.run import RunSpec


class Accumulation:
    """A sum of gradients [P], and the audit coordinates [C] of its epoch. Used again for one epoch after another."""

    def __init__(self, spec: RunSpec, layout: Layout, device: str | torch.device) -> None:
        self._spec = spec
        self._layout = layout
        self._sum = torch.zeros(layout.size, device=device)
        self.coordinates = torch.zeros(0, dtype=torch.int64)

    @property
    def device(self) -> torch.device:
        return self._sum.device

    def begin(self, epoch: int) -> None:
        """Nothing accumulated, for `epoch`; raises ConfigurationError for more coordinates than there can be."""
        chosen = coordinates(self._spec.run_id, epoch, self._layout, self._spec.audit.coordinates)
        self._sum.zero_()
        self.coordinates = torch.from_numpy(chosen).to(self.device)

    def add(self, gradient: torch.Tensor, samples: int) -> None:
        """One micro-batch: its mean gradient [P] with the weight of its samples."""
        self._sum.add_(gradient, alpha=samples)

    def mean(self, samples: int) -> Vector:
        """The sum over `samples`, a new float32 [P]."""
        return (self._sum / float(samples)).cpu().numpy()

    def copy(self) -> Vector:
        """The sum as it is, a new float32 [P]."""
        return self._sum.detach().to("cpu", copy=True).numpy()

    def load(self, vector: Vector) -> None:
        """Go on from the sum of a checkpoint, float32 [P]."""
        self._sum.copy_(torch.from_numpy(vector.copy()))
