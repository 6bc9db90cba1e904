"""One flat vector for a whole model: which parameter lies where, and the way in and out of a torch module.

The canonical order is the parameters' names sorted as strings; a tied weight appears once, under the name that
`named_parameters` gives it first. Offsets, shapes and hence every hash and every averaged vector follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from template.errors import CorruptState

Vector = npt.NDArray[np.float32]  # [P], contiguous


@dataclass(frozen=True)
class Tensor:
    """One parameter: elements `offset` to `offset + size` of the vector, in C order of `shape`."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def slice(self) -> slice:
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class Layout:
    """The parameters in canonical order."""

    tensors: tuple[Tensor, ...]

    @cached_property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(tensor.size for tensor in self.tensors)

    @classmethod
    def of(cls, module: torch.nn.Module) -> Layout:
        """The layout of a module's parameters."""
        tensors, offset = [], 0
        for name, parameter in ordered_parameters(module):
            tensors.append(Tensor(name, tuple(parameter.shape), offset))
            offset += parameter.numel()
        return cls(tuple(tensors))

    def split(self, vector: Vector) -> Iterator[tuple[str, Vector]]:
        """Views into `vector` [P], each in its parameter's shape.

        Raises:
            CorruptState: not a float32 vector of P elements.
        """
        self.check(vector)
        for tensor in self.tensors:
            yield tensor.name, vector[tensor.slice].reshape(tensor.shape)

    def check(self, vector: Vector) -> None:
        """Raise CorruptState unless `vector` is float32 [P]."""
        if vector.shape != (self.size,) or vector.dtype != np.float32:
            raise CorruptState(f"expected float32 [{self.size}], found {vector.dtype} {list(vector.shape)}")


def ordered_parameters(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Names and parameters in canonical order, tied weights once."""
    return sorted(module.named_parameters())


def flatten(module: torch.nn.Module) -> Vector:
    """A copy of all parameters as one vector [P], whatever device they are on."""
    parts = [p.detach().to("cpu", torch.float32).reshape(-1).numpy() for _, p in ordered_parameters(module)]
    return np.concatenate(parts)


def unflatten(vector: Vector, module: torch.nn.Module) -> None:
    """Copy `vector` [P] into the module's parameters, on the device where they are.

    Raises:
        CorruptState: the vector does not fit the module; nothing was copied.
    """
    parameters = ordered_parameters(module)
    pieces = list(Layout.of(module).split(vector))
    with torch.no_grad():
        for (_, parameter), (_, piece) in zip(parameters, pieces, strict=True):
            parameter.copy_(torch.from_numpy(piece.copy()))  # a copy: torch cannot wrap read-only memory
